"""How many items it takes to tell a shift, and the smallest shift that so many items tell.

Two questions, as the reports ask them. McNemar's exact two-sided test of one direction: no simulation,
the sum over all numbers of items that can flip. The Gap Score: whether the interval of its paired shift
leaves out 0; by the delta method, and confirmed by drawing runs and bootstrapping each as a report does.

Notation, per category of n items: p, the four cells before; p', after; noise, the share of items that
flips each way in a direction without any effect; Q (4 x 4), the joint shares of cells before and after.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gapeval_lab.gap.resample import stream
from gapeval_lab.gap.score import BOTH_WEIGHT, NEITHER_WEIGHT, SMOOTHING, Floats, gap, signed_gap

MOST_ITEMS = 1_000_000
"""No answer asks for more items per category than this."""

LEAST_ITEMS = 10
"""Nor for fewer: a bootstrap of a handful of items says nothing."""

_UNDERSTOOD = np.array([1, 1, 0, 0])
_DRAWN = np.array([1, 0, 1, 0])
_TAIL = 1e-10  # of the number of flipped items that a sum leaves out
_WINDOW = 12  # next larger n that must reach the power, too: an exact test's goes up in teeth
_ATTEMPTS = 4  # at a number of items whose drawn power is right
_DRAWN_ERROR = 0.015
_RUNS, _RESAMPLES = 600, 20
_NEXT_TO = {"understanding": ((0, 2), (1, 3)), "generation": ((0, 1), (2, 3))}  # cells a flip apart


def mcnemar_power(n: int, *, gain: float, lose: float, alpha: float) -> float:
    """Chance that McNemar's exact test tells a change.

    Args:
        n: items.
        gain, lose: shares of items that become right, and wrong; at most 1 together.
        alpha: the p value to stay under.
    """
    flip = gain + lose
    if flip <= 0 or n < 1:
        return 0.0
    flip = min(flip, 1.0)
    most, least = stats.binom.isf(_TAIL, n, flip), stats.binom.ppf(_TAIL, n, flip)
    m = np.arange(int(least), int(most) + 1)
    # The test is symmetric: p is twice a tail, and this is the least number of gains with p <= alpha.
    needed = stats.binom.isf(alpha / 2, m, 0.5) + 1
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


def mcnemar_shift(n: int, *, noise: float, alpha: float, power: float, room: float = 1.0) -> float | None:
    """The smallest shift of one direction's accuracy that n items tell; None where there is none.

    Args:
        n: items.
        noise: share of items that flips each way beside it.
        alpha, power: of the test.
        room: the largest shift that the items allow.
    """
    low, high = 0.0, min(room, 1 - 2 * noise)

    def enough(shift: float) -> bool:
        return mcnemar_power(n, gain=noise + shift, lose=noise, alpha=alpha) >= power

    if high <= 0 or not enough(high):
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Design:
    """One category, before, and how a shift of its gap comes about.

    Attributes:
        cells: (4,) shares before; sum 1.
        noise: direction -> share of its items that flips each way, without an effect. The flips leave
            the cells as they are; where these have no room for so many, there are fewer.
        moves: (from, to): the column that loses items by the effect, and the one that gets them.
        n: items that the category is taken to have where the smoothing of the log odds needs a number.
    """

    cells: tuple[float, float, float, float]
    noise: tuple[float, float]
    moves: tuple[int, int]
    n: int

    @property
    def shares(self) -> Floats:
        """`cells` as an array."""
        return np.array(self.cells)

    def widest(self) -> float:
        """The largest shift of the gap that these moves can make, by size."""
        return float(np.abs(self._sizes()[1]).max())

    def joint(self, shift: float) -> Floats | None:
        """Q (4, 4) where the gap shifts by this size; None where these moves cannot make it so."""
        moved, sizes = self._sizes()
        reached = np.flatnonzero(np.abs(sizes) >= shift)
        if not len(reached):
            return None
        i = int(reached[0])
        if i == 0:
            return self._with(0.0)
        a, b = abs(sizes[i - 1]), abs(sizes[i])
        return self._with(float(moved[i - 1] + (moved[i] - moved[i - 1]) * (shift - a) / (b - a)))

    def _sizes(self) -> tuple[Floats, Floats]:
        """Shares moved, and the shift of the gap that each makes."""
        source, sink = self.moves
        moved = np.linspace(0.0, self.cells[source], 2001)
        after = np.tile(self.shares, (len(moved), 1))
        after[:, source] -= moved
        after[:, sink] += moved
        return moved, gap(self.n * after) - float(gap(self.n * self.shares))

    def _with(self, moved: float) -> Floats:
        """Q where this share of all items is moved by the effect, after the flips of noise."""
        p = self.shares
        flips = np.zeros((4, 4))
        for pairs, noise in zip(_NEXT_TO.values(), self.noise, strict=True):
            weights = np.array([math.sqrt(p[i] * p[j]) for i, j in pairs])
            if weights.sum() > 0:
                for (i, j), weight in zip(pairs, weights / weights.sum(), strict=True):
                    flips[i, j] = flips[j, i] = noise * weight
        out = flips.sum(axis=1)
        flips *= min([1.0, *(p[out > 0] / out[out > 0])])
        q = flips + np.diag(p - flips.sum(axis=1))
        source, sink = self.moves
        if moved:
            taken = q[:, source] * (moved / p[source])
            q[:, source] -= taken
            q[:, sink] += taken
        return np.maximum(q, 0.0)


def shift_variance(joint: Floats, *, n: float) -> float:
    """n times the variance of the paired shift of the gap over n items, by the delta method.

    Args:
        joint: Q (4, 4). n: items, which the smoothing of the log odds depends on.
    """
    return float(_squared_errors(n * joint[None])[0] * n)


def gap_items(designs: Sequence[Design], shift: float, *, alpha: float, power: float) -> int | None:
    """Items per category that tell a shift of the mean gap, every category shifting alike.

    The delta method's number, corrected until drawn runs have the power. None where the moves cannot make
    the shift, or more than `MOST_ITEMS` would be needed.
    """
    joints = _joints(designs, shift)
    if joints is None:
        return None
    factor = (_quantile(alpha) + float(stats.norm.ppf(power))) ** 2
    variance = sum(shift_variance(q, n=d.n) for q, d in zip(joints, designs, strict=True)) / len(joints) ** 2
    n = max(LEAST_ITEMS, math.ceil(factor * variance / shift**2))
    low, high = LEAST_ITEMS - 1, 0  # too few, and enough, as far as is known; 0 is not known
    for _ in range(_ATTEMPTS):
        if n > MOST_ITEMS:
            return None
        reached = _drawn_power(joints, n, alpha=alpha)
        low, high = (low, n) if reached >= power - _DRAWN_ERROR else (n, high)
        if abs(reached - power) <= _DRAWN_ERROR or (high and high <= 1.04 * low + 1):
            break
        n = items_for(n, reached, power=power, alpha=alpha)
        if not low < n < (high or math.inf):
            n = round(math.sqrt(low * (high or 4 * low)))
    return high or n


def items_for(n: int, reached: float, *, power: float, alpha: float) -> int:
    """Items that should have a power, where n items reached another; as errors go with 1 / sqrt(n)."""
    wanted, had = (_quantile(alpha) + _normal(share) for share in (power, reached))
    return math.ceil(n * (wanted / had) ** 2)


def gap_shift(designs: Sequence[Design], n: Sequence[int], *, alpha: float, power: float) -> float | None:
    """The smallest shift of the mean gap that n items in each category tell, by the delta method.

    None where these moves cannot make one that is large enough.
    """
    need = _quantile(alpha) + float(stats.norm.ppf(power))

    def enough(shift: float) -> bool:
        joints = _joints(designs, shift)
        if joints is None:
            return False
        errors = [shift_variance(q, n=m) / m for q, m in zip(joints, n, strict=True)]
        return need * math.sqrt(sum(errors)) / len(errors) <= shift

    return _least(enough, min(design.widest() for design in designs))


def _least(enough: Callable[[float], bool], most: float) -> float | None:
    """The smallest shift that is enough, to 0.0005: on a grid first, since more is not always easier."""
    if most <= 0:
        return None
    grid = np.linspace(0.0, most, 41)[1:]
    high = next((float(x) for x in grid if enough(float(x))), None)
    if high is None:
        return None
    low = high - float(grid[0])
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def bootstrapped_power(
    designs: Sequence[Design],
    shift: float,
    n: Sequence[int],
    *,
    alpha: float,
    seed: int,
    runs: int,
    replicates: int,
) -> float | None:
    """Share of drawn runs whose bootstrap interval of the mean shift leaves out 0, as a report tells it.

    Args:
        designs: one per category. shift: of every category. n: items of each.
        alpha: 1 minus the interval's level.
        seed: of all draws.
        runs, replicates: how many are drawn, and resampled from each.

    Returns:
        None where the moves cannot make the shift.
    """
    joints = _joints(designs, shift)
    if joints is None:
        return None
    observed, draws = np.zeros(runs), np.zeros((replicates, runs))
    for i, (joint, items) in enumerate(zip(joints, n, strict=True)):
        rng = stream(seed, "power", str(i))
        tables = rng.multinomial(items, _shares(joint), size=runs)
        again = rng.multinomial(items, tables / items, size=(replicates, runs))
        observed += _shifts(tables)
        draws += _shifts(again)
    low, high = np.quantile(draws, [alpha / 2, 1 - alpha / 2], axis=0)
    told = (np.minimum(low, observed) > 0) | (np.maximum(high, observed) < 0)
    return float(told.mean())


def _joints(designs: Sequence[Design], shift: float) -> list[Floats] | None:
    found = [joint for design in designs if (joint := design.joint(shift)) is not None]
    return found if len(found) == len(designs) else None


def _drawn_power(joints: Sequence[Floats], n: int, *, alpha: float) -> float:
    """Share of drawn runs whose bootstrap interval tells the shift, from few resamples of each.

    Few are enough for the middle and the width of an interval. The middle matters: an absolute value
    grows under resampling where it is near 0, which pulls the interval of a closing gap towards 0.
    """
    shape = (_RESAMPLES, _RUNS)
    observed, draws = np.zeros(_RUNS), np.zeros(shape)
    for i, joint in enumerate(joints):
        rng = stream(0, "items", str(i))
        tables = rng.multinomial(n, _shares(joint), size=_RUNS)
        observed += _shifts(tables)
        draws += _shifts(rng.multinomial(n, tables / n, size=shape))
    middle, width = draws.mean(axis=0), _quantile(alpha) * draws.std(axis=0, ddof=1)
    told = (np.minimum(middle - width, observed) > 0) | (np.maximum(middle + width, observed) < 0)
    return float(told.mean())


def _shares(joint: Floats) -> Floats:
    flat: Floats = joint.ravel() / joint.sum()
    return flat


def _shifts(tables: NDArray[np.int64]) -> Floats:
    """The gap's shift of (..., 16) counts."""
    square = tables.reshape(*tables.shape[:-1], 4, 4)
    result: Floats = gap(square.sum(axis=-2)) - gap(square.sum(axis=-1))
    return result


