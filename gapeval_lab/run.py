"""One run of a recipe: before, fit, apply, after, revert, verify, controls; then the Outcome on disk.

Knows no MLflow. Everything finished is on disk at once (responses as they come, the delta when it is
fitted), so the same command after a kill goes on where it stopped.
"""

import contextlib
import datetime
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gapeval_lab.bench import Bench, weights_of
from gapeval_lab.delta import WeightDelta, placebo
from gapeval_lab.delta_file import Origin, Part
from gapeval_lab.errors import SafetyError
from gapeval_lab.evaluate import Helpers, ResponseStore, store_key
from gapeval_lab.files import write_text
from gapeval_lab.fitting import DELTA, Fitted, fit_stage
from gapeval_lab.measuring import Measured, measure
from gapeval_lab.outcome import Outcome, PhaseResult
from gapeval_lab.recording import Course, phase_result, record
from gapeval_lab.response_store import shared_responses
from gapeval_lab.work_folder import ALONE

OnStage = Callable[[str], None]
OnKnown = Callable[[Outcome], None]
"""Takes what is known of a run before its end: with the state before alone, then with the one after, too."""
OnProgress = Callable[[str, int, int], None]
"""`on_progress(phase, done, total)`."""

LONG = 60.0  # seconds of measuring from which a run tells its state before at once, and not at its end
PLACEBO_SEED = 1  # added to the run's seed, so that the placebo is not drawn like the intervention


