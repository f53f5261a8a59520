"""The trials of a recipe on a loaded model: run, logged, tested.

The model is as it was found before and after every trial: a delta is applied for the time of a
measurement, and one fingerprint per trial proves it.
"""

import datetime
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gapeval_lab.bench import Bench, hash_of_facts, with_recipe
from gapeval_lab.delta import fingerprint
from gapeval_lab.errors import PromptsFailed, RunFailed, SafetyError, UserError
from gapeval_lab.evaluate import ResponseStore, store_key
from gapeval_lab.measuring import Measured, measure
from gapeval_lab.outcome import Outcome
from gapeval_lab.recipe import LoadedRecipe
from gapeval_lab.recording import Course, record
from gapeval_lab.run import OnProgress
from gapeval_lab.tracked_run import Parent, tracked_run
from gapeval_lab.tracking import LiveRun, Store, baseline, experiment_name, track
from gapeval_lab.tracking_locks import file_lock
from gapeval_lab.tracking_log import set_tags
from gapeval_lab.tracking_scalars import scalars
from gapeval_lab.tracking_study import NUMBER, STUDY, StudyRun, log_numbers, search
from gapeval_lab.tracking_values import flatten, method
from gapeval_lab.trials_course import PHASES, Laps, Progress, course_of
from gapeval_lab.trials_optimism import optimism
from gapeval_lab.trials_parts import plan
from gapeval_lab.trials_past import past_of
from gapeval_lab.trials_recipe import recipe_of_test, recipe_of_trial
from gapeval_lab.trials_types import Report, TestResult, TrialFailed, TrialResult

TESTED = "gapeval.tested"  # on the run that tested a trial: the trial's run


