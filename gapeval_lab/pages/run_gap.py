"""Sections of a run's page about the benchmark: the gap, accuracies, cells, side effects, controls."""

from collections.abc import Iterator

from gapeval_lab.gap.records import ShiftReport
from gapeval_lab.outcome import Outcome
from gapeval_lab.pages.figures import (
    draw_plane,
    draw_shifts,
    draw_states,
    gap_data,
    plane_data,
    shift_data,
)
from gapeval_lab.pages.numbers import Numbers, joined
from gapeval_lab.pages.parts import Beside, Block, Drawing, Line, Note, Section, Table, Words
from gapeval_lab.pages.svg import inline
from gapeval_lab.report import NONE

CELLS = {"both": "both", "und_only": "told only", "gen_only": "drawn only", "neither": "neither"}
SIDES = {"understanding": "told", "generation": "drawn"}
STAR = "A star: exact McNemar test, p under 0.05 after Holm's correction over the categories."


def label(name: str, outcome: Outcome) -> str:
    """A category as a reader knows it."""
    return name.replace("_", " ") + (" (edited)" if name in outcome.target_categories else "")


def states(outcome: Outcome) -> tuple[str, ...]:
    """The states to be shown side by side."""
    return ("before", "after") if outcome.after else ("before",)


def arrow(*parts: Words) -> Words:
    """Before → after."""
    first, *rest = parts
    return joined(first, *(piece for part in rest for piece in (" → ", part)))


def gap(numbers: Numbers) -> Section | None:
    """The Gap Score, per category and in the mean."""
    outcome = numbers.outcome
    report = outcome.before.gap
    if report.gap is None:
        nothing = Note("No item is scored in both directions, so there is no gap.", "warning")
        return Section("gap", "Gap Score", "Gap", [nothing])
    blocks: list[Block] = []
    drawings: list[Block] = []
    if found := gap_data(outcome):
        figure = inline(draw_states(found, xlabel="Gap Score (0 to 1, lower is better)"), name="fig-gap")
        alt = "Gap Score of each category with its interval. The numbers stand in the table below."
        drawings.append(Drawing(figure, "Gap Score per category, 95 % intervals", alt))
    if moved := shift_data(outcome):
        figure = inline(draw_shifts(moved, xlabel="shift (left of 0: the gap closed)"), name="fig-shift")
        alt = "Shift of the Gap Score in each category with its interval, and that of the placebo."
        drawings.append(Drawing(figure, "Shift of the Gap Score, 95 % intervals", alt))
    blocks.append(Beside(drawings))
    if outcome.shift is None:
        lines = [
            Line(
                label(name, outcome) if name else "mean",
                (
                    _items(numbers, name),
                    numbers.spread(*at, "gap", sign=False),
                    numbers.one(*at, "null_gap"),
                    numbers.one(*at, "null_p"),
                ),
                strong=not name,
            )
            for name, at in _places("before", outcome)
        ]
        columns = ["items", "gap [95 %]", "by chance", "p"]
        how = (
            "By chance: the gap that would be seen if each item's two directions were exchanged at random. "
            "p: how often such an exchange gives a gap as large as this one."
        )
    else:
        lines = [
            Line(
                label(name, outcome) if name else "mean",
                (
                    _items(numbers, name),
                    numbers.spread(*at, "gap", sign=False),
                    numbers.spread("after", *at[1:], "gap", sign=False),
                    numbers.spread(*_shift_place("shift", name), sign=True),
                    numbers.spread(*_shift_place("placebo_shift", name), sign=True),
                    numbers.one(*at, "null_gap"),
                    numbers.one("after", *at[1:], "null_gap"),
                ),
                strong=not name,
            )
            for name, at in _places("before", outcome)
        ]
        for metric, words in (("delta/on_target", "edited, mean"), ("delta/off_target", "others, mean")):
            if (mean := numbers.logged(metric)) != NONE:
                lines.insert(-1, Line(words, ("", "", "", mean, *("",) * 3)))
        columns = [
            "items",
            "before [95 %]",
            "after [95 %]",
            "shift [95 %]",
            "placebo's shift",
            "chance, before",
            "chance, after",
        ]
        how = (
            "A negative shift: telling and drawing came closer; an interval without 0 tells it from chance. "
            "The placebo is a random change of the weights, as large; what it does too is not the "
            "intervention's work. Chance: the gap that a model without one would show on these items."
        )
    blocks.append(Table("Gap Score", columns, lines, how=how, corner="category"))
    blocks += _left_out(numbers)
    lead = "How far apart telling and drawing are. 0: what the model tells, it also draws."
    return Section("gap", "Gap Score", "Gap", blocks, lead=lead)


