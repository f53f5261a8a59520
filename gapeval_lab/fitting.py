"""One intervention of a run: its delta, fitted, or read back where a killed run left it.

Everything that it makes lies in its own folder: the delta, its curves, an adapter, a checkpoint.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gapeval_lab.bench import Bench, Stage
from gapeval_lab.delta import WeightDelta
from gapeval_lab.delta_file import Origin
from gapeval_lab.emergence import Recorder
from gapeval_lab.files import write_text
from gapeval_lab.interfaces import CHECKPOINT, Training, side_of
from gapeval_lab.lessons import anchors_of, replay_of
from gapeval_lab.outcome import Emergence

if TYPE_CHECKING:
    from torch import nn

DELTA = "delta.safetensors"
CURVES = "curves.json"
POINTS = "emergence.json"
WORKING = (CURVES, POINTS, CHECKPOINT)
"""Files that only a resumption needs."""

Curves = dict[str, list[tuple[int, float]]]
Progress = Callable[[int, int], None]
"""`progress(done, total)`."""


@dataclass(frozen=True)
class Fitted:
    """What one intervention gave.

    Attributes:
        delta: its change, on top of what was applied already.
        curves: what it logged.
        emergence: both directions while it trained, where the recipe asks for that.
        watching: seconds spent on `emergence`, which are no part of the fitting.
    """

    delta: WeightDelta
    curves: Curves
    emergence: Emergence | None
    watching: float


def fit_stage(
    bench: Bench, stage: Stage, *, place: Path, home: Path, seed: int, progress: Progress
) -> Fitted:
    """Fit an intervention to the model as it is now.

    Args:
        bench: model and benchmark.
        stage: facts, intervention, lessons.
        place: the intervention's folder.
        home: `mlruns/`, for caches.
        seed: all randomness comes from it.
        progress: hears of facts written or updates done.
    """
    curve = bench.loaded.recipe.emergence
    recorder = Recorder(bench, stage, curve, place / POINTS, seed=seed) if curve else None
    file, kept = place / DELTA, place / CURVES
    if file.exists() and kept.exists():
        curves: Curves = {
            name: [(int(step), float(value)) for step, value in points]
            for name, points in json.loads(kept.read_text(encoding="utf-8")).items()
        }
        delta = WeightDelta.load(file)
    else:
        curves = {}
        delta = stage.intervention.fit(
            bench.umm,
            stage.facts,
            seed=seed,
            texts=stage.texts,
            log=_logger(stage, curves, progress),
            cache=home / "cache" / "moments",
            training=Training(
                lessons=stage.lessons,
                replay=replay_of(bench.benchmark, stage.facts) if stage.lessons else (),
                anchors=anchors_of(bench.benchmark, stage.facts, stage.texts) if stage.lessons else (),
                folder=place,
                watch=recorder.watch if recorder else None,
            ),
        )
        write_text(kept, json.dumps(curves))
        delta.save(file, origin=Origin(bench.weights, side_of(stage.intervention.direction)))
    return Fitted(
        delta=delta,
        curves=curves,
        emergence=recorder.result() if recorder else None,
        watching=recorder.seconds if recorder else 0.0,
    )


def _logger(stage: Stage, curves: Curves, progress: Progress) -> Callable[[str, float, int], None]:
    """Keeps the curves; counts facts where a method goes fact by fact, else updates."""
    updates = getattr(stage.intervention, "steps", 0)

    def log(name: str, value: float, step: int) -> None:
        curves.setdefault(name, []).append((step, value))
        by_fact = [key for key in curves if key.startswith("loss/")]
        if by_fact:
            progress(len(by_fact), len(stage.facts))
        elif name == "train/loss":
            progress(step + 1, max(updates, step + 1))

    return log


def rounding(delta: WeightDelta, root: "nn.Module") -> float:
    """What casting to the weights' type loses of a delta: |cast(W + D) - (W + D)| / |D|, Frobenius.

    0 for a delta of zero; about 1e-7 |W| / |D| for float32 weights, 4e-3 |W| / |D| for bfloat16.
    """
    lost, size = 0.0, 0.0
    for name, term in delta.terms.items():
        weight = root.get_parameter(name).detach()
        change = term.dense().to(weight.device).double()
        wanted = weight.double() + change
        # As `applied` adds: in float32, then cast.
        given = (weight.float() + change.float()).to(weight.dtype).double()
        lost += float((given - wanted).square().sum())
        size += float(change.square().sum())
    return math.sqrt(lost / size) if size else 0.0
