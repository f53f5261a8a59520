"""Resampling of counted items: random streams, bootstrap draws, intervals, exchanges of directions.

Knows counts in cells, whatever the cells mean; knows no gap.

Items that fall in the same cell are alike, so a bootstrap over n items is a multinomial draw over
the cells: the same distribution, at the cost of a few numbers instead of n.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.gap.records import Estimate

_LEVELS = (2.5, 97.5)


def stream(seed: int, purpose: str, name: str = "") -> np.random.Generator:
    """A generator of its own for every (seed, purpose, name).

    Categories draw from streams named after them, so that what one category holds never moves the
    numbers of another.
    """
    key = hashlib.sha256(f"{purpose}\x00{name}".encode()).digest()
    return np.random.default_rng([seed, *key])


def bootstrap(counts: NDArray[np.int64], *, rng: np.random.Generator, replicates: int) -> NDArray[np.int64]:
    """Counts of `replicates` resamples of the same n items: (cells,) -> (replicates, cells).

    Only occupied cells are drawn, so a cell without items stays exactly empty.
    """
    occupied = np.flatnonzero(counts)
    n = counts.sum()
    draws = np.zeros((replicates, len(counts)), dtype=np.int64)
    draws[:, occupied] = rng.multinomial(n, counts[occupied] / n, size=replicates)
    return draws


def estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    """A value with its percentile interval (95 %) over bootstrap draws.

    The interval is widened where the value lies outside: an absolute value, as the gap is, only
    grows under resampling when it is near 0.
    """
    low, high = np.percentile(draws, _LEVELS)
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))