def accuracy(numbers: Numbers) -> Section:
    """Told and drawn right, per category."""
    outcome = numbers.outcome
    blocks: list[Block] = []
    if found := plane_data(outcome):
        alt = "Each category as a point: share told right to the right, share drawn right upwards."
        how = "Below the dashed line the model tells more than it draws."
        how += " Hollow: before; full: after." if outcome.after else ""
        title = "Share right in each direction"
        drawing = Drawing(inline(draw_plane(found), name="fig-plane"), title, alt, how=how)
        blocks.append(Beside([drawing, _signed_table(numbers)]))
    elif outcome.before.gap.categories:
        blocks.append(_signed_table(numbers))
    lines = []
    for name, at in _places("before", outcome):
        cells: list[Words] = []
        for side in SIDES:
            cells += [numbers.percents(state, *at[1:], side) for state in states(outcome)]
            if outcome.shift:
                where = _shift_place("shift", name, side)
                cells.append(numbers.moved(*where) if name else numbers.spread(*where))
        lines.append(Line(label(name, outcome) if name else "mean", tuple(cells), strong=not name))
    lines[-1:-1] = [_one_sided(name, numbers) for name in outcome.before.gap.one_sided]
    columns = []
    for word in SIDES.values():
        columns += [f"{word}, {state}" if outcome.after else word for state in states(outcome)]
        columns += [f"{word}, shift"] if outcome.shift else []
    how = "Share of items that are right, with 95 % intervals."
    if outcome.shift:
        how += f" In brackets after a shift: items gained and lost. {STAR}"
    blocks.append(Table("Accuracy", columns, lines, how=how, corner="category"))
    return Section("accuracy", "Told and drawn", "Accuracy", blocks)


def cells(numbers: Numbers) -> Section | None:
    """Where items stand, and where they went."""
    outcome = numbers.outcome
    names = list(outcome.before.gap.categories)
    if not names:
        return None
    lines = [
        Line(
            label(name, outcome),
            tuple(
                arrow(*(numbers.count(*at, cell) for at in _in_states(outcome, name, "cells")))
                for cell in (*CELLS, "unscored")
            ),
        )
        for name in names
    ]
    how = (
        "Each item is right in both directions, told only, drawn only, or neither. Not scored: no verdict in "
        "a direction; such items are in no score."
    )
    columns = [*CELLS.values(), "not scored"]
    blocks: list[Block] = [Table("Items by what is right", columns, lines, how=how, corner="category")]
    if outcome.shift and outcome.shift.categories:
        tables = [_transitions(name, numbers) for name in outcome.shift.categories]
        blocks += [Beside(tables), Note(HOW_TRANSITIONS, "quiet")]
    return Section("cells", "Where items stand, and where they went", "Cells", blocks)


HOW_TRANSITIONS = (
    "Rows: where items stood before; columns: where they stand after; darker: more items. Off the diagonal "
    "something changed."
)


def _transitions(name: str, numbers: Numbers) -> Table:
    outcome = numbers.outcome
    assert outcome.shift is not None
    counts = outcome.shift.categories[name].transitions
    most = max(1, *(count for row in counts for count in row))
    words = list(CELLS.values())
    lines = [
        Line(
            words[row],
            tuple(
                numbers.count("shift", "categories", name, "transitions", row, column)
                for column in range(len(words))
            ),
            shades=tuple(0.08 + 0.5 * count / most if count else 0.0 for count in counts[row]),
        )
        for row in range(len(words))
    ]
    return Table(label(name, outcome), words, lines, corner="before ↓ after →")


def untouched(numbers: Numbers) -> Section | None:
    """What happened to the categories that the facts do not belong to."""
    outcome, shift = numbers.outcome, numbers.outcome.shift
    if shift is None or not outcome.target_categories:
        return None
    names = [name for name in shift.categories if name not in outcome.target_categories]
    sided = [name for name in shift.one_sided if name not in outcome.target_categories]
    if not names and not sided:
        return None
    lines = [
        Line(
            label(name, outcome),
            (
                numbers.spread("shift", "categories", name, "gap"),
                *(_tested(numbers, "shift", "categories", name, side) for side in SIDES),
            ),
        )
        for name in names
    ]
    for name in sided:
        told = shift.one_sided[name].direction == "understanding"
        moved = _tested(numbers, "shift", "one_sided", name, "accuracy")
        lines.append(Line(label(name, outcome), (NONE, *((moved, NONE) if told else (NONE, moved)))))
    how = f"Nothing here was edited: what moved is a side effect. {STAR}"
    columns = ["gap, shift [95 %]", "told (items), p", "drawn (items), p"]
    table = Table("Shifts of the other categories", columns, lines, how=how, corner="category")
    return Section("untouched", "What else moved", "Side effects", [table])


def _tested(numbers: Numbers, *at: str | int) -> Words:
    return joined(numbers.moved(*at), ", p ", numbers.one(*at, "p_holm"))


