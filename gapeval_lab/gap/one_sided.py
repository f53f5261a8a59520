"""Reports of models and items that know one direction only: accuracies and their shifts, and no gap.

`state_report` and `state_shift` are what measured verdicts go through. Where items are scored in both
directions they give what score.py and shift.py give; what is scored in one direction alone stands beside it,
category by category, and is all there is for a model that only tells or only draws.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.gap.records import (
    DirectionShift,
    Estimate,
    GapReport,
    OneSided,
    OneSidedShift,
    ShiftReport,
)
from gapeval_lab.gap.resample import bootstrap, estimate, stream
from gapeval_lab.gap.samples import SIDES, Side
from gapeval_lab.gap.score import gap_report
from gapeval_lab.gap.shift import holm, mcnemar, shift_report
from gapeval_lab.gap.table import ItemVerdict, cells

Floats = NDArray[np.float64]
State = Sequence[ItemVerdict]


def state_report(items: State, *, seed: int, replicates: int = 10_000, official: bool = True) -> GapReport:
    """Everything about one state of one model; see `gap_report`.

    Raises:
        UserError: no item is scored in any direction.
    """
    table = cells(items)
    found = {
        name: _accuracy(name, side, chosen, seed=seed, replicates=replicates)
        for name, (side, chosen) in _one_sided([items]).items()
    }
    one_sided = {name: record for name, (record, _) in found.items()}
    if not found or any(one.n for one in table.values()):
        report = gap_report(table, seed=seed, replicates=replicates, official=official)
        return replace(report, one_sided=one_sided)
    means = {side: _mean([draws for one, draws in found.values() if one.direction == side]) for side in SIDES}
    return GapReport(
        categories={},
        gap=None,
        null_gap=None,
        null_p=None,
        understanding=means["understanding"],
        generation=means["generation"],
        official=None,
        official_note="no item is scored in both directions" if official else "not asked for",
        left_out={name: one.unscored for name, one in table.items()},
        one_sided=one_sided,
    )


def state_shift(before: State, after: State, *, seed: int, replicates: int = 10_000) -> ShiftReport:
    """After minus before; see `shift_report`.

    Raises:
        ValueError: the two states do not hold the same items.
        UserError: no item is scored in any direction in both states.
    """
    both = [
        all(one.understanding is not None and one.generation is not None for one in pair)
        for pair in zip(before, after, strict=True)
    ]
    found = {
        name: (side, *_moved(name, side, chosen, seed=seed, replicates=replicates))
        for name, (side, chosen) in _one_sided([before, after]).items()
    }
    one_sided: dict[str, OneSidedShift] = {}
    for side in SIDES:
        names = [name for name, (of, *_) in found.items() if of == side]
        corrected = holm([found[name][1].p for name in names])
        for name, p in zip(names, corrected, strict=True):
            _, shift, n, _ = found[name]
            one_sided[name] = OneSidedShift(side, n, replace(shift, p_holm=p))
    if not found or any(both):
        return replace(shift_report(before, after, seed=seed, replicates=replicates), one_sided=one_sided)
    means = {side: _mean([draws for of, *_, draws in found.values() if of == side]) for side in SIDES}
    return ShiftReport(
        categories={},
        gap=None,
        understanding=means["understanding"],
        generation=means["generation"],
        changed_items=sum(one.accuracy.gained + one.accuracy.lost for one in one_sided.values()),
        left_out={name: sum(one.category == name for one in before) for name in cells(before)},
        one_sided=one_sided,
    )


def _one_sided(states: Sequence[State]) -> dict[str, tuple[Side, list[list[bool | None]]]]:
    """Categories without an item scored in both directions in all states: the side, and verdicts per state.

    A category whose items are scored some on one side and some on the other stands there once per side.
    """
    found: dict[str, tuple[Side, list[list[bool | None]]]] = {}
    for name in dict.fromkeys(item.category for item in states[0]):
        places = [place for place, item in enumerate(states[0]) if item.category == name]
        sides: dict[Side, list[list[bool | None]]] = {
            side: [[getattr(state[place], side) for place in places] for state in states] for side in SIDES
        }
        scored = {
            side: np.array([[one is not None for one in state] for state in of]).all(axis=0)
            for side, of in sides.items()
        }
        if (scored["understanding"] & scored["generation"]).any():
            continue
        there = [side for side in SIDES if scored[side].any()]
        for side in there:
            found[name if len(there) == 1 else f"{name}/{side}"] = (side, sides[side])
    return found


def _accuracy(
    name: str, side: Side, states: list[list[bool | None]], *, seed: int, replicates: int
) -> tuple[OneSided, Floats]:
    """The record, and the accuracy with its draws after it, (replicates + 1,)."""
    right = [one for one in states[0] if one is not None]
    counts = np.array([sum(right), len(right) - sum(right)])
    draws = bootstrap(counts, rng=stream(seed, "one side", name), replicates=replicates)
    shares: Floats = np.concatenate([counts[:1], draws[:, 0]]) / len(right)
    record = OneSided(side, len(right), len(states[0]) - len(right), estimate(float(shares[0]), shares[1:]))
    return record, shares


def _moved(
    name: str, side: Side, states: list[list[bool | None]], *, seed: int, replicates: int
) -> tuple[DirectionShift, int, Floats]:
    """The shift (not corrected yet), the items, and the shift with its draws after it, (replicates + 1,)."""
    pairs = [pair for pair in zip(*states, strict=True) if None not in pair]
    gained = sum(not was and bool(now) for was, now in pairs)
    lost = sum(bool(was) and not now for was, now in pairs)
    counts = np.array([gained, lost, len(pairs) - gained - lost])
    draws = bootstrap(counts, rng=stream(seed, "one side shift", name), replicates=replicates)
    rows = np.concatenate([counts[None], draws])
    shifts: Floats = (rows[:, 0] - rows[:, 1]) / len(pairs)
    p = mcnemar(gained, lost)
    shift = DirectionShift(estimate(float(shifts[0]), shifts[1:]), gained, lost, p=p, p_holm=p)
    return shift, len(pairs), shifts


def _mean(parts: Sequence[Floats]) -> Estimate | None:
    if not parts:
        return None
    mean: Floats = np.mean(np.stack(parts), axis=0)
    return estimate(float(mean[0]), mean[1:])
