"""How many items it takes to tell a shift, and the smallest shift that so many items tell.

Two questions, as the reports ask them. McNemar's exact two-sided test of one direction: no simulation,
the sum over all numbers of items that can flip. The Gap Score: whether the interval of its paired shift
lies on the right side of 0; by drawing runs and bootstrapping each as a report does, since the gap is an
absolute value: near 0 chance alone makes it larger, and no formula of errors knows that.

Notation as in `design.py`; n, the items of a category.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gapeval_lab.gap.design import Together, Way
from gapeval_lab.gap.resample import stream
from gapeval_lab.gap.score import BOTH_WEIGHT, NEITHER_WEIGHT, SMOOTHING, Floats, gap, signed_gap

MOST_ITEMS = 1_000_000
"""No answer asks for more items per category than this."""

LEAST_ITEMS = 10
"""Nor for fewer: a bootstrap of a handful of items says nothing."""

_UNDERSTOOD = np.array([1, 1, 0, 0])
_DRAWN = np.array([1, 0, 1, 0])
_CELL_BEFORE, _CELL_AFTER = np.repeat(np.arange(4), 4), np.tile(np.arange(4), 4)  # of 16 pairs of cells
_BEFORE_AND_AFTER = np.concatenate([np.eye(4)[_CELL_BEFORE], np.eye(4)[_CELL_AFTER]], axis=1)  # (16, 8)
_TAIL = 1e-10  # of the number of flipped items that a sum leaves out
_WINDOW = 12  # next larger n that must reach the power, too: an exact test's goes up in teeth
_TRIES = 40  # numbers of items looked at
_LATER = (1.25, 2.0)  # times the items at which the power must not have fallen again
_FALLEN = 0.1  # by how much: more than what it is computed with may be off
_STEPS = 8  # shifts looked at first, since a larger one is not always easier to tell


@dataclass(frozen=True)
class Budget:
    """How much is drawn for one power.

    Attributes:
        runs: drawn runs. tails: resamples of each, in expected draws outside its interval.
    """

    runs: int
    tails: int

    def resamples(self, alpha: float) -> int:
        """Of each run; more for a wider interval."""
        return math.ceil(self.tails / alpha)

    def error(self, share: float) -> float:
        """Half the 95 % interval of a drawn share."""
        return 1.96 * math.sqrt(max(share * (1 - share), 0.02) / self.runs)


QUICK, CAREFUL = Budget(400, 4), Budget(1200, 6)
NEAR = Budget(400, 4)


Needs = Callable[[NDArray[np.int64], float], Floats]
"""(items that flipped, alpha) -> the least of them that must be gains, or losses, to tell a change."""


def exact_test(flipped: NDArray[np.int64], alpha: float) -> Floats:
    """What McNemar's exact two-sided test needs: it is symmetric, and p is twice a tail."""
    needed: Floats = stats.binom.isf(alpha / 2, flipped, 0.5) + 1
    return needed


def interval(flipped: NDArray[np.int64], alpha: float) -> Floats:
    """What a bootstrap interval of gains less losses needs to leave out 0.

    Counts of flips are resampled as Poisson's, whose square roots (of 3/8 more) have a variance of 1/4.
    """
    apart = _quantile(alpha) / math.sqrt(2)
    room = 2 * flipped + 1.5 - apart**2
    gains = ((apart + np.sqrt(np.maximum(room, 0.0))) / 2) ** 2 - 0.375
    needed: Floats = np.where(room > 0, np.floor(gains) + 1, flipped + 1)
    return needed


def mcnemar_power(n: int, *, gain: float, lose: float, alpha: float, needs: Needs = exact_test) -> float:
    """Chance that McNemar's exact test, or another rule, tells a change.

    Args:
        n: items.
        gain, lose: shares of items that become right, and wrong; at most 1 together.
        alpha: the p value to stay under.
        needs: the rule.
    """
    flip = gain + lose
    if flip <= 0 or n < 1:
        return 0.0
    flip = min(flip, 1.0)
    most, least = stats.binom.isf(_TAIL, n, flip), stats.binom.ppf(_TAIL, n, flip)
    m = np.arange(int(least), int(most) + 1, dtype=np.int64)
    needed = needs(m, alpha)
    share = gain / flip
    told = stats.binom.sf(needed - 1, m, share) + stats.binom.cdf(m - needed, m, share)
    return float((stats.binom.pmf(m, n, flip) * told).sum())


def mcnemar_items(shift: float, *, noise: float, alpha: float, power: float) -> int | None:
    """Items that tell a shift of one direction's accuracy; None where more than `MOST_ITEMS` would.

    Args:
        shift: size of the shift, above 0.
        noise: share of items that flips each way beside it.
        alpha, power: of the test.
    """
    if shift + 2 * noise > 1:
        return None

    def enough(n: int) -> bool:
        return mcnemar_power(n, gain=noise + shift, lose=noise, alpha=alpha) >= power

    high = 8
    while not enough(high):
        high *= 2
        if high > MOST_ITEMS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    last = high - 1
    while (later := next((n for n in range(last + _WINDOW, last, -1) if not enough(n)), None)) is not None:
        last = later
    return last + 1


