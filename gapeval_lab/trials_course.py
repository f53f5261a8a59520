"""What happens to the model in one trial: fit, apply, measure part by part. Knows no MLflow.

Every intervention is fitted on the ones before it; the state after the last one is measured, the states
between are not.
"""

import datetime
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gapeval_lab.bench import Bench
from gapeval_lab.delta import WeightDelta, placebo
from gapeval_lab.evaluate import Evaluation, evaluate_parts
from gapeval_lab.fitting import Fitted, fit_stage
from gapeval_lab.measuring import Measured, logprobs, measure
from gapeval_lab.quality import ProbeState
from gapeval_lab.recording import Course
from gapeval_lab.run import PLACEBO_SEED, OnProgress
from gapeval_lab.study_settings import ALONE
from gapeval_lab.tracking_scalars import rounded
from gapeval_lab.trials_parts import Part, SoFar
from gapeval_lab.trials_types import Report

PHASES = ("fit", "after")
"""What a trial costs, and what its record tells of its seconds."""


class Laps:
    """Seconds per phase, without gaps: each lap begins where the last one ended."""

    def __init__(self) -> None:
        """Begin."""
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, phase: str) -> None:
        """The time since the last lap was this phase's."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


@dataclass
class Progress:
    """How far a trial came: items and probes, and the metrics so far."""

    planned: int = 0
    asked: int = 0
    pruned: bool = False
    metrics: dict[str, float] = field(default_factory=dict)


def course_of(
    bench: Bench,
    before: Measured,
    parts: Sequence[Part],
    *,
    place: Path,
    home: Path,
    report: Report,
    bounds: bool,
    on_progress: OnProgress,
    laps: Laps,
    progress: Progress,
) -> Course | None:
    """Everything that is measured of a trial; None where it was pruned. The model is as found on return.

    Args:
        bench: of the trial.
        before: the state before.
        parts: what is asked, in order.
        place: the trial's folder.
        home: `mlruns/`, for caches.
        report: asked after each part whether to stop.
        bounds: whether intervals are reported on the way.
        on_progress: told how far a phase is.
        laps, progress: take the seconds, and how far the trial came.

    Raises:
        UserError: an intervention, or the change that it gave, does not work out.
        PromptsFailed: the changed model cannot answer.
    """
    began = datetime.datetime.now(datetime.UTC)
    root, recipe = bench.umm.backbone().root, bench.loaded.recipe
    total, fitted = _fitted(bench, place=place, home=home, on_progress=on_progress)
    laps("fit")
    if watching := sum(one.watching for one in fitted):
        laps.seconds["fit"] -= watching
        laps.seconds["emergence"] = watching
    progress.planned = sum(len(part.asked) for part in parts)
    paid = rounded({"cost/seconds": round(laps.seconds["fit"], 3), "delta_norm/total": total.norm()})
    with total.applied(root):
        so_far = SoFar(bench, before, logprobs(bench), bounds=bounds)
        measuring = evaluate_parts(
            bench.umm,
            [part.asked for part in parts],
            judge=bench.judge,
            seed=recipe.seed,
            chunk=recipe.evaluation.batch,
            progress=functools.partial(on_progress, "after"),
        )
        for step, (part, now) in enumerate(zip(parts, measuring, strict=True)):
            laps("after")
            progress.asked += len(part.asked)
            known = paid | so_far.add(part, now)
            progress.metrics = {k: v for k, v in known.items() if not k.startswith(ALONE)}
            progress.pruned = report(known, step) and step + 1 < len(parts)
            laps("tell")
            if progress.pruned:
                return None
    after = Measured(
        Evaluation(tuple(bench.items), now.responses, now.verdicts), ProbeState(now, so_far.logprobs)
    )
    course = Course(began, [before, after], fitted, total)
    if recipe.controls.identity:
        with total.scaled(0.0).applied(root):
            course = replace(course, identity=measure(bench, whole=False))
    if recipe.controls.placebo:
        with placebo(total, seed=recipe.seed + PLACEBO_SEED).applied(root):
            course = replace(course, placebo=measure(bench, whole=False))
    laps("controls")
    return course


def _fitted(
    bench: Bench, *, place: Path, home: Path, on_progress: OnProgress
) -> tuple[WeightDelta, list[Fitted]]:
    """All interventions, each on the model that holds the earlier ones."""
    total, fitted = WeightDelta.zero(), []
    for number, stage in enumerate(bench.stages, start=1):
        with total.applied(bench.umm.backbone().root):
            fitted.append(
                fit_stage(
                    bench,
                    stage,
                    place=place / "stages" / str(number) if len(bench.stages) > 1 else place,
                    home=home,
                    seed=bench.loaded.recipe.seed,
                    progress=functools.partial(on_progress, "fit"),
                )
            )
        total = total.then(fitted[-1].delta)
    return total, fitted
