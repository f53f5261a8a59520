"""Sums and differences of several states of one set of items, with paired intervals.

Knows verdicts; knows no run and no intervention. An item's verdicts in all states are resampled together,
within its category, and an item counts only if it was scored in all of them.

`contrast([(1, after_a), (-1, before), (-1, after_b), (1, before)])` is the difference between the shifts
of two interventions a and b on one model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.gap.records import Estimate
from gapeval_lab.gap.resample import bootstrap, estimate, stream
from gapeval_lab.gap.score import Floats, accuracies, gap
from gapeval_lab.gap.table import ItemVerdict, encode

Codes = NDArray[np.int64]
State = Sequence[ItemVerdict]


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of states: of the Gap Score, and of both accuracies; means over categories.

    Attributes:
        n: items scored in both directions in all states, or, where there is none, in one direction.
        gap, understanding, generation: None where no item is scored so.
    """

    n: int
    gap: Estimate | None
    understanding: Estimate | None
    generation: Estimate | None


def contrast(states: Sequence[tuple[int, State]], *, seed: int, replicates: int = 10_000) -> Contrast:
    """The sum of weight times number over states, with its interval (bootstrap, 95 %).

    States with the same verdicts whose weights cancel are left out of the sum, so that it is exactly 0
    where nothing differs.

    Args:
        states: (weight, verdicts of the same items in the same order).
        seed: all randomness comes from it.
        replicates: bootstrap replicates.

    Raises:
        ValueError: the states do not hold the same items.
    """
    names = [item.category for item in states[0][1]]
    if any([item.category for item in state] != names for _, state in states):
        raise ValueError("the states must hold the same items, in one order")
    coded = [encode(state) for _, state in states]
    n, draws = 0, []
    for name in dict.fromkeys(names):
        table = np.stack([codes[name] for codes in coded])  # (states, items)
        table = table[:, (table >= 0).all(axis=0)]
        if table.shape[1]:
            n += table.shape[1]
            left = _left([weight for weight, _ in states], table)
            draws.append(_category(name, left, seed=seed, replicates=replicates))
    if draws:
        parts = zip(*draws, strict=True)
        told = [estimate(float(mean[0]), mean[1:]) for mean in (np.mean(part, axis=0) for part in parts)]
        return Contrast(n, *told)
    counts, sides = [0], []
    for side in ("understanding", "generation"):
        size, found = _one_side(states, side, seed=seed, replicates=replicates)
        counts.append(size)
        sides.append(found)
    return Contrast(max(counts), None, *sides)


def _left(weights: Sequence[int], table: Codes) -> list[tuple[int, Codes]]:
    """The states, (items,) each, with their weights; equal ones as one, none that cancel."""
    found: dict[bytes, tuple[int, Codes]] = {}
    for weight, codes in zip(weights, table, strict=True):
        before = found.get(codes.tobytes(), (0, codes))[0]
        found[codes.tobytes()] = (before + weight, codes)
    return [(weight, codes) for weight, codes in found.values() if weight]


def _category(
    name: str, states: Sequence[tuple[int, Codes]], *, seed: int, replicates: int
) -> tuple[Floats, Floats, Floats]:
    """(replicates + 1,) each, the value first: gap, understanding, generation."""
    total = (np.zeros(replicates + 1), np.zeros(replicates + 1), np.zeros(replicates + 1))
    if not states:
        return total
    # Items that are alike in all states are one cell.
    kinds, sizes = np.unique(np.stack([codes for _, codes in states]), axis=1, return_counts=True)
    drawn = bootstrap(sizes, rng=stream(seed, "contrast", name), replicates=replicates)
    counts = np.concatenate([sizes[None], drawn])
    for (weight, _), codes in zip(states, kinds, strict=True):
        cells = counts @ np.eye(4, dtype=np.int64)[codes]
        for place, values in enumerate((gap(cells), *accuracies(cells))):
            total[place][:] += weight * values
    return total


def _one_side(
    states: Sequence[tuple[int, State]], side: str, *, seed: int, replicates: int
) -> tuple[int, Estimate | None]:
    """Items scored in that direction in all states, and the contrast of its accuracy."""
    n, parts = 0, []
    for name in dict.fromkeys(item.category for item in states[0][1]):
        columns = [[getattr(item, side) for item in state if item.category == name] for _, state in states]
        rows = [row for row in zip(*columns, strict=True) if None not in row]
        if not rows:
            continue
        n += len(rows)
        moved = np.array(rows, dtype=np.int64) @ np.array([weight for weight, _ in states])
        values, sizes = np.unique(moved, return_counts=True)
        drawn = bootstrap(sizes, rng=stream(seed, f"contrast of {side}", name), replicates=replicates)
        parts.append(np.concatenate([sizes[None], drawn]) @ values / len(rows))
    if not parts:
        return 0, None
    mean = np.mean(parts, axis=0)
    return n, estimate(float(mean[0]), mean[1:])