def _squared_errors(tables: Floats) -> Floats:
    """Squared standard error of the gap's shift, by the delta method: (B, 4, 4) counts -> (B,)."""
    influence = _gradient(tables.sum(axis=1))[:, None, :] - _gradient(tables.sum(axis=2))[:, :, None]
    n = tables.sum(axis=(1, 2))
    mean = (tables * influence).sum(axis=(1, 2)) / n
    result: Floats = (tables * (influence - mean[:, None, None]) ** 2).sum(axis=(1, 2))
    return result


def _gradient(counts: Floats) -> Floats:
    """Derivative of the gap by each count: (B, 4) -> (B, 4); see `score.gap`."""
    n = counts.sum(axis=1, keepdims=True)
    d = signed_gap(counts)[:, None]
    weights = np.array([-BOTH_WEIGHT, 0.0, 0.0, NEITHER_WEIGHT])
    exponent = (counts * weights).sum(axis=1, keepdims=True) / n
    scale = np.exp(exponent)
    slope = np.zeros_like(counts)
    for right, sign in ((_UNDERSTOOD, 1), (_DRAWN, -1)):
        total = (counts * right).sum(axis=1, keepdims=True)
        slope += sign * (right / (total + SMOOTHING) - (1 - right) / (n - total + SMOOTHING))
    x = np.abs(d) * scale
    result: Floats = (np.sign(d) * scale * slope + x * (weights - exponent) / n) / (1 + x) ** 2
    return result


def _quantile(alpha: float) -> float:
    return float(stats.norm.isf(alpha / 2))


def _normal(share: float) -> float:
    """The quantile of a drawn power, kept off the ends."""
    return float(stats.norm.ppf(min(max(share, 0.02), 0.98)))
