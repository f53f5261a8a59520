"""How a gap comes to shift: cells before, flips without an effect, and the items that an effect moves.

Knows shares, no number of items: the gap of a category is that of its shares themselves.

Notation, per category: p, the four cells before; p', after; noise, the share of items that flips each way
in a direction without any effect; Q (4 x 4), the joint shares of cells before and after.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from gapeval_lab.gap.score import Floats, gap, signed_gap

Way = Literal["closes", "widens"]

NO_SMOOTHING = 1e-9
"""Items added to shares: their log odds stay finite."""

_NEXT_TO = {"understanding": ((0, 2), (1, 3)), "generation": ((0, 1), (2, 3))}  # cells a flip apart
_PATH = 2001  # points at which the shift of a gap is known as items move


@dataclass(frozen=True)
class Design:
    """One category, before, and how a shift of its gap comes about.

    Attributes:
        cells: (4,) shares before; sum 1.
        noise: direction -> share of its items that flips each way, without an effect. The flips leave
            the cells as they are. No more than half of a cell flips in a direction and its way back.
        moves: (from, to): the column that loses items by the effect, and the one that gets them.
    """

    cells: tuple[float, float, float, float]
    noise: tuple[float, float]
    moves: tuple[int, int]

    @cached_property
    def gap(self) -> float:
        """Before."""
        return float(gap(np.array(self.cells), smoothing=NO_SMOOTHING))

    @property
    def way(self) -> Way:
        """Whether these moves close the gap or widen it."""
        return "closes" if self._path[1][-1] < 0 else "widens"

    @property
    def widest(self) -> float:
        """The largest shift of the gap that these moves can make, by size: to 0 at most, never across it."""
        return float(abs(self._path[1][-1]))

    def joint(self, shift: float) -> Floats | None:
        """Q (4, 4) where the gap shifts by this size; None where these moves cannot make it so."""
        moved, shifts = self._path
        if shift > self.widest + 1e-12:
            return None
        return self._with(float(np.interp(shift, np.abs(shifts), moved)))

    @cached_property
    def _path(self) -> tuple[Floats, Floats]:
        """Shares moved, and the shift of the gap that each makes, as long as it grows in size."""
        source, sink = self.moves
        moved = np.linspace(0.0, self.cells[source], _PATH)
        after = np.tile(np.array(self.cells), (_PATH, 1))
        after[:, source] -= moved
        after[:, sink] += moved
        after = np.maximum(after, 0.0)
        d = signed_gap(after, smoothing=NO_SMOOTHING)
        shifts = gap(after, smoothing=NO_SMOOTHING) - self.gap
        crossed = np.flatnonzero(np.sign(d) * np.sign(d[0]) < 0)
        if len(crossed):  # the gap is 0 between two points
            i = int(crossed[0])
            moved[i] = moved[i - 1] + (moved[i] - moved[i - 1]) * d[i - 1] / (d[i - 1] - d[i])
            shifts[i] = -self.gap
            moved, shifts = moved[: i + 1], shifts[: i + 1]
        turns = np.flatnonzero(np.diff(np.abs(shifts)) <= 0)
        last = int(turns[0]) if len(turns) else len(moved) - 1
        return moved[: last + 1], shifts[: last + 1]

    def _with(self, moved: float) -> Floats:
        """Q where this share of all items is moved by the effect, after the flips of noise."""
        p = np.array(self.cells)
        flips = np.zeros((4, 4))
        for pairs, noise in zip(_NEXT_TO.values(), self.noise, strict=True):
            room = [min(p[i], p[j]) / 2 for i, j in pairs]
            weights = [math.sqrt(p[i] * p[j]) for i, j in pairs]
            first = noise * weights[0] / sum(weights) if sum(weights) else 0.0
            first = min(max(first, noise - room[1]), room[0])
            for (i, j), share in zip(pairs, (first, min(noise - first, room[1])), strict=True):
                flips[i, j] = flips[j, i] = max(share, 0.0)
        q = flips + np.diag(p - flips.sum(axis=1))
        source, sink = self.moves
        if moved:
            taken = q[:, source] * (moved / p[source])
            q[:, source] -= taken
            q[:, sink] += taken
        return np.maximum(q, 0.0)


def design(cells: tuple[float, float, float, float], noise: tuple[float, float], way: Way) -> Design:
    """A gap that closes as what only one direction had right becomes right in both; or the way back."""
    one_sided = 1 if cells[1] >= cells[2] else 2
    return Design(cells, noise, (one_sided, 0) if way == "closes" else (0, one_sided))


def smoothed(counts: Sequence[int]) -> tuple[float, float, float, float]:
    """Shares of (4,) counts with a quarter of an item added to each, so that log odds are the Gap Score's."""
    both, und_only, gen_only, neither = ((count + 0.25) / (sum(counts) + 1) for count in counts)
    return both, und_only, gen_only, neither


@dataclass(frozen=True)
class Together:
    """Categories whose mean gap shifts.

    A mean that closes does so by every gap shrinking by the same share of itself: a small one cannot
    give more than it has. One that widens does so by every gap growing by the same size.

    Attributes:
        designs: one per category, all of one way.
    """

    designs: tuple[Design, ...]

    @cached_property
    def way(self) -> Way:
        """Whether the mean closes or widens."""
        return self.designs[0].way

    @cached_property
    def gap(self) -> float:
        """The mean before."""
        return float(np.mean([design.gap for design in self.designs]))

    @cached_property
    def widest(self) -> float:
        """The largest shift of the mean, by size; 0 where some categories close and others widen."""
        if len({design.way for design in self.designs}) > 1:
            return 0.0
        if self.way == "widens":
            return min(design.widest for design in self.designs)
        return self.gap * min(design.widest / design.gap for design in self.designs if design.gap > 0)

    def joints(self, shift: float) -> list[Floats] | None:
        """Q of each category where the mean shifts by this size; None where it cannot."""
        if shift > self.widest + 1e-12:
            return None
        share = shift / self.gap if self.way == "closes" else 0.0
        parts = [d.joint(min(share * d.gap if share else shift, d.widest)) for d in self.designs]
        return [part for part in parts if part is not None]