def mcnemar_shift(
    n: int, *, noise: float, alpha: float, power: float, room: float = 1.0, needs: Needs = exact_test
) -> float | None:
    """The smallest shift of one direction's accuracy that n items tell; None where there is none.

    Args:
        n: items.
        noise: share of items that flips each way beside it.
        alpha, power: of the test.
        room: the largest shift that the items allow.
        needs: the rule.
    """
    low, high = 0.0, min(room, 1 - 2 * noise)

    def enough(shift: float) -> bool:
        return mcnemar_power(n, gain=noise + shift, lose=noise, alpha=alpha, needs=needs) >= power

    if high <= 0 or not enough(high):
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class GapItems:
    """Items per category, and the power that drawn runs of so many have, give or take `error`."""

    n: int
    power: float
    error: float


def gap_items(
    joints: Sequence[Floats], *, way: Way, alpha: float, power: float, budget: Budget
) -> GapItems | None:
    """Items per category that tell the shift of the mean gap between the states of `joints`.

    So many, to two digits, that the drawn power is at least the asked one and does not fall below it with
    more items. None where more than `MOST_ITEMS` would be needed.

    Args:
        joints: Q of each category, before and after a shift above 0.
        way: where the shift goes.
        alpha: 1 minus the interval's level. power: asked for.
        budget: of each drawn power.
    """
    k = len(joints)

    def near(n: int) -> float:
        return near_power(joints, [n] * k, way=way, alpha=alpha)

    def drawn(n: int) -> float:
        return drawn_power(joints, [n] * k, way=way, alpha=alpha, budget=budget)

    about = _fewest(near, near, power=power, alpha=alpha, error=NEAR.error(power), start=100)
    if about is None:
        return None
    error = budget.error(power)
    found = _fewest(drawn, near, power=power, alpha=alpha, error=error, start=about[0])
    return None if found is None else GapItems(*found, error)


def _fewest(
    power_of: Callable[[int], float],
    later_of: Callable[[int], float],
    *,
    power: float,
    alpha: float,
    error: float,
    start: int,
) -> tuple[int, float] | None:
    """The fewest items found that have the power, and theirs; `later_of` is asked of more items."""
    known: dict[int, float] = {}
    n, low, high = start, LEAST_ITEMS - 1, 0  # too few, and enough, as far as is known; 0 is not known
    for _ in range(_TRIES):
        if n > MOST_ITEMS:
            return None
        if n not in known:
            known[n] = power_of(n)
        low, high = (low, n) if known[n] >= power else (n, high)
        if high and (known[high] <= power + error / 2 or _rounded(low + 1) >= high):
            weak = [m for m in (_rounded(f * high) for f in _LATER) if later_of(m) < power - _FALLEN]
            if not weak:
                return high, known[high]
            low, high = max(weak), 0
        n = _rounded(min(8 * n, max(n / 8, _items_for(n, known[n], power=power, alpha=alpha))))
        if not low < n < (high or math.inf):
            n = _rounded(math.sqrt(low * high) if high else 1.1 * low)
        if not low < n < (high or math.inf):
            n = _rounded(low + 1)
    return (high, known[high]) if high else None


def gap_shift(found: Together, n: Sequence[int], *, alpha: float, power: float) -> float | None:
    """The smallest shift of the mean gap that n items in each category tell, to 0.001.

    None where none is told. A gap that closes wholly may be told less well than one that closes by half.
    """

    def enough(shift: float) -> bool:
        joints = found.joints(shift)
        if joints is None:
            return False
        return near_power(joints, n, way=found.way, alpha=alpha, least=power) >= power

    grid = [found.widest * step / _STEPS for step in range(1, _STEPS + 1)]
    high = next((shift for shift in grid if enough(shift)), None) if found.widest > 0 else None
    if high is None:
        return None
    low = high - grid[0]
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def near_power(
    joints: Sequence[Floats], n: Sequence[int], *, way: Way, alpha: float, least: float = 0.0
) -> float:
    """`drawn_power` at a tenth of its time.

    The runs are drawn; the signed gap and the exponent of both states of each are resampled as if normal,
    with the errors that the delta method gives them. The absolute value is taken of these draws, so what it
    does near 0 is kept.

    Args:
        joints, n, way, alpha: as there.
        least: where the power is below this, any number below it may come instead, in less time.
    """
    observed = np.zeros(NEAR.runs)
    categories = []
    for i, (joint, items) in enumerate(zip(joints, n, strict=True)):
        rng = stream(0, "near", str(i))
        tables = rng.multinomial(items, joint.ravel() / joint.sum(), size=NEAR.runs)
        values, influence = _states((tables @ _BEFORE_AND_AFTER).reshape(NEAR.runs, 2, 4))
        observed += _moved(values)
        categories.append((rng, tables, items, values, influence))
    # No run whose own shift lies on the other side of 0 is told.
    most = float(((observed < 0) if way == "closes" else (observed > 0)).mean())
    if most < least:
        return most
    draws = np.zeros((NEAR.resamples(alpha), NEAR.runs))
    for rng, tables, items, values, influence in categories:
        # What an item of each pair of cells does to the (runs, 4) values, and its mean taken away.
        each = np.concatenate([influence[:, 0, _CELL_BEFORE], influence[:, 1, _CELL_AFTER]], axis=2)
        each = each - np.einsum("rc,rcv->rv", tables / items, each)[:, None]
        size, axes = np.linalg.eigh(
            np.einsum("rc,rcv,rcw->rvw", tables / items**2, each, each, optimize=True)
        )
        errors = axes * np.sqrt(np.maximum(size, 0.0))[:, None]
        again = values + np.einsum(
            "rvw,brw->brv", errors, rng.standard_normal((*draws.shape, 4)), optimize=True
        )
        draws += _moved(again)
    return _told(observed, draws, way=way, alpha=alpha)


