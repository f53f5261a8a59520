"""Means of several samples of the same items, in one or several states, with paired intervals.

A state is one or more samples; a sample holds a verdict per item and direction. All numbers are of the
items that are scored in every sample of every state, so that differences are paired; items are resampled
within their category, with all that was measured of them together. Where no item is scored on both sides
(as in RealUnify), each accuracy is of the items that are scored on its side, and there is no gap.

    accuracy    mean over samples of the share that is right, mean over categories
    gap         mean over samples of the Gap Score, mean over categories
    pass@k      share of items right in at least one of the k samples, mean over categories
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.gap.records import Estimate
from gapeval_lab.gap.resample import estimate, stream
from gapeval_lab.gap.score import gap
from gapeval_lab.gap.table import ItemVerdict

Side = Literal["understanding", "generation"]
What = Literal["understanding", "generation", "gap"]
Samples = Sequence[Sequence[ItemVerdict]]
Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

SIDES: tuple[Side, ...] = ("understanding", "generation")


class Sampled:
    """States measured on the same items, ready to be compared.

    Attributes:
        n: items that count; unscored: the rest.
    """

    def __init__(
        self, states: Mapping[str, Samples], *, sides: Sequence[Side], seed: int, replicates: int
    ) -> None:
        """Resample.

        Args:
            states: name -> samples; the same items in the same order in all of them.
            sides: the directions that the model has; the gap takes both.
            seed, replicates: of the bootstrap.

        Raises:
            ValueError: the samples differ in their items, or there are none.
        """
        everything = [sample for samples in states.values() for sample in samples]
        categories = [[item.category for item in sample] for sample in everything]
        if not everything or any(found != categories[0] for found in categories):
            raise ValueError("samples should hold the same items in the same order")
        self._sides = tuple(sides)
        # (items, samples of all states, sides): 1 right, 0 wrong, -1 not scored
        table = np.array(
            [[[_code(getattr(item, side)) for side in self._sides] for item in one] for one in everything]
        ).reshape(len(everything), len(categories[0]), len(self._sides))
        table = table.transpose(1, 0, 2)
        scored = np.asarray((table >= 0).all(axis=1))  # (items, sides)
        whole = scored.all(axis=1)
        # As in the report of a state: what is scored on one side counts where nothing is scored on both.
        chosen = {self._sides: whole}
        if not whole.any():
            chosen = {(side,): scored[:, place] for place, side in enumerate(self._sides)}
        counted = np.stack(list(chosen.values())).any(axis=0)
        self.n, self.unscored = int(counted.sum()), int((~counted).sum())
        ends = np.cumsum([0, *(len(samples) for samples in states.values())])
        self._columns = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(states)}
        names = np.array(categories[0])
        self._parts: list[tuple[tuple[Side, ...], Codes, Floats]] = []
        for of, these in chosen.items():
            for name in dict.fromkeys(categories[0]):
                part = table[these & (names == name)]
                if len(part):
                    # The first row weighs every item once: the value itself.
                    label = name if of == self._sides else f"{name}/{of[0]}"
                    weights = np.full(len(part), 1 / len(part))
                    drawn = stream(seed, "samples", label).multinomial(len(part), weights, size=replicates)
                    self._parts.append((of, part, np.vstack([np.ones_like(drawn[:1]), drawn]).astype(float)))

    def of(self, state: str, what: What) -> Estimate | None:
        """A number of one state; None where no item was scored, or the model lacks a side of it."""
        return _estimate(self._mean(state, what))

    def minus(self, state: str, other: str, what: What) -> Estimate | None:
        """One state's number minus another's, paired by item."""
        one, two = self._mean(state, what), self._mean(other, what)
        return None if one is None or two is None else _estimate(one - two)

    def passed(self, state: str, side: Side) -> Estimate | None:
        """pass@k, with k the state's number of samples."""
        return _estimate(self._over_categories(lambda table: self._any(table, state, side), side))

    def _mean(self, state: str, what: What) -> Floats | None:
        if what == "gap":
            return self._over_categories(lambda table: self._cells(table, state), *SIDES, gaps=True)
        return self._over_categories(lambda table: self._side(table, state, what), what)

    def _over_categories(
        self, made: Callable[[Codes], Floats], *needed: Side, gaps: bool = False
    ) -> Floats | None:
        """(replicates + 1,): the value and its draws; `made` gives (items, ...) numbers of a category."""
        means = []
        for of, table, weights in self._parts:
            if not set(needed) <= set(of):
                continue
            summed = np.tensordot(weights, made(table), axes=1)
            means.append(np.mean(gap(summed), axis=1) if gaps else np.divide(summed, len(table)))
        if not means:
            return None
        found: Floats = np.stack(means).mean(axis=0)
        return found

    def _side(self, table: Codes, state: str, side: Side) -> Floats:
        """(items,): share of the samples that are right."""
        right = table[:, self._columns[state], self._sides.index(side)]
        found: Floats = right.sum(axis=1) / float(right.shape[1])
        return found

    def _any(self, table: Codes, state: str, side: Side) -> Floats:
        """(items,): 1 where any sample is right."""
        found: Floats = table[:, self._columns[state], self._sides.index(side)].max(axis=1) * 1.0
        return found

    def _cells(self, table: Codes, state: str) -> Floats:
        """(items, samples, 4): one-hot, in the order of cells."""
        told, drawn = (table[:, self._columns[state], self._sides.index(side)].astype(bool) for side in SIDES)
        cells = [told & drawn, told & ~drawn, ~told & drawn, ~told & ~drawn]
        found: Floats = np.stack(cells, axis=-1).astype(np.float64)
        return found


def _code(correct: bool | None) -> int:
    return -1 if correct is None else int(correct)


def _estimate(draws: Floats | None) -> Estimate | None:
    return None if draws is None else estimate(float(draws[0]), draws[1:])
