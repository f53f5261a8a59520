"""What changed between two states of one model, on the same items.

Knows verdicts before and after; knows no intervention. Everything is paired: an item's two
directions and two states are resampled together, and an item counts only if it was scored in both
directions in both states.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.errors import UserError
from gapeval_lab.gap.records import CategoryShift, DirectionShift, Estimate, ShiftReport
from gapeval_lab.gap.resample import bootstrap, estimate, stream
from gapeval_lab.gap.score import Floats, accuracies, gap, signed_gap
from gapeval_lab.gap.table import ItemVerdict, encode

# Which of both, und_only, gen_only, neither count as right, per direction.
_RIGHT = {
    "understanding": np.array([True, True, False, False]),
    "generation": np.array([True, False, True, False]),
}


def shift_report(
    before: Sequence[ItemVerdict],
    after: Sequence[ItemVerdict],
    *,
    seed: int,
    replicates: int = 10_000,
    categories: Sequence[str] | None = None,
) -> ShiftReport:
    """After minus before, with paired intervals (bootstrap, 95 %) and exact tests.

    Where nothing changed, every shift is exactly 0.0 and so are both ends of its interval.

    Args:
        before, after: verdicts of the same items in the same order.
        seed: all randomness comes from it.
        replicates: bootstrap replicates.
        categories: their order in the report, and all that may occur; by default those that occur.

    Raises:
        ValueError: the two states do not hold the same items.
        UserError: no item is scored in both directions in both states, or a category is unknown.
    """
    if [item.category for item in before] != [item.category for item in after]:
        raise ValueError(
            f"before ({len(before)} items) and after ({len(after)} items) must be the same, in one order"
        )
    tables = _transitions(before, after, categories=categories)
    kept = {name: table for name, table in tables.items() if table.sum()}
    if not kept:
        raise UserError(
            f"verdicts: none of {len(before)} items is scored in both directions, before and after; "
            "a shift needs a model that answers and draws, and a judge that scores both"
        )
    parts = {name: _resample(name, table, seed=seed, replicates=replicates) for name, table in kept.items()}
    tests = {direction: _tests(list(kept.values()), right) for direction, right in _RIGHT.items()}
    records = {
        name: CategoryShift(
            n=int(kept[name].sum()),
            gap=part.gap.estimate,
            signed_gap=part.signed_gap.estimate,
            understanding=tests["understanding"][i].shifted(part.understanding.estimate),
            generation=tests["generation"][i].shifted(part.generation.estimate),
            transitions=kept[name].tolist(),
        )
        for i, (name, part) in enumerate(parts.items())
    }
    return ShiftReport(
        categories=records,
        gap=_mean([part.gap for part in parts.values()]),
        understanding=_mean([part.understanding for part in parts.values()]),
        generation=_mean([part.generation for part in parts.values()]),
        changed_items=sum(int(table.sum() - np.trace(table)) for table in kept.values()),
        left_out={name: _size(before, name) for name in tables if name not in kept},
    )


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: p of the split of the changed items if each way were as likely."""
    from scipy import stats  # takes most of a second to import

    changed = gained + lost
    return float(stats.binomtest(gained, changed, 0.5).pvalue) if changed else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p values, in the given order."""
    m = len(p_values)
    adjusted = [0.0] * m
    highest = 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda j: p_values[j])):
        highest = max(highest, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def resampled(
    name: str, table: NDArray[np.int64], *, seed: int, replicates: int = 10_000
) -> dict[str, Floats]:
    """The bootstrap draws behind a category's report: gap, understanding and generation, (replicates,).

    Args:
        name: of the category; its draws depend on it.
        table: (4, 4) counts of items by cell before and after.
        seed, replicates: those of the report.
    """
    part = _resample(name, table, seed=seed, replicates=replicates)
    return {
        "gap": part.gap.draws,
        "understanding": part.understanding.draws,
        "generation": part.generation.draws,
    }


@dataclass(frozen=True)
class _Draws:
    """A shift with its bootstrap draws, (replicates,)."""

    value: float
    draws: Floats

    @property
    def estimate(self) -> Estimate:
        return estimate(self.value, self.draws)


@dataclass(frozen=True)
class _Part:
    """One category's shifts."""

    gap: _Draws
    signed_gap: _Draws
    understanding: _Draws
    generation: _Draws


@dataclass(frozen=True)
class _Test:
    """One direction of one category: changed items and their test."""

    gained: int
    lost: int
    p: float
    p_holm: float

    def shifted(self, shift: Estimate) -> DirectionShift:
        return DirectionShift(shift=shift, gained=self.gained, lost=self.lost, p=self.p, p_holm=self.p_holm)


def _transitions(
    before: Sequence[ItemVerdict], after: Sequence[ItemVerdict], *, categories: Sequence[str] | None
) -> dict[str, NDArray[np.int64]]:
    """Per category the (4, 4) counts of items by cell before (rows) and after (columns)."""
    codes_after = encode(after, categories=categories)
    tables = {}
    for name, first in encode(before, categories=categories).items():
        second = codes_after[name]
        scored = (first >= 0) & (second >= 0)
        tables[name] = np.bincount(4 * first[scored] + second[scored], minlength=16).reshape(4, 4)
    return tables


def _resample(name: str, table: NDArray[np.int64], *, seed: int, replicates: int) -> _Part:
    draws = bootstrap(table.ravel(), rng=stream(seed, "shift", name), replicates=replicates)
    # Row 0 is what was observed, so that value and draws go through the same arithmetic.
    joint = np.concatenate([table.reshape(1, 4, 4), draws.reshape(-1, 4, 4)])
    first, second = joint.sum(axis=2), joint.sum(axis=1)
    und_before, gen_before = accuracies(first)
    und_after, gen_after = accuracies(second)
    return _Part(
        gap=_split(gap(second) - gap(first)),
        signed_gap=_split(signed_gap(second) - signed_gap(first)),
        understanding=_split(und_after - und_before),
        generation=_split(gen_after - gen_before),
    )


def _split(values: Floats) -> _Draws:
    return _Draws(float(values[0]), values[1:])


def _tests(tables: Sequence[NDArray[np.int64]], right: NDArray[np.bool_]) -> list[_Test]:
    """One direction's tests, corrected over the categories."""
    gained = [int(table[~right][:, right].sum()) for table in tables]
    lost = [int(table[right][:, ~right].sum()) for table in tables]
    p = [mcnemar(g, lo) for g, lo in zip(gained, lost, strict=True)]
    return [_Test(*row) for row in zip(gained, lost, p, holm(p), strict=True)]


def _mean(parts: Sequence[_Draws]) -> Estimate:
    value = float(np.mean([part.value for part in parts]))
    return estimate(value, np.mean([part.draws for part in parts], axis=0))


def _size(items: Sequence[ItemVerdict], name: str) -> int:
    return sum(item.category == name for item in items)
