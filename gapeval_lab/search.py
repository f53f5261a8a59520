"""A search: trials of a recipe until a number is reached, then the best ones on test, figures, a recipe.

Any number of processes, on any number of machines, may run the same search; what was finished is
never done twice. Knows how trials are chosen, not how they are run (trials.py), and prints nothing.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gapeval_lab.errors import UserError
from gapeval_lab.files import write_text
from gapeval_lab.recipe import LoadedRecipe, resolve
from gapeval_lab.search_figures import figures
from gapeval_lab.search_report import Summary, summary, trial_line
from gapeval_lab.search_sampler import grid
from gapeval_lab.search_storage import open_place
from gapeval_lab.search_study import SearchStudy, Taken, check_study, open_study, working
from gapeval_lab.search_workers import crew, orphaned, shared_threads
from gapeval_lab.study_settings import Grid, Search
from gapeval_lab.tracking_stop import Stopped, sigterm_raises
from gapeval_lab.tracking_store import file_lock
from gapeval_lab.trials_types import Trials
from gapeval_lab.validation import did_you_mean

Make = Callable[[], AbstractContextManager[Trials]]
"""Loads the model and gives what runs trials; called once per process, picklable for several."""

Say = Callable[[str], None]
"""Takes a line for the user, in every process."""

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Plan:
    """What is to be searched, and where it is kept.

    Attributes:
        loaded: the recipe.
        study: the study's name.
        storage: see `open_place`.
        trials: how many the study is to have.
        workers: processes of this command.
        folder: of the project's studies; takes the best recipes.
        locks: where workers' lock files lie.
    """

    loaded: LoadedRecipe
    study: str
    storage: str | None
    trials: int
    workers: int
    folder: Path
    locks: Path

    @property
    def section(self) -> Search:
        """The recipe's search section."""
        if self.loaded.recipe.search is None:
            name = self.loaded.recipe.name
            raise UserError(f"--recipe: '{name}' has no search section; add search: with goal and space")
        return self.loaded.recipe.search

    @property
    def limit(self) -> int:
        """How many trials there can be; a grid ends by itself."""
        section = self.section
        if not isinstance(section.sampler, Grid):
            return self.trials
        return min(self.trials, len(grid(section, seed=0)))

    def open(self) -> SearchStudy:
        """The study."""
        place = open_place(self.storage, folder=self.folder, study=self.study)
        return open_study(place, self.study, self.loaded, self.section)


def run_search(plan: Plan, make: Make, *, say: Say) -> Summary:
    """Run trials until the study has as many as asked; then test the best ones, unless others still run.

    Args:
        plan: the search.
        make: what runs its trials.
        say: takes a line per trial.

    Raises:
        UserError: before any trial: the storage, the study's name, or a metric that is not logged.
    """
    section, limit = plan.section, plan.limit
    check_study(open_place(plan.storage, folder=plan.folder, study=plan.study), plan.study, plan.loaded)
    with sigterm_raises(), shared_threads(plan.workers), make() as trials:
        check_metrics(section, trials.metric_names())
        study = plan.open()
        past = trials.past() if section.warm_start and not study.trials() else []
        study.prepare(plan.loaded, parent=trials.parent_id, past=past)
        others = min(plan.workers, max(limit, 1)) - 1
        work = functools.partial(_join, plan, make, say)
        with crew(work, others) as beside:
            # A worker that is killed after this one found nothing to do leaves a trial behind.
            while _loop(study, trials, limit, plan=plan, say=say, tend=beside.tend) or beside.tend():
                time.sleep(POLL_SECONDS)
        return _conclude(study, trials, plan)


def check_metrics(section: Search, known: frozenset[str]) -> None:
    """Whether every metric that the section names will be there.

    Raises:
        UserError: one that will not, with the closest name.
    """
    for key, measure in section.measures():
        if measure.name not in known:
            hint = did_you_mean(measure.name, known) or f" (there are: {', '.join(sorted(known))})"
            raise UserError(f"{key}: no trial of this recipe logs '{measure.name}'{hint}")


