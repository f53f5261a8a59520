"""When each direction learns: the state of both, measured while an intervention trains, or writes facts.

A quick probe (the facts' own wordings and rewordings, both directions) and, if asked for, the Gap
Score on a subset of the benchmark, at chosen updates. Points go to disk as they are measured, so a
resumed training does not measure them again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from gapeval_lab.bench import Bench, Stage
from gapeval_lab.evaluate import Evaluation, evaluate, select
from gapeval_lab.files import write_text
from gapeval_lab.gap.score import gap as gap_of
from gapeval_lab.gap.table import ItemVerdict, cells, counts_array
from gapeval_lab.interfaces import UMM, Judge
from gapeval_lab.items import Direction, Fact, Item
from gapeval_lab.outcome import Emergence, EmergencePoint
from gapeval_lab.quality import SIDES, Side, kept
from gapeval_lab.recipe import Curve

UND, GEN = Direction.UNDERSTANDING, Direction.GENERATION
LEVELS = (0.5, 0.9)


def measure(
    umm: UMM,
    step: int,
    *,
    facts: Sequence[Item],
    items: Sequence[Item],
    judge: Judge,
    seed: int,
    written: Sequence[Fact] = (),
    before: Evaluation | None = None,
) -> EmergencePoint:
    """The state of both directions now.

    Args:
        umm: as it is, in evaluation mode.
        step: what the point is called: updates so far.
        facts: probes; their share right is `text` and `image`.
        items: of the benchmark, for the Gap Score; none leaves it out.
        judge: of both.
        seed: of drawings.
        written: facts that were written so far; their reliability and locality are measured too.
        before: of their neighbours, on the model as it was.
    """
    near = [item for fact in written for item in fact.neighbours]
    asked = evaluate(umm, [*facts, *near, *items], judge=judge, seed=seed)

    def share(some: Sequence[Item], direction: Direction) -> float | None:
        scored = [v for item in some if (v := asked.correct(item, direction)) is not None]
        return sum(scored) / len(scored) if scored else None

    verdicts = [ItemVerdict(i.category, asked.correct(i, UND), asked.correct(i, GEN)) for i in items]
    table = {name: row for name, row in cells(verdicts).items() if row.n}
    gaps = gap_of(counts_array(table.values())).tolist() if table else []
    return EmergencePoint(
        step=step,
        text=share(facts, UND),
        image=share(facts, GEN),
        gap=float(np.mean(gaps)) if gaps else None,
        understanding=share(items, UND),
        generation=share(items, GEN),
        categories=dict(zip(table, gaps, strict=True)),
        reliability=_by_side(lambda side: [share([fact.edit], SIDES[side]) for fact in written]),
        locality=_by_side(
            lambda side: [kept(fact.neighbours, side, before, asked) for fact in written] if before else []
        ),
    )


def _by_side(shares: Callable[[Side], Sequence[float | None]]) -> dict[Side, float]:
    """Means of per-fact shares; a side that was not scored is missing."""
    known = {side: [share for share in shares(side) if share is not None] for side in SIDES}
    return {side: float(np.mean(found)) for side, found in known.items() if found}


def crossing(steps: Sequence[int], shares: Sequence[float | None], level: float) -> float | None:
    """The step at which a curve first reaches a level, on straight lines between its points.

    None where it never does. A curve that starts at or above the level crosses at its first point.
    """
    last: tuple[int, float] | None = None
    for step, share in zip(steps, shares, strict=True):
        if share is None:
            continue
        if share >= level:
            if last is None:
                return float(step)
            return last[0] + (level - last[1]) / (share - last[1]) * (step - last[0])
        last = (step, share)
    return None


def emergence(
    points: Sequence[EmergencePoint], *, unit: Literal["updates", "facts"] = "updates"
) -> Emergence:
    """The points with the step at which each direction crosses each level, and the lag between them."""
    ordered = sorted(points, key=lambda point: point.step)
    if unit == "facts":
        return Emergence(unit=unit, points=ordered, crossings={}, lag={})
    steps = [point.step for point in ordered]
    curves: dict[Side, list[float | None]] = {
        "text": [p.text for p in ordered],
        "image": [p.image for p in ordered],
    }
    crossings: dict[Side, dict[str, float | None]] = {
        side: {_name(level): crossing(steps, shares, level) for level in LEVELS}
        for side, shares in curves.items()
    }
    lag: dict[str, float | None] = {}
    for level in LEVELS:
        told, drawn = crossings["text"][_name(level)], crossings["image"][_name(level)]
        lag[_name(level)] = None if told is None or drawn is None else drawn - told
    return Emergence(points=ordered, crossings=crossings, lag=lag)


def _name(level: float) -> str:
    return f"{100 * level:.0f}"


class Recorder:
    """Measures at the chosen updates and keeps what it measured on disk."""

    def __init__(self, bench: Bench, stage: Stage, curve: Curve, file: Path, *, seed: int) -> None:
        """See `Recorder.watch`. The model must not hold the stage's intervention yet.

        Args:
            bench: model, judge, items.
            stage: the intervention that is measured, and its facts.
            curve: of the recipe.
            file: where points lie; those that are there already are not measured again.
            seed: of drawings.
        """
        self._bench, self._curve, self._file, self._seed = bench, curve, file, seed
        self._points: dict[int, EmergencePoint] = {}
        if file.exists():
            found = [EmergencePoint(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
            self._points = {point.step: point for point in found}
        self.seconds = 0.0
        self._facts = fact_probes(stage.facts)
        self._written = stage.facts if stage.intervention.kind == "edit" else ()
        self._unit: Literal["updates", "facts"] = "facts" if self._written else "updates"
        self._before: Evaluation | None = None
        if self._written:
            near = [item for fact in stage.facts for item in fact.neighbours]
            self._before = evaluate(bench.umm, near, judge=bench.judge, seed=seed)
        subset = curve.items
        self._items = select(bench.items, categories=None, number=subset, limit=None) if subset else []

    def watch(self, updates: int) -> None:
        """What a training calls; measures where the recipe's curve has a point."""
        if not self._curve.due(updates) or updates in self._points:
            return
        began = time.monotonic()
        bench = self._bench
        self._points[updates] = measure(
            bench.umm,
            updates,
            facts=self._facts,
            items=self._items,
            judge=bench.judge,
            seed=self._seed,
            written=self._written[:updates],
            before=self._before,
        )
        rows = [point.model_dump(mode="json") for point in self._points.values()]
        write_text(self._file, json.dumps(rows))
        self.seconds += time.monotonic() - began

    def result(self) -> Emergence | None:
        """The curves; None where nothing was measured."""
        return emergence(list(self._points.values()), unit=self._unit) if self._points else None


def fact_probes(facts: Sequence[Fact]) -> list[Item]:
    """What the quick probe asks: each fact's edit and rewordings."""
    return [item for fact in facts for item in (fact.edit, *fact.reworded)]