class RecipeTrials:
    """The trials of one recipe, as `trials.Trials` has them."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        bench: Bench,
        parent: StudyRun,
        *,
        searched: Collection[str],
        needs: Collection[str],
        names: frozenset[str],
        notes: tuple[str, ...],
        on_progress: OnProgress,
    ) -> None:
        """See `trials.open_trials`; `bench` is that of a trial without overrides."""
        self.loaded = loaded
        self.bench = bench
        self.parent = parent
        self.searched = searched
        self.needs = needs
        self.notes = notes
        self.on_progress = on_progress
        self.store = parent.store
        self.parent_id = parent.run_id
        self.figure, self.artifact, self.tell = parent.figure, parent.artifact, parent.tell
        self._names = names
        self._plan = plan(bench.facts, bench.items)
        self._known: Measured | None = None
        self._baseline: str | None = None
        _sweep(self.store)
        self._bounds = any(name.startswith(("low/", "high/")) for name in needs)

    def metric_names(self) -> frozenset[str]:
        """See `trials.Trials`."""
        return self._names

    def pairs(self, metric: str) -> int:
        """See `trials.Trials`."""
        told = metric.removeprefix("low/").removeprefix("high/").startswith("edit/")
        return sum(bool(part.facts if told else part.items) for part in self._plan[:-1])

    def recipe_of(self, overrides: Mapping[str, Any]) -> LoadedRecipe:
        """See `trials.Trials`."""
        return recipe_of_trial(self.loaded, overrides, needs=self.needs)

    def run(
        self, overrides: Mapping[str, Any], *, number: int, report: Report, retry_of: int | None = None
    ) -> TrialResult:
        """See `trials.Trials`."""
        laps, progress = Laps(), Progress()
        tags = {"kind": "trial", "umm": self.bench.name, STUDY: self.parent.study, NUMBER: str(number)}
        if retry_of is not None:
            tags["gapeval.retry_of"] = str(retry_of)
        with track(
            self.store,
            trial_name(number, overrides),
            experiment=self.parent.experiment,
            key=hashlib.sha256(f"{self.parent_id}|{number}".encode()).hexdigest(),
            parent_id=self.parent_id,
            tags=tags,
        ) as live:
            self.parent.alive()
            laps("start")
            with _folder(self.store.folder / "work" / f"trial-{live.run_id}") as place:
                with self._own_failures(live):
                    bench = self._bench_of(overrides, live)
                laps("recipe")
                before = self._before(bench)  # what fails here fails in every trial
                laps("before")
                live.stage("fit")
                with self._own_failures(live):
                    course = course_of(
                        bench,
                        before,
                        self._plan,
                        place=place,
                        home=self.store.folder,
                        report=report,
                        bounds=self._bounds,
                        on_progress=self.on_progress,
                        laps=laps,
                        progress=progress,
                    )
                self._verify()
                laps("verify")
                if course is None:
                    self._log_pruned(live, progress, laps)
                else:
                    progress.metrics = self._log_whole(live, bench, course, place, laps)
                laps("log")
        laps("end")
        return TrialResult(
            metrics=progress.metrics,
            run_id=live.run_id,
            pruned=progress.pruned,
            asked=progress.asked,
            planned=progress.planned,
            seconds=laps.seconds,
        )

    @contextmanager
    def _own_failures(self, live: LiveRun) -> Iterator[None]:
        """What goes wrong inside is this trial's own, and others may do better."""
        try:
            yield
        except (UserError, PromptsFailed) as error:
            self._verify()
            set_tags(self.store.client, live.run_id, {"outcome": "failed"})
            raise TrialFailed(str(error), live.run_id) from error

    def past(self) -> list[tuple[dict[str, Any], dict[str, float]]]:
        """See `trials.Trials`."""
        query = (
            f"params.data_hash = '{self.bench.data_hash}' and "
            f"params.weights_fingerprint = '{self.bench.weights}'"
        )
        runs = search(self.store, [experiment_name(self.bench.name), self.parent.experiment], query)
        return past_of(
            [run for run in runs if run.parent_id != self.parent_id],
            recipe=self.bench.loaded.resolved,
            searched=self.searched,
            facts_hash=hash_of_facts(self.bench.facts),
        )

    def test(self, overrides: Mapping[str, Any], *, number: int) -> TestResult:
        """See `trials.Trials`.

        Raises:
            ValueError: there is no finished trial of that number.
            UserError: another process tests it now.
        """
        whole = self.parent.children({NUMBER: str(number), "outcome": "complete"})
        if not whole:
            raise ValueError(f"trial {number} of '{self.parent.study}' is not finished; nothing to test")
        trial = whole[-1].run_id
        dev = self.parent.outcome(trial)
        done = self.parent.children({TESTED: trial})
        if done:
            run_id = done[0].run_id
            tested = self.parent.outcome(run_id)
        else:
            tested, run_id = self._tested(overrides, number, trial)
        return TestResult(metrics=scalars(tested), run_id=run_id, optimism=optimism(dev, tested))

    def run_of(self, number: int) -> str | None:
        """See `trials.Trials`."""
        found = self.parent.children({NUMBER: str(number)}, finished=False)
        return found[-1].run_id if found else None

    def lost(self, run_id: str) -> None:
        """See `trials.Trials`."""
        self.parent.lost(run_id)
        shutil.rmtree(self.store.folder / "work" / f"trial-{run_id}", ignore_errors=True)

    def _bench_of(self, overrides: Mapping[str, Any], live: LiveRun) -> Bench:
        """The trial's recipe on the loaded model; its params are logged at once, whatever comes of it."""
        loaded = self.recipe_of(overrides)
        log_numbers(self.store, live.run_id, params=flatten(loaded.resolved))
        set_tags(
            self.store.client,
            live.run_id,
            {"method": method(loaded.resolved), "recipe": loaded.recipe.name},
        )
        return with_recipe(self.bench, loaded)

    def _before(self, bench: Bench) -> Measured:
        """The state before, from disk where a worker has measured it; its run in MLflow is made once."""
        if self._known:
            return self._known
        key = store_key(bench.umm, weights=bench.weights, seed=bench.loaded.recipe.seed)
        with file_lock(self.store.locks / f"before-{key}.lock"):  # one worker asks, the others read
            measured = measure(
                bench,
                store=ResponseStore(self.store.folder / "cache" / "responses" / key),
                progress=functools.partial(self.on_progress, "before"),
            )
        if self._baseline is None:
            self._baseline = self._baseline_run(bench, measured)
        self._known = measured
        return measured

    def _baseline_run(self, bench: Bench, measured: Measured) -> str:
        alone = replace(bench, stages=[], seconds={})
        course = Course(datetime.datetime.now(datetime.UTC), [measured])
        with tempfile.TemporaryDirectory(prefix="gapeval-baseline-") as place:
            outcome = record(alone, course, weights=bench.weights, work=Path(place))
            return baseline(self.store, outcome, Path(place))

    def _verify(self) -> None:
        now = fingerprint(self.bench.umm.backbone().root)
        if now != self.bench.weights:
            raise SafetyError(
                f"the model's weights changed by a trial: fingerprint {now[:16]}, before "
                f"{self.bench.weights[:16]}"
            )

    def _log_whole(
        self, live: LiveRun, bench: Bench, course: Course, place: Path, laps: Laps
    ) -> dict[str, float]:
        """The record of a whole trial, on disk and then in MLflow; returns its metrics."""
        bench.seconds.update({phase: laps.seconds[phase] for phase in PHASES})
        outcome = record(bench, course, weights=bench.weights, work=place, trial=True)
        outcome.save(place)
        laps("record")
        live.log(outcome, place, baseline_run_id=self._baseline)
        set_tags(self.store.client, live.run_id, {"outcome": "complete"})
        return scalars(outcome)

    def _log_pruned(self, live: LiveRun, progress: Progress, laps: Laps) -> None:
        """What is known of a pruned trial. Estimates on a part do not stand among whole ones."""
        known = {f"partial/{name}": value for name, value in progress.metrics.items()}
        known |= {f"time/{phase}": round(laps.seconds[phase], 3) for phase in PHASES}
        known["pruned/share_asked"] = round(progress.asked / progress.planned, 4)
        log_numbers(self.store, live.run_id, metrics=known)
        note = f"**Pruned** after {progress.asked} of {progress.planned} items and probes."
        tags = {"outcome": "pruned", "gapeval.stage": "done", "mlflow.note.content": note}
        set_tags(self.store.client, live.run_id, tags)

    def _tested(self, overrides: Mapping[str, Any], number: int, trial: str) -> tuple[Outcome, str]:
        """A whole, ordinary run on the test half, nested under the search."""
        bench = with_recipe(self.bench, recipe_of_test(self.loaded, overrides))
        parent = Parent(
            self.parent_id,
            self.parent.experiment,
            f"test of {trial_name(number, overrides)}",
            {TESTED: trial, STUDY: self.parent.study},
        )
        done = tracked_run(bench, store=self.store, on_progress=self.on_progress, parent=parent)
        if done.run_id is None:
            raise RunFailed(
                f"MLflow was out of reach while trial {number} was tested; its result is kept in "
                f"{done.place}; search again when the store is back"
            )
        return done.outcome, done.run_id


def trial_name(number: int, overrides: Mapping[str, Any]) -> str:
    """`#004 lr=7.4e-05 layers=[0,1]`: by the last words of the paths."""

    def shown(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}"
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))

    values = (f"{path.split('.')[-1]}={shown(value)}" for path, value in overrides.items())
    return " ".join((f"#{number:03d}", *values))


@contextmanager
def _folder(place: Path) -> Iterator[Path]:
    """A trial's folder, gone at its end, unless it holds a record that could not be logged."""
    place.mkdir(parents=True)
    try:
        yield place
    except BaseException:
        if not (place / "outcome.json").exists():
            shutil.rmtree(place, ignore_errors=True)
        raise
    shutil.rmtree(place, ignore_errors=True)


def _sweep(store: Store) -> None:
    """Remove the folders of trials whose workers were killed; records that nobody logged stay."""
    for place in (store.folder / "work").glob("trial-*"):
        alive = store.lock_path(place.name.removeprefix("trial-")).exists()
        if not alive and not (place / "outcome.json").exists():
            shutil.rmtree(place, ignore_errors=True)