def _states(counts: Floats) -> tuple[Floats, Floats]:
    """Signed gap and exponent of (runs, 2, 4) counts, before and after; and n times their derivatives.

    Returns:
        (runs, 4) values, and (runs, 2, 4, 2) what one item of each cell does to the two of its state.
    """
    n, weights = counts.sum(axis=-1), np.array([-BOTH_WEIGHT, 0.0, 0.0, NEITHER_WEIGHT])
    values = np.stack([signed_gap(counts), counts @ weights / n], axis=-1)
    influence = np.zeros((*counts.shape, 2))
    influence[..., 1] = weights
    for right, sign in ((_UNDERSTOOD, 1), (_DRAWN, -1)):
        total = (counts @ right)[..., None]
        wrong = n[..., None] - total
        influence[..., 0] += (
            sign * n[..., None] * (right / (total + SMOOTHING) - (1 - right) / (wrong + SMOOTHING))
        )
    return values.reshape(len(counts), 4), influence


def _moved(states: Floats) -> Floats:
    """The gap's shift: (..., 4) of signed gap and exponent, before and after."""
    before, after = (np.abs(states[..., i]) * np.exp(states[..., i + 1]) for i in (0, 2))
    result: Floats = after / (1 + after) - before / (1 + before)
    return result


def _told(observed: Floats, draws: Floats, *, way: Way, alpha: float) -> float:
    """Share of runs whose interval lies on the right side of 0, widened to its value as a report's is."""
    end = 1 - alpha / 2 if way == "closes" else alpha / 2
    # Of few resamples: the position at which the share beyond is right in expectation.
    limit = np.quantile(draws, end, axis=0, method="weibull")
    told = (np.maximum(limit, observed) < 0) if way == "closes" else (np.minimum(limit, observed) > 0)
    return float(told.mean())


def drawn_power(
    joints: Sequence[Floats],
    n: Sequence[int],
    *,
    way: Way,
    alpha: float,
    budget: Budget,
    seed: int = 0,
) -> float:
    """Share of drawn runs whose bootstrap interval of the mean shift says where it went, as a report does.

    Args:
        joints: Q of each category. n: items of each.
        way: where the shift goes: an interval on the other side of 0 tells nothing.
        alpha: 1 minus the interval's level.
        budget: how much is drawn. seed: of all draws.
    """
    resamples = budget.resamples(alpha)
    observed, draws = np.zeros(budget.runs), np.zeros((resamples, budget.runs))
    for i, (joint, items) in enumerate(zip(joints, n, strict=True)):
        rng, flat = stream(seed, "power", str(i)), joint.ravel()
        kept = np.flatnonzero(flat)  # most pairs of cells are empty
        tables = rng.multinomial(items, flat[kept] / flat[kept].sum(), size=budget.runs)
        again = rng.multinomial(items, tables / items, size=draws.shape)
        observed += _shifts(tables, kept)
        draws += _shifts(again, kept)
    return _told(observed, draws, way=way, alpha=alpha)


def _rounded(n: float) -> int:
    """Up to two digits."""
    whole = max(LEAST_ITEMS, math.ceil(n - 1e-9))
    unit: int = 10 ** (len(str(whole)) - 2)
    return -(-whole // unit) * unit


def _shifts(tables: NDArray[np.int64], kept: NDArray[np.int64]) -> Floats:
    """The gap's shift of (..., len(kept)) counts of pairs of cells."""
    states = (tables @ _BEFORE_AND_AFTER[kept]).reshape(*tables.shape[:-1], 2, 4)
    gaps = gap(states)
    result: Floats = gaps[..., 1] - gaps[..., 0]
    return result


def _items_for(n: int, reached: float, *, power: float, alpha: float) -> int:
    """Items that should have a power, where n items reached another; as errors go with 1 / sqrt(n)."""
    wanted, had = (_quantile(alpha) + _normal(share) for share in (power, reached))
    return math.ceil(n * (wanted / max(had, 0.2)) ** 2)


def _quantile(alpha: float) -> float:
    return float(stats.norm.isf(alpha / 2))


def _normal(share: float) -> float:
    """The quantile of a drawn power, kept off the ends."""
    return float(stats.norm.ppf(min(max(share, 0.02), 0.98)))
