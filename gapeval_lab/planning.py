"""How many items a benchmark needs to tell a shift: what is assumed, and the answers. Loads no model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gapeval_lab.errors import UserError
from gapeval_lab.gap.design import Design, Together, Way, design, smoothed
from gapeval_lab.gap.power import (
    CAREFUL,
    MOST_ITEMS,
    QUICK,
    gap_items,
    gap_shift,
    mcnemar_items,
    mcnemar_power,
    mcnemar_shift,
)
from gapeval_lab.gap.records import DirectionShift, ShiftReport
from gapeval_lab.outcome import Outcome

CELLS = ("both", "und_only", "gen_only", "neither")
SIDES = ("understanding", "generation")
SIZES = (0.02, 0.05, 0.1, 0.2)
CHANGED = 0.05
TOLD, DRAWN, CORRELATION = 0.8, 0.6, 0.3


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
        items: size -> items per category; None where there is no such number.
        reasons: size -> why there is none.
        power: reached at the asked size with its items: McNemar's by its exact sum, the Gap Score's by
            drawn and bootstrapped runs.
        error: half the 95 % interval of a drawn power; None of an exact one.
        at_hand: items per category at hand (the fewest, of a test of one category).
        detects: the smallest shift that these tell; None where they tell none.
        way: which way the gap shifts; gap: how large it is before. None of McNemar's test.
    """

    test: str
    of: str
    items: dict[float, int | None]
    reasons: dict[float, str]
    power: float | None
    error: float | None
    at_hand: int
    detects: float | None
    way: Way | None = None
    gap: float | None = None


