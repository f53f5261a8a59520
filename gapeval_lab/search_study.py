"""A study that survives its workers: trials handed out, told, lost and tried again.

Every trial has a *place*, counted from 0: the how-manieth it is, without what other runs gave and
without second tries, which keep the place of the first. A worker holds a lock file while it lives;
the trial of a dead one is failed and queued once more with the same parameters.

A trial's user attributes: `worker` (host and lock file), `retry_of` and `tries` (one more than
the workers that died of it), `past` (known from an earlier run), `surplus` (two machines asked for
the last place), `reason` (why it has no value), and `result`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from gapeval_lab.errors import UserError
from gapeval_lab.recipe import LoadedRecipe, flatten
from gapeval_lab.search_sampler import make_pruner, make_sampler, parameters, settings, suggest
from gapeval_lab.search_storage import Place
from gapeval_lab.study_settings import Search
from gapeval_lab.tracking_locks import file_lock, removed_if_free, try_lock
from gapeval_lab.tracking_stop import signals_wait
from gapeval_lab.trials_types import TestResult, TrialResult

TRIES = 3
"""How many workers a trial may kill before it is given up; one that was stopped may always begin again."""

NAMELESS_SECONDS = 60.0
"""A trial without a worker is one whose worker died while it was handed out; elsewhere it may still be."""


@dataclass(frozen=True)
class Taken:
    """A trial that this worker is to run.

    Attributes:
        trial: Optuna's.
        overrides: dotted path -> value.
        retry_of: number of the trial whose worker died.
    """

    trial: Any
    overrides: dict[str, Any]
    retry_of: int | None

    @property
    def number(self) -> int:
        """The trial's number in the study."""
        return int(self.trial.number)


