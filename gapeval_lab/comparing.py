"""Several runs side by side, and each of them against one: paired on the items that both have asked.

Knows summaries (verdicts, numbers, settings), no texts and no pictures. What cannot be compared gets a
reason instead of a number. Verdicts of different judges are never paired; of different models, only what
they are like in the end is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from gapeval_lab.comparing_recipes import Pooled, Setting, pooled, settings
from gapeval_lab.comparing_runs import Run, marks
from gapeval_lab.gap.contrast import contrast
from gapeval_lab.gap.one_sided import state_shift
from gapeval_lab.gap.records import Estimate, ShiftReport
from gapeval_lab.gap.shift import holm, mcnemar
from gapeval_lab.outcome import QUALITIES, Record
from gapeval_lab.summaries import Summary

MOST = 12  # runs that are compared pairwise unless all are asked for
REPLICATES = 4_000  # of a run's own numbers there are more; here many pairs are drawn
SIDES: tuple[Literal["understanding", "generation"], ...] = ("understanding", "generation")


class Cell(Record):
    """One category of one run: what moved, and what its placebo moved."""

    gap: Estimate | None
    understanding: Estimate | None
    generation: Estimate | None
    placebo: Estimate | None = None  # of the gap


class Row(Record):
    """One run.

    Attributes:
        number: its place, from 1.
        gap_before, gap_after, shift, told, drawn: as in its outcome.
        on_target, off_target: means over categories of the gap's shift.
        placebo_shift: the gap's, by the placebo.
        over_placebo: shift minus the placebo's shift, paired by item; `placebo_items` of them.
        quality: measure -> side -> share after the edit.
        marks: what a reader must know: failed edits, weights not restored.
    """

    number: int
    run_id: str
    mlflow_id: str
    name: str
    method: str
    direction: str
    target: str
    seed: int
    umm: str
    kind: str
    gap_before: Estimate | None
    gap_after: Estimate | None
    shift: Estimate | None
    told: Estimate | None
    drawn: Estimate | None
    on_target: float | None
    off_target: float | None
    placebo_shift: Estimate | None
    over_placebo: Estimate | None
    placebo_items: int
    quality: dict[str, dict[str, float]]
    transfer_ratio: Estimate | None
    transfer_note: str
    categories: dict[str, Cell]
    marks: list[str]


class Test(Record):
    """One direction on common items: the run's accuracy minus the reference's, and the exact test."""

    difference: Estimate | None
    gained: int  # right in the run, wrong in the reference
    lost: int
    p: float
    p_holm: float  # over the runs that are compared


class Pair(Record):
    """A run against the reference.

    Attributes:
        number: the run's; `reference` the other's.
        compared: "shifts" (of one model: shifts, too), "after" (the last states alone), or
            "nothing".
        reasons: why not more.
        items: asked of both; `scored`: of them, in both directions in both runs.
        gap: the run's last Gap Score minus the reference's.
        shift: the run's shift minus the reference's.
    """

    number: int
    reference: int
    compared: Literal["shifts", "after", "nothing"]
    reasons: list[str]
    items: int
    scored: int = 0
    gap: Estimate | None = None
    shift: Estimate | None = None
    understanding: Test | None = None
    generation: Test | None = None


class Comparison(Record):
    """Everything that `compare` tells.

    Attributes:
        left_out: runs that matched and are not in it.
        repeated: repetitions of the recipes' runs, which are not in it either.
    """

    reference: int
    rows: list[Row]
    pairs: list[Pair]
    pooled: list[Pooled]
    settings: list[Setting]
    left_out: int = 0
    repeated: int = 0


def compare(runs: Sequence[Run], *, reference: int = 0, left_out: int = 0, repeated: int = 0) -> Comparison:
    """Compare runs with one of them.

    Args:
        runs: in the order of the table.
        reference: the place of the one that the others are compared with.
        left_out: how many more there would be; `repeated`: and how many repetitions.
    """
    base = runs[reference].summary
    pairs = [
        pair(run.summary, base, number=number, reference=reference + 1)
        for number, run in enumerate(runs, start=1)
        if number != reference + 1
    ]
    return Comparison(
        reference=reference + 1,
        rows=[row(run, number) for number, run in enumerate(runs, start=1)],
        pairs=corrected(pairs),
        pooled=pooled(runs),
        settings=settings([run.summary for run in runs]),
        left_out=left_out,
        repeated=repeated,
    )


def row(run: Run, number: int) -> Row:
    """One run's own numbers."""
    of = run.summary
    before, after = of.states["before"].gap, of.states["after"].gap if "after" in of.states else None
    shift = of.shift
    moved = {name: one.gap.value for name, one in shift.categories.items()} if shift else {}
    on = [value for name, value in moved.items() if name in of.target_categories]
    off = [value for name, value in moved.items() if name not in of.target_categories]
    over, items = over_placebo(of)
    return Row(
        number=number,
        run_id=of.run_id,
        mlflow_id=run.entry.logged.run_id if run.entry.logged else "",
        name=run.label,
        method="+".join(of.methods) or "none",
        direction=of.direction if of.methods else "",
        target=", ".join(of.target_categories),
        seed=of.seed,
        umm=of.umm,
        kind=of.kind,
        gap_before=before.gap,
        gap_after=after.gap if after else None,
        shift=shift.gap if shift else None,
        told=shift.understanding if shift else None,
        drawn=shift.generation if shift else None,
        on_target=fmean(on) if on else None,
        off_target=fmean(off) if off else None,
        placebo_shift=of.placebo_shift.gap if of.placebo_shift else None,
        over_placebo=over,
        placebo_items=items,
        quality={
            name: {side: cell.after.value for side, cell in of.quality.get(name, {}).items()}
            for name in QUALITIES
        },
        transfer_ratio=of.transfer_ratio,
        transfer_note=of.transfer_note,
        categories=_cells(of),
        marks=marks(run.entry, of),
    )


