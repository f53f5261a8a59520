"""Ranks of many runs on the same items, and which of them the data cannot tell apart.

Knows verdicts as codes, and numbers with intervals; knows no run. Draws are paired: one resampling of the
items (within categories) serves every run and both of its states, so that what is common to two runs cancels
in their difference. The standard error of a difference comes from the draws' covariance. A run is told apart
from others by its differences in standard errors, Holm-corrected over the others: so its range holds its
true rank in at least 95 % of samples, however many runs there are and however near to each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.gap.resample import stream
from gapeval_lab.gap.score import Floats, accuracies, gap

Codes = NDArray[np.int8]
ALPHA = 0.05
NORMAL = 1.959964  # half of a 95 % interval, in standard errors
REPLICATES = 1000

WHATS: dict[str, Callable[[NDArray[np.float64]], Floats]] = {
    "gap": gap,
    "understanding": lambda cells: accuracies(cells)[0],
    "generation": lambda cells: accuracies(cells)[1],
}


def code(told: str, drawn: str) -> Codes:
    """Verdicts written '1', '0' and '-' as cells 0 to 3 (both, und_only, gen_only, neither), or -1."""
    one, two = (np.frombuffer(side.encode(), dtype=np.uint8) for side in (told, drawn))
    cells = (one != ord("1")).astype(np.int8) * 2 + (two != ord("1"))
    return np.where((one == ord("-")) | (two == ord("-")), -1, cells).astype(np.int8)


@dataclass(frozen=True)
class Draws:
    """Bootstrap draws of one number per category and run: (categories, replicates + 1, runs), value first.

    nan where a run has no scored item in a category.
    """

    values: Floats

    def mean(self, chosen: NDArray[np.bool_]) -> Floats:
        """Means over each run's categories, (replicates + 1, runs); `chosen` is (runs, categories).

        nan for a run without any.
        """
        known = chosen.T[:, None, :] & ~np.isnan(self.values[:, :1, :])
        with np.errstate(invalid="ignore"):
            found: Floats = np.where(known, self.values, 0.0).sum(axis=0) / known.sum(axis=0)
        return found


def draw(
    states: Sequence[tuple[int, NDArray[np.int8]]],
    *,
    of: Sequence[int],
    categories: Sequence[str],
    what: str,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Draws:
    """Resample items once, for all runs.

    Args:
        states: weights and codes, (runs, items): [(1, after), (-1, before)] draws the shift.
        of: category of each item, as a place in `categories`.
        categories: names.
        what: of WHATS.
        seed, replicates: of the bootstrap.
    """
    places = np.asarray(of)
    made = []
    for place, name in enumerate(categories):
        chosen = places == place
        n = int(chosen.sum())
        drawn = stream(seed, "ranks", name).multinomial(n, np.full(n, 1 / n), size=replicates) if n else None
        made.append(_of_category([(weight, codes[:, chosen]) for weight, codes in states], drawn, what))
    return Draws(np.stack(made))


def _of_category(
    states: Sequence[tuple[int, NDArray[np.int8]]], drawn: NDArray[np.int64] | None, what: str
) -> Floats:
    """(replicates + 1, runs) of one category; items are those that a run has scored in all states."""
    runs = len(states[0][1])
    if drawn is None:
        return np.full((1, runs), np.nan)
    scored = np.all([codes >= 0 for _, codes in states], axis=0)  # (runs, items)
    weights = np.vstack([np.ones_like(drawn[:1]), drawn]).astype(np.float32)
    total = np.zeros((len(weights), runs))
    for weight, codes in states:
        onehot = np.stack([(codes == cell) & scored for cell in range(4)], axis=-1)  # (runs, items, 4)
        flat = onehot.transpose(1, 0, 2).reshape(codes.shape[1], -1).astype(np.float32)
        cells = (weights @ flat).reshape(len(weights), runs, 4).astype(np.float64)
        # A resample may hold none of a run's scored items: it then says what was observed.
        cells = np.where(cells.sum(axis=-1, keepdims=True) > 0, cells, cells[:1])
        with np.errstate(divide="ignore", invalid="ignore"):
            total += weight * WHATS[what](cells)
    total[:, ~scored.any(axis=1)] = np.nan
    return total


def standard_errors(draws: Floats) -> Floats:
    """(runs, runs): of each difference of two runs, from paired draws (replicates, runs)."""
    if len(draws) < 2:
        raise ValueError("a standard error needs two draws")
    centred = draws - draws.mean(axis=0)
    covariance = centred.T @ centred / (len(draws) - 1)
    own = np.diag(covariance)
    found: Floats = np.sqrt(np.maximum(own[:, None] + own[None, :] - 2 * covariance, 0.0))
    return found


def rank_ranges(values: Floats, errors: Floats, *, lower_is_better: bool) -> list[tuple[int, int]]:
    """The best and the worst rank of each run that the data allow, from 1.

    The best is one more than the number of runs that are surely better; the worst leaves room for those
    that are surely worse. Each run's range is right by itself with 95 %, not all of them at once.

    Args:
        values: (runs,).
        errors: (runs, runs), standard errors of differences.
        lower_is_better: which end is rank 1.
    """
    signed = values if lower_is_better else -values
    difference = signed[:, None] - signed[None, :]
    # Rounding leaves about 1e-9 where two runs are alike in every draw.
    beyond = np.maximum(np.abs(difference) - 1e-9, 0.0)
    with np.errstate(divide="ignore"):
        apart = _holm(np.divide(beyond, errors, out=np.zeros_like(beyond), where=beyond > 0))
    better = (apart & (difference > 0)).sum(axis=1)
    worse = (apart & (difference < 0)).sum(axis=1)
    return [(int(b) + 1, len(values) - int(w)) for b, w in zip(better, worse, strict=True)]


def _holm(scores: Floats) -> NDArray[np.bool_]:
    """Of each run's differences in standard errors, (runs, runs), those that Holm's procedure calls real."""
    others = len(scores) - 1
    order = np.argsort(-scores, axis=1)
    levels = [NormalDist().inv_cdf(1 - ALPHA / 2 / left) for left in range(others, 0, -1)]
    descending = np.take_along_axis(scores, order, axis=1)[:, :others]  # without one 0, such as its own
    real = np.zeros(scores.shape, dtype=bool)
    real[:, :others] = np.logical_and.accumulate(descending > np.array(levels), axis=1)
    found = np.zeros_like(real)
    np.put_along_axis(found, order, real, axis=1)
    return found