class SearchStudy:
    """A study in a storage, with its search section."""

    def __init__(self, place: Place, study: Any, section: Search, *, seed: int) -> None:
        """See `open_study` and `load_study`."""
        self.place, self.section, self._study = place, section, study
        study.sampler = make_sampler(section, seed=seed, place_of=self._place_of)
        study.pruner = make_pruner(section)

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self._study.study_name)

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return str(self._study.user_attrs["recipe"]["name"])

    @property
    def optuna(self) -> Any:
        """Optuna's study, to be read."""
        return self._study

    @property
    def parent(self) -> str | None:
        """The MLflow run that the trials are nested under."""
        found = self._study.user_attrs.get("parent")
        return None if found is None else str(found)

    def trials(self) -> list[Any]:
        """Every trial, by number."""
        return list(self._study.get_trials(deepcopy=False))

    def prepare(self, loaded: LoadedRecipe, *, parent: str, past: list[Any]) -> None:
        """Before the first trial: the parent run, what earlier runs gave, and the recipe as it stands.

        Args:
            loaded: the recipe.
            parent: MLflow run of the study.
            past: (overrides, metrics) of earlier runs.

        Raises:
            UserError: the study has another parent run already.
        """
        with file_lock(self.place.lock):
            if self.parent is None:
                self._study.set_user_attr("parent", parent)
            elif self.parent != parent:
                raise UserError(
                    f"--study: the trials of '{self.name}' are in another MLflow store; set "
                    "MLFLOW_TRACKING_URI to that one, or give another name"
                )
            if self.trials():
                return
            base = flatten(loaded.resolved)
            for overrides, metrics in past:
                self._add_past(base, overrides, metrics)
            given = parameters(self.section, base)
            if given is not None and self.section.defaults_first and self.section.sampler.use != "grid":
                self._study.enqueue_trial(given[0])

    def take(self, limit: int, *, worker: Worker) -> Taken | None:
        """Hand out the next trial; None where all `limit` places are taken.

        Trials of dead workers come first.
        """
        with file_lock(self.place.lock):
            worker.lost.extend(self._give_up_dead())
            trials = self.trials()
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and sum(map(_counts, trials)) >= limit:
                return None
            with signals_wait():  # a trial that says whose it is can be given back
                trial = self._study.ask()
                trial.set_user_attr("worker", worker.attribute)
            retry_of = trial.user_attrs.get("retry_of")
            if retry_of is None and self._place_of(trial) >= limit:
                trial.set_user_attr("surplus", True)
                self._study.tell(trial, state=TrialState.FAIL)
                return None
            return Taken(trial, suggest(trial, self.section), retry_of)

    def report(self, taken: Taken, metrics: Mapping[str, float], step: int) -> bool:
        """Note what is measured so far; whether to stop the trial here."""
        value = self.section.compared().of(metrics)
        if self.section.pruner.use == "none" or value is None:
            return False
        taken.trial.report(value, step)
        return bool(taken.trial.should_prune())

    def finish(self, taken: Taken, result: TrialResult) -> str | None:
        """Tell what a trial gave; the reason where it has no value."""
        trial = taken.trial
        trial.set_user_attr("result", asdict(result))
        for limit in self.section.limits():
            violation = limit.violation(result.metrics)
            if violation is not None:
                trial.set_constraint(limit.text, violation)
        if result.pruned:
            self._study.tell(trial, state=TrialState.PRUNED)
            return None
        named = {key: measure.of(result.metrics) for key, measure in self.section.measures()}
        missing = [key for key, value in named.items() if value is None]
        if missing:
            return self.fail(taken, f"{', '.join(missing)}: not measured")
        self._study.tell(trial, [measure.of(result.metrics) for measure, _ in self.section.goals()])
        return None

    def fail(self, taken: Taken, reason: str) -> str:
        """Close a trial that can have no value; it keeps its place."""
        taken.trial.set_user_attr("reason", reason)
        self._study.tell(taken.trial, state=TrialState.FAIL)
        return reason

    def give_back(self, worker: Worker) -> None:
        """Queue once more what a worker has to leave."""
        with file_lock(self.place.lock):
            for trial in self.trials():
                own = trial.user_attrs.get("worker") == worker.attribute
                if own and trial.state == TrialState.RUNNING:
                    self._try_again(trial, died=False)

    def winners(self) -> list[Any]:
        """The best trials that keep the constraints: one, or a spread of the Pareto front.

        Runs that a warm start knew are none of them: they were not measured beside the others.
        """
        kept = [
            trial
            for trial in self.trials()
            if trial.state == TrialState.COMPLETE
            and "past" not in trial.user_attrs
            and all(violation <= 0 for violation in trial.constraints.values())
        ]
        front = sorted(
            pareto(kept, list(self.section.goal.values())), key=lambda one: (one.values, one.number)
        )
        if len(self.section.goal) == 1:
            return front[:1]
        most = self.section.tests
        if len(front) <= most:
            return front
        return [front[round(n * (len(front) - 1) / max(most - 1, 1))] for n in range(most)]

    def overrides(self, trial: Any) -> dict[str, Any]:
        """What a finished trial ran with: dotted path -> value."""
        return settings(self.section, trial.params)

    def note_test(self, trial: Any, result: TestResult) -> None:
        """Keep what a chosen trial gave on test."""
        self._study.set_user_attr(f"test/{trial.number}", json.loads(json.dumps(asdict(result))))

    def tested(self, trial: Any) -> dict[str, Any] | None:
        """What `note_test` kept."""
        found = self._study.user_attrs.get(f"test/{trial.number}")
        return None if found is None else dict(found)

    def _add_past(self, base: Mapping[str, Any], overrides: Mapping[str, Any], metrics: Any) -> None:
        """An earlier run as a finished trial, where it lies in the space and has every goal."""
        values = [measure.of(metrics) for measure, _ in self.section.goals()]
        given = parameters(self.section, {**base, **overrides})
        if given is None or None in values:
            return
        drawn = settings(self.section, given[0])  # what a trial with these parameters would run with
        if any(value != base.get(path) for path, value in overrides.items() if path not in drawn):
            return
        trial = create_trial(
            params=given[0],
            distributions=given[1],
            values=values,
            user_attrs={"past": True, "result": {"metrics": dict(metrics)}},
        )
        for limit in self.section.limits():
            violation = limit.violation(metrics)
            if violation is None:
                return
            trial.set_constraint(limit.text, violation)
        self._study.add_trial(trial)

    def _place_of(self, trial: Any) -> int:
        trials = {one.number: one for one in self.trials()}
        number = trial.number
        while (first := trials[number].user_attrs.get("retry_of")) is not None:
            number = first
        return sum(_counts(one) for one in trials.values() if one.number < number)

    def _give_up_dead(self) -> list[int]:
        """Fail the trials of dead workers of this machine and queue them again; their numbers."""
        gone = []
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self._is_dead(trial):
                gone.append(trial.number)
                self._try_again(trial, died=True)
        return gone

    def _is_dead(self, trial: Any) -> bool:
        named = trial.user_attrs.get("worker")
        if named is None:
            age = (datetime.now() - trial.datetime_start).total_seconds()
            return self.place.ours or age > NAMELESS_SECONDS
        if named["host"] != socket.gethostname():
            return False
        return removed_if_free(Path(named["lock"]))

    def _try_again(self, trial: Any, *, died: bool) -> None:
        """Queue first, fail then: a kill in between is made good by the next worker."""
        tries = trial.user_attrs.get("tries", 1) + died
        queued = any(one.user_attrs.get("retry_of") == trial.number for one in self.trials())
        if tries <= TRIES and not queued:
            attributes = {"retry_of": trial.number, "tries": tries}
            self._study.enqueue_trial(trial.params, user_attrs=attributes)
        with contextlib.suppress(ValueError):  # another machine has told it since
            self._study.tell(trial.number, state=TrialState.FAIL)