def _join(plan: Plan, make: Make, say: Say) -> None:
    """What a worker beside the first does."""
    parent = os.getppid()

    def forsaken() -> bool:
        if orphaned(parent):
            raise Stopped(1)
        return False

    with make() as trials:
        _loop(plan.open(), trials, plan.limit, plan=plan, say=say, tend=forsaken)


def _loop(
    study: SearchStudy,
    trials: Trials,
    limit: int,
    *,
    plan: Plan,
    say: Say,
    tend: Callable[[], bool],
) -> bool:
    """Run trials as long as there are places; whether any was run."""
    ran = False
    with working(plan.locks, study.name) as worker:
        while True:
            tend()
            taken = study.take(limit, worker=worker)
            while worker.lost:
                run_id = trials.run_of(worker.lost.pop())
                if run_id is not None:
                    trials.lost(run_id)
            if taken is None:
                return ran
            ran = True
            say(trial_line(study, taken, _one(study, trials, taken)))


def _one(study: SearchStudy, trials: Trials, taken: Taken) -> str | None:
    """Run a trial and tell the study; the reason where it has no value."""
    try:
        result = trials.run(
            taken.overrides,
            number=taken.number,
            report=functools.partial(study.report, taken),
            retry_of=taken.retry_of,
        )
    except UserError as error:  # a combination that the recipe or the model refuses
        return study.fail(taken, str(error))
    except BaseException:
        study.give_back(taken)
        raise
    return study.finish(taken, result)


def _conclude(study: SearchStudy, trials: Trials, plan: Plan) -> Summary:
    """The best trials on test, their recipes, and the figures; once, by whoever ends last."""
    if summary(study).running:
        return summary(study)
    with file_lock(plan.folder / f"{study.name}.end.lock"):
        for trial in study.winners():
            if study.tested(trial) is None:
                study.note_test(trial, trials.test(study.overrides(trial), number=trial.number))
        for file in write_recipes(study, plan):
            trials.artifact(file)
        for name, figure in figures(study.optuna, study.section).items():
            trials.figure(name, figure)
    return summary(study)


def write_recipes(study: SearchStudy, plan: Plan) -> list[Path]:
    """The best trials as recipes that can be run; a single one is `<study>.best.yaml`."""
    winners = study.winners()
    files = []
    for trial in winners:
        tail = "best" if len(study.section.goal) == 1 else f"best-{trial.number:03d}"
        file = plan.folder / f"{study.name}.{tail}.yaml"
        write_text(file, best_recipe(study, plan.loaded, trial))
        files.append(file)
    return files


def best_recipe(study: SearchStudy, loaded: LoadedRecipe, trial: Any) -> str:
    """A trial as a recipe: the searched one with the trial's settings, every default filled in."""
    chosen = [f"{path}={json.dumps(value)}" for path, value in study.overrides(trial).items()]
    overrides = [*loaded.overrides, "search=null", *chosen]
    found = resolve(loaded.text, source=loaded.source, overrides=overrides)
    tested = study.tested(trial) or {"metrics": {}}
    on_dev = trial.user_attrs.get("result", {}).get("metrics", {})
    lines = [f"# Trial {trial.number} of the search '{study.name}' of {loaded.recipe.name}, with"]
    lines += [f"#   {one}" for one in chosen]
    for measure, _ in study.section.goals():
        told = [f"dev {on_dev[measure.name]:.4g}"] if measure.name in on_dev else []
        test = tested["metrics"].get(measure.name)
        lines.append(
            f"# {measure.name}: {', '.join([*told, *([f'test {test:.4g}'] if test is not None else [])])}"
        )
    lines.append("# Command: gapeval-lab edit --recipe <this file>")
    body = yaml.safe_dump(found.resolved, sort_keys=False, allow_unicode=True)
    return "\n".join(lines) + "\n" + str(body)
