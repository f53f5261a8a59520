"""A search: trials of a recipe until a number is reached, then the best ones on test, figures, a recipe.

Any number of processes, on any number of machines, may run the same search; what was finished is
never done twice. Knows how trials are chosen, not how they are run (trials.py), and prints nothing.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from gapeval_lab.errors import UserError
from gapeval_lab.files import write_text
from gapeval_lab.processes import orphaned, shared_threads
from gapeval_lab.recipe import LoadedRecipe
from gapeval_lab.search_figures import figures
from gapeval_lab.search_report import Summary, note, summary, told, trial_line
from gapeval_lab.search_sampler import grid
from gapeval_lab.search_storage import open_place
from gapeval_lab.search_study import SearchStudy, Taken, Worker, check_study, open_study, working
from gapeval_lab.search_workers import crew
from gapeval_lab.study_settings import ALONE, Grid, Search, Wilcoxon
from gapeval_lab.tracking_locks import file_lock
from gapeval_lab.tracking_stop import Stopped, sigterm_raises
from gapeval_lab.trials_recipe import recipe_of_test
from gapeval_lab.trials_types import TrialFailed, Trials, check_metrics

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
        folder: of the project's studies; takes the best trials' recipes.
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
    place = open_place(plan.storage, folder=plan.folder, study=plan.study)
    check_study(place, plan.study, plan.loaded, section)
    with sigterm_raises(), shared_threads(plan.workers), make() as trials:
        check_metrics(section.needs(), trials.metric_names())
        _check_pruner(section, trials)
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


def _check_pruner(section: Search, trials: Trials) -> None:
    """Refuse a signed-rank test that has too few pairs to become significant: n pairs reach 2^-n."""
    pruner = section.pruner
    if not isinstance(pruner, Wilcoxon):
        return
    metric = section.compared().name.removeprefix(ALONE)
    pairs, needed = trials.pairs(metric), math.floor(-math.log2(pruner.p_threshold)) + 1
    if pairs < needed:
        raise UserError(
            f"search.pruner: wilcoxon could stop no trial: '{metric}' is measured in {pairs} parts "
            f"before a trial's last one, and p < {pruner.p_threshold:g} takes {needed}; name another metric, "
            "raise p_threshold, or use median"
        )


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
        try:
            while True:
                tend()
                taken = study.take(limit, worker=worker)
                _close_lost(trials, worker)
                if taken is None:
                    return ran
                ran = True
                say(trial_line(study, taken, _one(study, trials, taken)))
        except BaseException:
            study.give_back(worker)
            raise


def _close_lost(trials: Trials, worker: Worker) -> None:
    """End the MLflow runs of the dead workers that this one found."""
    while worker.lost:
        run_id = trials.run_of(worker.lost.pop())
        if run_id is not None:
            trials.lost(run_id)


def _one(study: SearchStudy, trials: Trials, taken: Taken) -> str | None:
    """Run a trial and tell the study; the reason where it has no value."""
    try:
        result = trials.run(
            taken.overrides,
            number=taken.number,
            report=functools.partial(study.report, taken),
            retry_of=taken.retry_of,
        )
    except TrialFailed as error:  # a combination that the recipe or the model refuses
        return study.fail(taken, str(error))
    return study.finish(taken, result)


def _conclude(study: SearchStudy, trials: Trials, plan: Plan) -> Summary:
    """The best trials on test, their recipes, and the figures; once, by whoever ends last."""
    if summary(study).running:
        return summary(study)
    with file_lock(plan.folder / f"{study.name}.end.lock"):
        recipes: list[Path] = []
        for trial in study.winners():
            if study.tested(trial) is None:
                study.note_test(trial, trials.test(study.overrides(trial), number=trial.number))
            recipes += _write_recipes(study, trials, plan, trial)
        _remove_stale(plan, keep=recipes)
        for file in recipes:
            trials.artifact(file)
        for name, figure in figures(study.optuna, study.section).items():
            trials.figure(name, figure)
        found = summary(study)
        trials.tell(_of_parent(study), note="\n\n".join((*note(found), *trials.notes)))
    return replace(found, recipes=tuple(recipes))


def _of_parent(study: SearchStudy) -> dict[str, float]:
    """The best trial's metrics, so that the parent stands where the best trial does when runs are sorted."""
    winners = study.winners()
    return dict(winners[0].user_attrs["result"]["metrics"]) if len(winners) == 1 else {}


def _write_recipes(study: SearchStudy, trials: Trials, plan: Plan, trial: Any) -> list[Path]:
    """A winner as two recipes that can be run: what was tested, and the trial itself."""
    overrides = study.overrides(trial)
    tail = "best" if len(study.section.goal) == 1 else f"best-{trial.number:03d}"
    tested = study.tested(trial) or {"metrics": {}}
    both = {
        f"{study.name}.{tail}.yaml": (
            recipe_of_test(plan.loaded, overrides),
            "test facts and test items",
            tested["metrics"],
        ),
        f"{study.name}.{tail}.dev.yaml": (
            trials.recipe_of(overrides),
            "dev facts and dev items, as the search saw it",
            trial.user_attrs["result"]["metrics"],
        ),
    }
    files = []
    for name, (loaded, seen, metrics) in both.items():
        lines = [f"# Trial {trial.number} of the search '{study.name}' of {study.recipe}: {told(overrides)}"]
        known = [m.name for _, m in study.section.measures() if m.name in metrics]
        lines += [f"# On {seen}: {', '.join(f'{one} {metrics[one]:.4g}' for one in dict.fromkeys(known))}"]
        lines += ["# Command: gapeval-lab edit --recipe <this file>"]
        body = yaml.safe_dump(loaded.resolved, sort_keys=False, allow_unicode=True)
        write_text(plan.folder / name, "\n".join(lines) + f"\n{body}")
        files.append(plan.folder / name)
    return files


def _remove_stale(plan: Plan, *, keep: Collection[Path]) -> None:
    """Take away the recipes of this study's trials that win no longer."""
    own = re.compile(re.escape(plan.study) + r"\.best-\d{3,}(\.dev)?\.yaml")
    for file in plan.folder.iterdir():
        if own.fullmatch(file.name) and file not in keep:
            file.unlink()


@contextlib.contextmanager
def trials_of(loaded: LoadedRecipe, study: str) -> Iterator[Trials]:
    """What runs a recipe's trials, with the store that the environment asks for; picklable, see `Make`."""
    from gapeval_lab.tracking import Store
    from gapeval_lab.trials import open_trials

    section = loaded.recipe.search
    if section is None:
        raise ValueError("the recipe has no search section")
    store = Store.open()
    store.check()
    store.reconcile()
    needs = {name: key for key, name in reversed(section.needs())}
    with open_trials(loaded, store=store, study=study, searched=list(section.space), needs=needs) as trials:
        yield trials
