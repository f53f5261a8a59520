"""How many items a benchmark needs to tell a shift: what is assumed, and the answers. Loads no model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gapeval_lab.errors import UserError
from gapeval_lab.gap.power import (
    LEAST_ITEMS,
    Design,
    bootstrapped_power,
    gap_items,
    gap_shift,
    items_for,
    mcnemar_items,
    mcnemar_power,
    mcnemar_shift,
)
from gapeval_lab.gap.records import DirectionShift, ShiftReport
from gapeval_lab.gap.table import ASSUMED_N
from gapeval_lab.outcome import Outcome

CELLS = ("both", "und_only", "gen_only", "neither")
SIDES = ("understanding", "generation")
SIZES = (0.02, 0.05, 0.1, 0.2)
CHANGED = 0.05
TOLD, DRAWN, CORRELATION = 0.8, 0.6, 0.3
SEED = 0
CONFIRMED, ROUGHLY = 2, 0.04  # times an answer is tried, and how far from the power it may stay
DRAWS = 120_000  # resampled categories behind one confirmed power


@dataclass(frozen=True)
class Basis:
    """What an answer depends on.

    Attributes:
        source: where that is from, in words.
        cells: category -> its four shares before; one under the name "" where all are taken alike.
        noise: direction -> share of items that flips each way without an effect.
        items: items per category at hand, in the order of `cells`, or of the benchmark's categories.
        categories: how many.
        notes: what else is assumed, in words.
    """

    source: str
    cells: Mapping[str, tuple[float, float, float, float]]
    noise: tuple[float, float]
    items: tuple[int, ...]
    categories: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """One test: items per category by size of the shift.

    Attributes:
        test: "McNemar" or "Gap Score"; of: a direction, a category, "one category" or "mean over K".
        items: size -> items per category; None where no number of items would do, or the moves cannot
            make the shift.
        power: reached at the asked size with its items; of the Gap Score, by drawn and bootstrapped runs.
        at_hand: items per category at hand (the fewest, of a test of one category).
        detects: the smallest shift that these tell.
    """

    test: str
    of: str
    items: dict[float, int | None]
    power: float | None
    at_hand: int
    detects: float | None


@dataclass(frozen=True)
class Plan:
    """The answers, with everything that was assumed, in plain words."""

    detect: float
    power: float
    alpha: float
    assumed: tuple[str, ...]
    answers: tuple[Answer, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "detect": self.detect,
            "power": self.power,
            "alpha": self.alpha,
            "assumed": list(self.assumed),
            "answers": [
                {**vars(one), "items": {f"{size:g}": n for size, n in one.items.items()}}
                for one in self.answers
            ],
        }


def cells_of_accuracies(told: float, drawn: float, correlation: float) -> tuple[float, float, float, float]:
    """Shares of both, und_only, gen_only, neither.

    Args:
        told, drawn: accuracies, between 0 and 1.
        correlation: phi of the two directions over items.

    Raises:
        UserError: an accuracy is not between 0 and 1, or no table has this correlation.
    """
    low, high = correlations(told, drawn)
    if not low - 1e-4 <= correlation <= high + 1e-4:
        raise UserError(
            f"--correlation: {correlation:g} cannot be, where {told:g} are told and {drawn:g} drawn; give "
            f"one between {math.ceil(100 * low) / 100:g} and {math.floor(100 * high) / 100:g}"
        )
    both = told * drawn + correlation * math.sqrt(told * (1 - told) * drawn * (1 - drawn))
    cells = (both, told - both, drawn - both, 1 - told - drawn + both)
    a, b, c, d = (max(0.0, cell) for cell in cells)
    return a, b, c, d


def correlations(told: float, drawn: float) -> tuple[float, float]:
    """The least and the greatest phi of two accuracies.

    Raises:
        UserError: one is not between 0 and 1.
    """
    for name, value in (("told", told), ("drawn", drawn)):
        if not 0 < value < 1:
            raise UserError(f"--{name}: {value:g} is no accuracy; give a share between 0 and 1, such as 0.8")
    spread = math.sqrt(told * (1 - told) * drawn * (1 - drawn))
    low, high = max(0.0, told + drawn - 1) - told * drawn, min(told, drawn) - told * drawn
    return low / spread, high / spread


def basis_of_run(outcome: Outcome, changed: float | None) -> Basis:
    """The cells and flips that a run measured.

    Raises:
        UserError: it has no category scored in both directions.
    """
    found = {name: one.cells for name, one in outcome.before.gap.categories.items()}
    if not found:
        raise UserError(f"--from: {outcome.run_id} has no item scored in both directions; name another run")
    cells = {
        name: (c.both / c.n, c.und_only / c.n, c.gen_only / c.n, c.neither / c.n) for name, c in found.items()
    }
    if changed is not None:
        noise, flips = (changed / 2, changed / 2), _flips(changed)
    elif outcome.placebo_shift is not None and outcome.placebo_shift.categories:
        noise = _noise(outcome.placebo_shift, lambda shift: (shift.gained + shift.lost) / 2)
        flips = f"flips without an effect: those of its placebo, {_shares(noise)}"
    elif outcome.shift is not None and outcome.shift.categories:
        noise = _noise(outcome.shift, lambda shift: min(shift.gained, shift.lost))
        flips = (
            f"flips without an effect: those before and after that went against the shift, {_shares(noise)}"
        )
    else:
        noise, flips = (CHANGED / 2, CHANGED / 2), f"{_flips(CHANGED)}; the run has no after to tell"
    sizes = tuple(c.n for c in found.values())
    return Basis(outcome.run_id, cells, noise, sizes, len(found), ("cells before: the run's own", flips))


def basis_of_accuracies(
    *,
    told: float | None,
    drawn: float | None,
    correlation: float | None,
    changed: float | None,
    items: tuple[int, ...],
    source: str,
    categories: int,
) -> Basis:
    """Every category with the same accuracies; what is None is taken at its default.

    Raises:
        UserError: see `cells_of_accuracies`.
    """
    u, g = TOLD if told is None else told, DRAWN if drawn is None else drawn
    phi = correlation
    if phi is None:  # where the accuracies leave no room for it, as near to it as they can be
        low, high = correlations(u, g)
        phi = round(min(max(CORRELATION, low), high), 4)
    flips = CHANGED if changed is None else changed
    cells = cells_of_accuracies(u, g, phi)
    default = " (defaults)" if told is drawn is correlation is None else ""
    said = f"before, every category: {u:g} told, {g:g} drawn, correlation {phi:g}{default}: cells "
    said += ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(CELLS, cells, strict=True))
    return Basis(source, {"": cells}, (flips / 2, flips / 2), items, categories, (said, _flips(flips)))


def plan(
    basis: Basis, *, detect: float, power: float, alpha: float, moves: tuple[int, int] | None = None
) -> Plan:
    """Items per category for shifts of several sizes, and what the items at hand tell.

    Args:
        basis: what is assumed of the state before and of flips.
        detect: the asked size, of an accuracy's shift and of the gap's.
        power, alpha: of each test.
        moves: (from, to) cells; by default the larger one-sided cell goes to both, or, in a category whose
            gap is too small to close by `detect`, both goes there.
    """
    sizes = sorted({*SIZES, detect})
    k = basis.categories
    designs = [_design(basis, name, detect, moves) for name in basis.cells]
    everyone = designs if len(designs) == k else designs * k
    answers = [_mcnemar(basis, i, sizes, detect, power=power, alpha=alpha / k) for i in range(2)]
    at_hand = basis.items if len(designs) > 1 else (min(basis.items),)
    for name, design, n in zip(basis.cells, designs, at_hand, strict=True):
        label = name or "one category"
        answers.append(_gap(label, [design], [n], sizes, detect, power=power, alpha=alpha))
    if k > 1:
        answers.append(
            _gap(f"mean over {k}", everyone, list(basis.items), sizes, detect, power=power, alpha=alpha)
        )
    return Plan(detect, power, alpha, _assumed(basis, designs, alpha), tuple(answers))


def _mcnemar(
    basis: Basis, direction: int, sizes: Sequence[float], detect: float, *, power: float, alpha: float
) -> Answer:
    """One direction in one category; the exact sum, so its power needs no drawing."""
    noise = basis.noise[direction]
    items = {size: mcnemar_items(size, noise=noise, alpha=alpha, power=power) for size in sizes}
    n = items[detect]
    reached = None if n is None else mcnemar_power(n, gain=noise + detect, lose=noise, alpha=alpha)
    fewest = min(basis.items)
    detects = mcnemar_shift(fewest, noise=noise, alpha=alpha, power=power)
    return Answer("McNemar", SIDES[direction], items, reached, fewest, detects)


def _gap(
    label: str,
    designs: Sequence[Design],
    at_hand: Sequence[int],
    sizes: Sequence[float],
    detect: float,
    *,
    power: float,
    alpha: float,
) -> Answer:
    items = {size: gap_items(designs, size, alpha=alpha, power=power) for size in sizes}
    n, reached = items[detect], None
    draws = max(100, round(math.sqrt(2 * DRAWS / len(designs))))
    for attempt in range(CONFIRMED):
        if n is None:
            break
        reached = bootstrapped_power(
            *(designs, detect, [n] * len(designs)),
            alpha=alpha,
            seed=SEED,
            runs=draws,
            replicates=draws // 2,
        )
        items[detect] = n
        if reached is None or abs(reached - power) <= ROUGHLY or attempt + 1 == CONFIRMED:
            break
        n = max(LEAST_ITEMS, items_for(n, reached, power=power, alpha=alpha))
    found = gap_shift(designs, at_hand, alpha=alpha, power=power)
    return Answer("Gap Score", label, items, reached, min(at_hand), found)


def _design(basis: Basis, name: str, detect: float, moves: tuple[int, int] | None) -> Design:
    cells = basis.cells[name]
    n = basis.items[list(basis.cells).index(name)] if len(basis.cells) > 1 else ASSUMED_N
    one_sided = 1 if cells[1] >= cells[2] else 2
    design = Design(cells, basis.noise, moves or (one_sided, 0), n)
    if moves is None and design.widest() < detect:
        return replace(design, moves=(0, one_sided))
    return design


def _assumed(basis: Basis, designs: Sequence[Design], alpha: float) -> tuple[str, ...]:
    """Everything in plain words."""
    k = basis.categories
    moves = {design.moves for design in designs}
    moved = " or ".join(f"{CELLS[source]} to {CELLS[sink]}" for source, sink in sorted(moves))
    sizes = str(basis.items[0]) if len(set(basis.items)) == 1 else f"{min(basis.items)} to {max(basis.items)}"
    return (
        f"at hand: {basis.source}, {k} {'category' if k == 1 else 'categories'}, {sizes} items each",
        *basis.notes,
        f"McNemar: a shift of one direction's accuracy in one category, exact and two-sided, p under "
        f"{alpha / k:.3g} (Holm over {k}, where one category shifts alone)",
        f"Gap Score: the {100 * (1 - alpha):g} % interval of its paired shift leaves out 0"
        + (", every category shifting alike for the mean" if k > 1 else ""),
        f"a gap shifts by items that go from {moved}",
    )


def _noise(shift: ShiftReport, count: Any) -> tuple[float, float]:
    """Share of items that flips each way, over all categories: understanding, generation."""
    n = sum(one.n for one in shift.categories.values())

    def share(moved: Sequence[DirectionShift]) -> float:
        return float(sum(count(one) for one in moved)) / n

    rows = list(shift.categories.values())
    return share([one.understanding for one in rows]), share([one.generation for one in rows])


def _shares(noise: tuple[float, float]) -> str:
    return f"{100 * noise[0]:.1f} % of items each way told, {100 * noise[1]:.1f} % drawn"


def _flips(changed: float) -> str:
    return (
        f"flips without an effect: {100 * changed:g} % of the items in each direction, half of them each way"
    )