@dataclass(frozen=True)
class Plan:
    """The answers, with everything that was assumed, in plain words."""

    detect: float
    power: float
    alpha: float
    assumed: tuple[str, ...]
    answers: tuple[Answer, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values; what each is called says what it is."""
        return {
            "asked": {"shift": self.detect, "power": self.power, "alpha": self.alpha},
            "assumed": list(self.assumed),
            "answers": [_as_json(answer, self.detect) for answer in self.answers],
        }


def _as_json(answer: Answer, detect: float) -> dict[str, Any]:
    return {
        "test": answer.test,
        "of": answer.of,
        "gap_before": answer.gap,
        "gap_shift": answer.way,
        "items_per_category_by_shift": {f"{size:g}": n for size, n in answer.items.items()},
        "no_items_because": {f"{size:g}": reason for size, reason in answer.reasons.items()},
        "at_asked_shift": {
            "items": answer.items[detect],
            "power": answer.power,
            "give_or_take": answer.error,
        },
        "at_hand": {"items": answer.at_hand, "smallest_shift": answer.detects},
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
        name: smoothed([one.both, one.und_only, one.gen_only, one.neither]) for name, one in found.items()
    }
    if changed is not None:
        noise, flips = (changed / 2, changed / 2), _flips(changed)
    elif outcome.shift is not None and outcome.shift.categories:
        noise = _noise(outcome.shift, lambda shift: min(shift.gained, shift.lost))
        whose = "those of its items that went against its shift"
        if outcome.placebo_shift is not None and outcome.placebo_shift.categories:
            placebo = _noise(outcome.placebo_shift, lambda shift: (shift.gained + shift.lost) / 2)
            noise = (max(noise[0], placebo[0]), max(noise[1], placebo[1]))
            whose += ", or its placebo's where these are more"
        flips = f"flips beside the effect: {whose}: {_shares(noise)}"
    else:
        noise, flips = (CHANGED / 2, CHANGED / 2), f"{_flips(CHANGED)}; the run has no after to tell"
    sizes = tuple(c.n for c in found.values())
    return Basis(
        outcome.run_id,
        cells,
        noise,
        sizes,
        len(found),
        ("cells before: the run's own, smoothed by one item as in its Gap Score", flips),
    )


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
    basis: Basis,
    *,
    detect: float,
    power: float,
    alpha: float,
    way: Way | None = None,
    moves: tuple[int, int] | None = None,
) -> Plan:
    """Items per category for shifts of several sizes, and what the items at hand tell.

    Args:
        basis: what is assumed of the state before and of flips.
        detect: the asked size, of an accuracy's shift and of the gap's.
        power, alpha: of each test.
        way: where gaps go; by default a gap closes where it is as large as `detect`, else it widens.
        moves: (from, to) cells, instead of `way`. By default the larger one-sided cell goes to both where
            a gap closes, and both goes there where it widens.
    """
    sizes = sorted({*SIZES, detect})
    k = basis.categories
    answers = [_mcnemar(basis, i, sizes, detect, power=power, alpha=alpha / k) for i in range(2)]
    at_hand = basis.items if len(basis.cells) > 1 else (min(basis.items),)
    told = {"sizes": sizes, "detect": detect, "power": power, "alpha": alpha}
    found = []
    for name, n in zip(basis.cells, at_hand, strict=True):
        found.append(_together(basis, [name], detect, way, moves))
        answers.append(_gap(name or "one category", found[-1], [n], **told))  # type: ignore[arg-type]
    if k > 1:
        names = list(basis.cells) if len(basis.cells) == k else list(basis.cells) * k
        found.append(_together(basis, names, detect, way, moves))
        answers.append(_gap(f"mean over {k}", found[-1], list(basis.items), **told))  # type: ignore[arg-type]
    return Plan(detect, power, alpha, _assumed(basis, found, alpha), tuple(answers))


def _mcnemar(
    basis: Basis, direction: int, sizes: Sequence[float], detect: float, *, power: float, alpha: float
) -> Answer:
    """One direction in one category; the exact sum, so its power needs no drawing."""
    noise = basis.noise[direction]
    accuracies = [cells[0] + cells[1 + direction] for cells in basis.cells.values()]
    room = max(max(u, 1 - u) for u in accuracies) - noise
    items: dict[float, int | None] = {}
    reasons = {}
    for size in sizes:
        items[size] = None if size > room else mcnemar_items(size, noise=noise, alpha=alpha, power=power)
        if size > room:
            reasons[size] = f"no accuracy has room for so large a shift: {room:.3f} at most"
        elif items[size] is None:
            reasons[size] = _TOO_MANY
    n = items[detect]
    reached = None if n is None else mcnemar_power(n, gain=noise + detect, lose=noise, alpha=alpha)
    fewest = min(basis.items)
    detects = mcnemar_shift(fewest, noise=noise, alpha=alpha, power=power, room=room)
    return Answer("McNemar", SIDES[direction], items, reasons, reached, None, fewest, detects)


def _gap(
    label: str,
    found: Together,
    at_hand: Sequence[int],
    *,
    sizes: Sequence[float],
    detect: float,
    power: float,
    alpha: float,
) -> Answer:
    """One category, or the mean; the asked size is drawn with more care."""
    items: dict[float, int | None] = {}
    reasons = {}
    reached = error = None
    for size in sizes:
        items[size] = None
        if (joints := found.joints(size)) is None:
            reasons[size] = _no_room(found)
            continue
        budget = CAREFUL if size == detect else QUICK
        answer = gap_items(joints, way=found.way, alpha=alpha, power=power, budget=budget)
        if answer is None:
            reasons[size] = _TOO_MANY
            continue
        items[size] = answer.n
        if size == detect:
            reached, error = answer.power, answer.error
    # Drawn with less care than the items are, so what these say of a size comes first.
    seen = [size for size, n in items.items() if n is not None and n <= min(at_hand)]
    if (nearly := gap_shift(found, at_hand, alpha=alpha, power=power)) is not None:
        seen.append(nearly)
    detects = min(seen, default=None)
    return Answer(
        "Gap Score",
        label,
        items,
        reasons,
        reached,
        error,
        min(at_hand),
        detects,
        way=found.way,
        gap=found.gap,
    )


_TOO_MANY = f"not even {MOST_ITEMS:,} items are enough"


def _no_room(found: Together) -> str:
    if found.way == "closes" and math.isclose(found.widest, found.gap):
        return f"it cannot close by more than there is, {found.gap:.3f}"
    if not found.widest:
        return "these moves close some gaps and widen others, or move nothing"
    return f"these moves shift it by {found.widest:.3f} at most"


def _together(
    basis: Basis, names: Sequence[str], detect: float, way: Way | None, moves: tuple[int, int] | None
) -> Together:
    """Categories that shift the same way."""
    chosen = [basis.cells[name] for name in names]
    if moves:
        return Together(tuple(Design(cells, basis.noise, moves) for cells in chosen))
    closing = Together(tuple(design(cells, basis.noise, "closes") for cells in chosen))
    if (way or ("closes" if closing.widest >= detect else "widens")) == "closes":
        return closing
    return Together(tuple(design(cells, basis.noise, "widens") for cells in chosen))


def _assumed(basis: Basis, found: Sequence[Together], alpha: float) -> tuple[str, ...]:
    """Everything in plain words."""
    k = basis.categories
    sizes = str(basis.items[0]) if len(set(basis.items)) == 1 else f"{min(basis.items)} to {max(basis.items)}"
    said = [
        f"at hand: {basis.source}, {k} {'category' if k == 1 else 'categories'}, {sizes} items each",
        *basis.notes,
        f"McNemar: a shift of one direction's accuracy in one category, exact and two-sided, p under "
        f"{alpha / k:.3g}" + (f" (Holm over {k}, where one category shifts alone)" if k > 1 else ""),
        f"Gap Score: the {100 * (1 - alpha):g} % interval of its paired shift lies on the right side of 0",
    ]
    for way in ("closes", "widens"):
        moves = sorted({one.moves for each in found if each.way == way for one in each.designs})
        if moves:
            moved = " or ".join(f"{CELLS[source]} to {CELLS[sink]}" for source, sink in moves)
            said.append(f"a gap {way} by items that go from {moved}")
    if k > 1:
        how = "every gap shrinks by the same share of itself"
        if found[-1].way == "widens":
            how = "every gap grows by the same size"
        said.append(f"the mean {found[-1].way}: {how}")
    return tuple(said)


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