def controls(numbers: Numbers) -> Section | None:
    """Identity, which must change nothing, and the placebo."""
    outcome = numbers.outcome
    if outcome.identity_shift is None and outcome.placebo_shift is None:
        return None
    blocks: list[Block] = []
    if outcome.identity_shift is not None:
        still = _nothing(outcome.identity_shift)
        said = (
            "Identity: a change of zero moved nothing at all, as it must."
            if still
            else "Identity: a change of zero moved something. Answers do not repeat; trust no number here."
        )
        blocks.append(Note(said, "plain" if still else "warning"))
    lines = []
    for state, name, words in (
        ("after", "shift", "the intervention"),
        ("identity", "identity_shift", "identity: a change of zero"),
        ("placebo", "placebo_shift", "placebo: random, as large"),
    ):
        if numbers.at(name) is not None:
            shifts = [numbers.spread(name, what) for what in ("gap", *SIDES)]
            gap_after = numbers.one(state, "gap", "gap", "value")
            lines.append(Line(words, (gap_after, *shifts, numbers.count(name, "changed_items"))))
    columns = ["gap", "gap, shift [95 %]", "told, shift [95 %]", "drawn, shift [95 %]", "items changed"]
    how = "The intervention counts for what it does beyond the placebo. Identity must be exactly 0."
    blocks.append(Table("Controls beside the intervention", columns, lines, how=how))
    return Section("controls", "Controls", "Controls", blocks)


def published(numbers: Numbers) -> Section | None:
    """The published estimator, with its rounding band."""
    outcome = numbers.outcome
    official, note = outcome.before.gap.official, outcome.before.gap.official_note
    if official is None:
        return Section("published", "Published estimator", "Published", [Note(note)]) if note else None
    later = outcome.after.gap.official if outcome.after else None
    shown = states(outcome) if later else ("before",)
    lines = [
        Line(
            label(name, outcome),
            (
                *(numbers.one(state, "gap", "official", "gaps", name) for state in shown),
                *(numbers.one(state, "gap", "categories", name, "gap", "value") for state in shown),
            ),
        )
        for name in official.gaps
    ]
    means = [numbers.one(state, "gap", "official", "mean") for state in shown]
    ours = [numbers.one(state, "gap", "gap", "value") for state in shown]
    bands = [numbers.one(state, "gap", "official", "band") for state in shown]
    lines.append(Line("mean", (*means, *ours), strong=True))
    lines.append(Line("rounding band of the mean", (*bands, *("" for _ in shown))))
    columns = [f"{what}, {state}" if later else what for what in ("published", "ours") for state in shown]
    how = (
        "The published estimator moves by the rounding band when its input moves by 0.000001; a smaller "
        "difference says nothing. It has no interval. Ours is a different estimator of the same quantity."
    )
    table = Table("Published estimator beside ours", columns, lines, how=how, corner="category")
    return Section("published", "Published estimator", "Published", [table])


def _places(state: str, outcome: Outcome) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each category with its place in a state's report, then the mean, whose name is empty."""
    for name in outcome.before.gap.categories:
        yield name, (state, "gap", "categories", name)
    yield "", (state, "gap")


def _shift_place(shift: str, name: str, what: str = "gap") -> tuple[str, ...]:
    return (shift, "categories", name, what) if name else (shift, what)


def _signed_table(numbers: Numbers) -> Table:
    outcome = numbers.outcome
    lines = [
        Line(
            label(name, outcome),
            (
                *(numbers.spread(*at) for at in _in_states(outcome, name, "signed_gap")),
                *((numbers.spread("shift", "categories", name, "signed_gap"),) if outcome.shift else ()),
            ),
        )
        for name in outcome.before.gap.categories
    ]
    columns = [*states(outcome), "shift"] if outcome.shift else ["signed gap"]
    how = "Positive: the model tells better than it draws; negative: it draws better. In log-odds."
    return Table("Signed gap", columns, lines, how=how, corner="category")


def _one_sided(name: str, numbers: Numbers) -> Line:
    outcome = numbers.outcome
    cells: list[Words] = []
    for side in SIDES:
        for state in states(outcome):
            at = (state, "gap", "one_sided", name)
            own = numbers.at(*at, "direction") == side
            cells.append(numbers.percents(*at, "accuracy") if own else NONE)
        if outcome.shift:
            own = numbers.at("shift", "one_sided", name, "direction") == side
            cells.append(numbers.moved("shift", "one_sided", name, "accuracy") if own else NONE)
    return Line(label(name, outcome), tuple(cells))


def _items(numbers: Numbers, name: str) -> Words:
    """How many of a category's items have a gap."""
    return numbers.total("before", "gap", "categories", name, "cells", of=tuple(CELLS)) if name else ""


def _in_states(outcome: Outcome, name: str, what: str) -> list[tuple[str, ...]]:
    """The places of one thing of a category in each state."""
    return [(state, "gap", "categories", name, what) for state in states(outcome)]


def _left_out(numbers: Numbers) -> list[Block]:
    """What no mean of the gap holds, said in words."""
    tail = " items is scored in both directions; it is in no mean of the gap."
    found: list[Block] = []
    for name in numbers.outcome.before.gap.left_out:
        count = numbers.count("before", "gap", "left_out", name)
        found.append(Note(joined(f"{label(name, numbers.outcome)}: none of its ", count, tail), "quiet"))
    return found


def _nothing(shift: ShiftReport) -> bool:
    means = [one for one in (shift.gap, shift.understanding, shift.generation) if one is not None]
    return shift.changed_items == 0 and all((one.value, one.low, one.high) == (0, 0, 0) for one in means)