def over_placebo(of: Summary) -> tuple[Estimate | None, int]:
    """The gap's shift minus the placebo's, on items scored before, after, and under the placebo."""
    if "after" not in of.states or "placebo" not in of.states:
        return None, 0
    before, after, placebo = (of.verdicts(phase) for phase in ("before", "after", "placebo"))
    found = contrast(
        [(1, after), (-1, before), (-1, placebo), (1, before)], seed=of.seed, replicates=REPLICATES
    )
    return found.gap, found.n


def pair(run: Summary, base: Summary, *, number: int, reference: int) -> Pair:
    """One run against the reference, before the correction over runs."""
    mine, known = run.keys(), set(base.keys())
    common = [key for key in mine if key in known]
    reasons, compared = _comparable(run, base, len(common))
    if compared == "nothing":
        return Pair(number=number, reference=reference, compared=compared, reasons=reasons, items=len(common))
    last, its = _last(run), _last(base)
    theirs, ours = base.verdicts(its, common), run.verdicts(last, common)
    if not _scored(theirs, ours):
        reasons.append("no item is scored in both")
        return Pair(
            number=number, reference=reference, compared="nothing", reasons=reasons, items=len(common)
        )
    found = state_shift(theirs, ours, seed=base.seed, replicates=REPLICATES)
    shift = None
    if compared == "shifts":
        first, second = run.verdicts("before", common), base.verdicts("before", common)
        differing = sum(one != other for one, other in zip(first, second, strict=True))
        if differing:
            reasons.append(
                f"asked otherwise before (seed or settings): {differing} items answered otherwise before the "
                "intervention, which the difference of shifts takes off"
            )
        whole = all(None not in item[1:] for item in first)
        if differing or not whole:
            states = [(1, ours), (-1, first), (-1, theirs), (1, second)]
            shift = contrast(states, seed=base.seed, replicates=REPLICATES).gap
        else:  # what was before cancels
            shift = found.gap
    return Pair(
        number=number,
        reference=reference,
        compared=compared,
        reasons=reasons,
        items=len(common),
        scored=sum(one.n for one in found.categories.values()),
        gap=found.gap,
        shift=shift,
        understanding=_test(found, "understanding"),
        generation=_test(found, "generation"),
    )


def corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """The same with Holm's correction over the runs, each direction by itself."""
    found = list(pairs)
    for side in SIDES:
        tested = [place for place, one in enumerate(found) if getattr(one, side) is not None]
        p_values = holm([getattr(found[place], side).p for place in tested])
        for place, p in zip(tested, p_values, strict=True):
            test = getattr(found[place], side).model_copy(update={"p_holm": p})
            found[place] = found[place].model_copy(update={side: test})
    return found


def _comparable(
    run: Summary, base: Summary, common: int
) -> tuple[list[str], Literal["shifts", "after", "nothing"]]:
    if _node(run, "judge") != _node(base, "judge"):
        judges = f"{_use(run, 'judge')} and {_use(base, 'judge')}"
        if _use(run, "judge") == _use(base, "judge"):
            judges = f"{_use(run, 'judge')}, set otherwise"
        return [f"judged by others ({judges}): verdicts of two judges cannot be paired"], "nothing"
    if not common:
        marks = (f"{one.data_hash[:8]}" for one in (run, base))
        benchmarks = f"{_use(run, 'benchmark')} and {_use(base, 'benchmark')}"
        return [f"no item in common ({benchmarks}, data {' and '.join(marks)})"], "nothing"
    reasons = []
    same_model = (run.umm, run.weights_fingerprint) == (base.umm, base.weights_fingerprint)
    if not same_model:
        models = f"{run.umm} and {base.umm}" if run.umm != base.umm else f"{run.umm} with other weights"
        reasons.append(f"other models ({models}): the last states are compared, not the shifts")
    if run.data_hash != base.data_hash:
        reasons.append(
            f"other items ({len(run.items)} and {len(base.items)}): compared on the {common} that are in both"
        )
    both = "after" in run.states and "after" in base.states
    if same_model and ("after" in run.states) != ("after" in base.states):
        reasons.append("one of the two changed nothing: its state as it is counts as its last")
    return reasons, "shifts" if both and same_model else "after"


def _scored(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return any(
        getattr(first, side) is not None and getattr(second, side) is not None
        for first, second in zip(one, other, strict=True)
        for side in SIDES
    )


def _test(found: ShiftReport, side: Literal["understanding", "generation"]) -> Test | None:
    """One direction over all categories."""
    parts = [getattr(one, side) for one in found.categories.values()]
    parts += [one.accuracy for one in found.one_sided.values() if one.direction == side]
    if not parts:
        return None
    gained, lost = sum(part.gained for part in parts), sum(part.lost for part in parts)
    p = mcnemar(gained, lost)
    return Test(difference=getattr(found, side), gained=gained, lost=lost, p=p, p_holm=p)


def _cells(of: Summary) -> dict[str, Cell]:
    placebo = of.placebo_shift.categories if of.placebo_shift else {}
    found = {}
    if of.shift is None:
        return {}
    for name, one in of.shift.categories.items():
        found[name] = Cell(
            gap=one.gap,
            understanding=one.understanding.shift,
            generation=one.generation.shift,
            placebo=placebo[name].gap if name in placebo else None,
        )
    for name, side in of.shift.one_sided.items():
        sides = {side.direction: side.accuracy.shift}
        found[name] = Cell(
            gap=None, understanding=sides.get("understanding"), generation=sides.get("generation")
        )
    return found


def _last(of: Summary) -> Literal["after", "before"]:
    return "after" if "after" in of.states else "before"


def _node(of: Summary, key: str) -> str:
    return json.dumps(of.recipe.get(key), sort_keys=True, default=str)


def _use(of: Summary, key: str) -> str:
    node = of.recipe.get(key)
    return str(node.get("use", "none")) if isinstance(node, dict) else "none"