class Runner:
    """Runs the phases of one recipe in one working folder."""

    def __init__(
        self,
        bench: Bench,
        *,
        home: Path,
        work: Path,
        on_stage: OnStage,
        on_progress: OnProgress,
        on_known: OnKnown | None = None,
        helpers: Helpers | None = None,
    ) -> None:
        """See `run`."""
        self.bench = bench
        self.home = home
        self.work = work
        self.on_stage = on_stage
        self.on_progress = on_progress
        self.on_known = on_known
        self.helpers = helpers
        self.seed = bench.loaded.recipe.seed
        self.began = datetime.datetime.now(datetime.UTC)
        self.early: Outcome | None = None
        self.known: dict[str, PhaseResult] = {}

    @property
    def root(self) -> Any:
        """The module that deltas are applied to."""
        return self.bench.umm.backbone().root

    def run(self) -> Outcome:
        """All phases, then the Outcome, saved in the working folder.

        Raises:
            SafetyError: the weights were not as before after an intervention or its revert.
        """
        with self._phase("before"):
            states = [self._measure("before", shared_responses(self.home))]
        if not self.bench.stages:
            return self._finish(Course(self.began, states))
        if self.bench.seconds["before"] > LONG:
            with self._reporting():
                self._tell_before(states[0])
        total, several = WeightDelta.zero(), len(self.bench.stages) > 1
        fitted: list[Fitted] = []
        for number, stage in enumerate(self.bench.stages, start=1):
            tail = f" {number}" if several else ""
            place = self.work / "stages" / str(number) if several else self.work
            with self._phase(f"fit{tail}") as phase, total.applied(self.root):
                fitted.append(
                    fit_stage(
                        self.bench,
                        stage,
                        place=place,
                        home=self.home,
                        seed=self.seed,
                        progress=functools.partial(self.on_progress, phase),
                    )
                )
            self._count_watching(phase, fitted[-1].watching)
            total = total.then(fitted[-1].delta)
            self._verify("fitting")
            with self._phase(f"after{tail}") as phase, total.applied(self.root):
                states.append(self._measure(phase, self.work / phase.replace(" ", "-"), delta=total))
            self._verify("reverting")
        if several:
            parts = tuple(
                Part(one.delta.digest, 1.0, f"intervention {n}") for n, one in enumerate(fitted, start=1)
            )
            origin = Origin(self.bench.weights, self.bench.direction, parts)
            total.save(self.work / DELTA, origin=origin)
        controls = self.bench.loaded.recipe.controls
        identity: Measured | None = None
        sham: Measured | None = None
        if controls.identity:
            nothing = total.scaled(0.0)
            with self._phase("identity"), nothing.applied(self.root):
                identity = self._measure("identity", self.work / "identity", delta=nothing, whole=False)
            self._verify("the identity control")
        if controls.placebo:
            noise = placebo(total, seed=self.seed + PLACEBO_SEED)
            with self._phase("placebo"), noise.applied(self.root):
                sham = self._measure("placebo", self.work / "placebo", delta=noise, whole=False)
            self._verify("the placebo control")
        return self._finish(
            Course(self.began, states, fitted, total, placebo=sham, identity=identity, known=self.known)
        )

    def _tell_before(self, before: Measured) -> None:
        """Record the state before for whoever wants it now; what was made of it need not be made again."""
        if self.on_known is None or self.early is not None:
            return
        course = Course(self.began, [before])
        self.early = record(self.bench, course, weights=self.bench.weights, work=self.work)
        self.known["before"] = self.early.before
        self.on_known(self.early)

    def _tell_after(self, after: Measured) -> None:
        """Likewise the state after the last intervention."""
        if self.on_known is None or self.early is None:
            return
        self.known["after"] = phase_result(self.bench, "after", after.evaluation, pictures=self.work)
        self.on_known(self.early.model_copy(update={"after": self.known["after"]}))

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Counts what is recorded early among the seconds of the report."""
        began = time.monotonic()
        yield
        self.bench.seconds["report"] = self.bench.seconds.get("report", 0.0) + time.monotonic() - began

    def _count_watching(self, phase: str, seconds: float) -> None:
        """Measuring while a method trains is no part of its fitting."""
        if seconds:
            spent = self.bench.seconds
            spent[phase] -= seconds
            spent["emergence"] = spent.get("emergence", 0.0) + seconds

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[str]:
        self.on_stage(name)
        began = time.monotonic()
        yield name
        self.bench.seconds[name] = time.monotonic() - began

    def _measure(
        self, phase: str, place: Path, *, delta: WeightDelta | None = None, whole: bool = True
    ) -> Measured:
        """The state of the model as it is now, holding `delta`; responses are kept in `place`.

        An applied delta's may lie in the shared cache, too, where `gapeval-lab respond` put them. A state
        with the baseline's weights, such as the identity control's, is asked anew: that the baseline's
        answers are there would prove nothing.
        """
        weights = weights_of(self.bench.umm)
        key = store_key(self.bench.umm, weights=weights, seed=self.seed)
        also = None if weights == self.bench.weights else shared_responses(self.home) / key
        store = ResponseStore(place / key, also=also)
        if self.helpers:
            self.helpers.hold(store, delta)
        return measure(
            self.bench,
            store=store,
            whole=whole,
            progress=functools.partial(self.on_progress, phase),
        )

    def _verify(self, what: str) -> None:
        now = weights_of(self.bench.umm)
        if now != self.bench.weights:
            raise SafetyError(
                f"the model's weights changed by {what}: fingerprint {now[:16]}, "
                f"before {self.bench.weights[:16]}"
            )

    def _finish(self, course: Course) -> Outcome:
        """Reports, pictures and the Outcome, all in the working folder."""
        self.on_stage("report")
        with self._reporting():
            if len(course.states) > 1:  # the model rests now: who logs what is known takes nothing from it
                self._tell_before(course.states[0])
                self._tell_after(course.states[-1])
            outcome = record(self.bench, course, weights=weights_of(self.bench.umm), work=self.work)
        seconds = {name: round(value, 3) for name, value in self.bench.seconds.items()}
        outcome = outcome.model_copy(update={"seconds": seconds})
        write_text(self.work / "recipe.yaml", self.bench.loaded.text)
        outcome.save(self.work)
        return outcome


def home_of(bench: Bench, work: Path, home: Path) -> Path:
    """Where a run finds what runs share: a repetition shares nothing, and keeps it in its own folder."""
    return home if bench.reproduces is None else work / ALONE


def run(
    bench: Bench,
    *,
    home: Path,
    work: Path,
    on_stage: OnStage,
    on_progress: OnProgress,
    on_known: OnKnown | None = None,
    helpers: Helpers | None = None,
) -> Outcome:
    """Run a recipe in its (locked) working folder; an outcome that lies there already is returned.

    Args:
        bench: from `load_bench`.
        home: `mlruns/`: caches that runs share.
        work: from `working_folder`.
        on_stage: told when a phase begins.
        on_progress: told how far a phase is.
        on_known: given what is known once the state before an intervention is measured, and the one after.
        helpers: others who answer prompts, too, see shards.py.
    """
    finished = work / "outcome.json"
    if finished.exists():
        return Outcome.load(finished)
    return Runner(
        bench,
        home=home,
        work=work,
        on_stage=on_stage,
        on_progress=on_progress,
        on_known=on_known,
        helpers=helpers,
    ).run()