class Worker:
    """Who runs trials: a lock file that is held as long as the process lives.

    `lost` collects the numbers of dead workers' trials that were found.
    """

    def __init__(self, path: Path) -> None:
        """See `working`."""
        self.attribute = {"host": socket.gethostname(), "lock": str(path)}
        self.lost: list[int] = []


@contextlib.contextmanager
def working(locks: Path, study: str) -> Iterator[Worker]:
    """A worker's life."""
    locks.mkdir(parents=True, exist_ok=True)
    path = locks / f"search-{study}-{uuid.uuid4().hex[:12]}.lock"
    lock = try_lock(path)
    if lock is None:
        raise RuntimeError(f"the lock of the new worker, {path}, is taken")
    try:
        yield Worker(path)
    finally:
        path.unlink(missing_ok=True)
        lock.close()


def open_study(place: Place, name: str, loaded: LoadedRecipe, section: Search) -> SearchStudy:
    """The study of a recipe, made where there is none.

    Raises:
        UserError: the name belongs to a study of another recipe, or to one that is not ours.
    """
    directions = list(section.goal.values())
    with file_lock(place.lock):
        study = optuna.create_study(
            storage=place.storage, study_name=name, directions=directions, load_if_exists=True
        )
        _check_recipe(study, loaded, section)
        if "recipe" not in study.user_attrs:
            of_recipe = {"hash": loaded.hash, "name": loaded.recipe.name, "seed": loaded.recipe.seed}
            study.set_user_attr("recipe", {**of_recipe, "search": section.model_dump(mode="json")})
    return SearchStudy(place, study, section, seed=loaded.recipe.seed)


def check_study(place: Place, name: str, loaded: LoadedRecipe, section: Search) -> None:
    """Whether a name can be a recipe's study; makes nothing.

    Raises:
        UserError: the name belongs to a study of another recipe, or to one that is not ours.
    """
    if name in optuna.get_all_study_names(place.storage):
        study = optuna.load_study(study_name=name, storage=place.storage)
        _check_recipe(study, loaded, section)


def load_study(place: Place, name: str) -> SearchStudy:
    """A study that is there, to be looked at.

    Raises:
        UserError: it is not.
    """
    names = optuna.get_all_study_names(place.storage)
    if name not in names:
        listed = ", ".join(sorted(names)) or "none"
        raise UserError(f"--show: there is no study '{name}' in {place.words} (there are: {listed})")
    study = optuna.load_study(study_name=name, storage=place.storage)
    known = study.user_attrs.get("recipe")
    if known is None:
        raise UserError(f"--show: the study '{name}' in {place.words} was not made by a search of ours")
    section = Search.model_validate_json(json.dumps(known["search"]))
    return SearchStudy(place, study, section, seed=known["seed"])


def pareto(trials: Sequence[Any], directions: Sequence[str]) -> list[Any]:
    """The trials that no other one is better than: as good in every goal, and better in one."""
    signs = [1 if direction == "maximize" else -1 for direction in directions]
    points = [[sign * value for sign, value in zip(signs, trial.values, strict=True)] for trial in trials]

    def beaten(point: list[float]) -> bool:
        return any(
            other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in points
        )

    return [trial for trial, point in zip(trials, points, strict=True) if not beaten(point)]


def _check_recipe(study: Any, loaded: LoadedRecipe, section: Search) -> None:
    """One without a recipe is ours where it is bare: its maker was killed before it could say more."""
    name, known = study.study_name, study.user_attrs.get("recipe")
    if known is None:
        directions = [direction.name.lower() for direction in study.directions]
        if directions != list(section.goal.values()) or study.get_trials(deepcopy=False):
            raise UserError(f"--study: '{name}' was not made by a search of ours; give another name")
    elif known["hash"] != loaded.hash:
        raise UserError(
            f"--study: '{name}' is a study of another recipe, or of another state of it ({known['name']}, "
            f"{known['hash'][:12]}; this one is {loaded.recipe.name}, {loaded.hash[:12]}); give another name"
        )


def _counts(trial: Any) -> bool:
    """Whether a trial has a place of its own."""
    return not trial.user_attrs.keys() & {"retry_of", "past", "surplus"}
