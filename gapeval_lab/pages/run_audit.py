"""Sections of a run's page about what its answer is worth: other estimators, the smallest visible shift."""

from gapeval_lab.gap.audit import MEAN, OURS
from gapeval_lab.gap.records import Variant
from gapeval_lab.pages.numbers import Numbers, joined
from gapeval_lab.pages.parts import Block, Fold, Line, Note, Section, Table, Words
from gapeval_lab.pages.run_gap import label, published
from gapeval_lab.report import NONE
from gapeval_lab.report_audit import (
    AUDIT_COLUMNS,
    DETECTABLE_COLUMNS,
    HOW_AUDIT,
    audit_data,
    audit_notes,
    detectable_note,
    estimators_note,
    firm,
    older,
)
from gapeval_lab.report_cells import MINUS, fixed, signed

TITLE = "Other ways to compute the gap"


def warning(numbers: Numbers) -> Note | None:
    """What stands under the answer where it depends on how the gap is computed."""
    said = estimators_note(numbers.outcome, see=f"“{TITLE}” below")
    return Note(said, "warning" if firm(numbers.outcome) else "quiet") if said else None


def audit(numbers: Numbers) -> Section | None:
    """The gap by every estimator and constant, then the published one in full."""
    outcome = numbers.outcome
    blocks: list[Block] = []
    if outcome.audit is not None:
        firmly = firm(outcome)
        first, *rest = audit_notes(outcome) if outcome.audit.said else ["", *audit_notes(outcome)]
        if first:
            blocks.append(Note(first, "warning" if firmly else "plain"))
        if (lowest := numbers.logged("audit/lowest")) != NONE:
            range_ = joined(
                "By all of these ways the shift lies between ",
                lowest,
                " and ",
                numbers.logged("audit/highest"),
                ".",
            )
            blocks.append(Note(range_))
        blocks.append(_ways(numbers))
        blocks += [Note(note, "quiet") for note in rest]
        if outcome.after is not None:
            blocks.append(Fold("Shift of each category, computed in other ways", [_categories(numbers)]))
    if (section := published(numbers)) is not None:
        blocks += section.blocks
    if not blocks:
        return None
    lead = "Does the answer depend on how the score is computed?"
    return Section("audit", TITLE, "Audit", blocks, lead=lead)


def _ways(numbers: Numbers) -> Table:
    found = numbers.outcome.audit
    variants = found.variants if found else []
    lines = []
    for number, (variant, row) in enumerate(zip(variants, audit_data(numbers.outcome), strict=True)):
        at = ("audit", "variants", number)
        if variant.low is not None:
            bounds = joined(
                numbers.one(*at, "low", write=fixed), " to ", numbers.one(*at, "high", write=fixed)
            )
            of_gap = variant.of == "gap"
            cells: tuple[Words, ...] = (bounds if of_gap else "", "", "" if of_gap else bounds, row.cells[-1])
        else:
            moved: Words = ""
            if variant.shift is not None:
                moved = numbers.one(*at, "shift", write=signed)
                if variant.band:
                    moved = joined(moved, " ± ", numbers.one(*at, "band"))
            cells = (numbers.one(*at, "before"), numbers.one(*at, "after"), moved, row.cells[-1])
        lines.append(Line(variant.name, cells, strong=variant.name == OURS))
    title = "The gap, computed in other ways"
    return Table(title, AUDIT_COLUMNS, lines, how=HOW_AUDIT, corner="computed by")


def _categories(numbers: Numbers) -> Table:
    outcome = numbers.outcome
    variants = outcome.audit.variants if outcome.audit else []
    names = list(variants[0].categories_before)
    lines = [
        Line(variant.name, tuple(_moved(numbers, number, variant, name) for name in names))
        for number, variant in enumerate(variants)
        if any(variant.moved(name) is not None for name in names)
    ]
    return Table("Shift of each category", [label(name, outcome) for name in names], lines, corner="by")


def _moved(numbers: Numbers, number: int, variant: Variant, name: str) -> Words:
    if variant.moved(name) is None:
        return NONE
    at = ("audit", "variants", number)
    return numbers.difference((*at, "categories_after", name), (*at, "categories_before", name))


def smallest(numbers: Numbers) -> Section | None:
    """The smallest shift that the run could have told."""
    outcome = numbers.outcome
    found = outcome.detectable
    if found is None:
        return None
    lines = []
    for name, category in found.categories.items():
        at = ("detectable", "categories", name)
        sides: list[Words] = []
        for side in ("understanding", "generation"):
            one = getattr(category, side)
            none = NONE if one is None else "none"
            size = numbers.at(*at, side, "shift")
            sides.append(none if size is None else joined("±", numbers.one(*at, side, "shift")))
        larger = max(
            (side for side in ("understanding", "generation") if getattr(category, side) is not None),
            key=lambda side: numbers.at(*at, side, "n"),
        )
        gaps = _gaps(numbers, *at) if category.understanding and category.generation else (NONE, NONE)
        cells = (numbers.count(*at, larger, "n"), *sides, *gaps)
        lines.append(Line(label(name, outcome), cells))
    means = (_size(numbers, "detectable", side) for side in ("understanding", "generation"))
    both = any(one.understanding and one.generation for one in found.categories.values())
    gaps = _gaps(numbers, "detectable") if both else (NONE, NONE)
    lines.append(Line(MEAN, ("", *means, *gaps), strong=True))
    power = numbers.one("detectable", "power", write=_percentage, scale=100)
    table = Table(
        "Smallest shift", DETECTABLE_COLUMNS, lines, how=detectable_note(outcome), corner="category"
    )
    lead = joined(
        "A shift of this size would have been told with a probability of at least ",
        *(power, " %. One that is smaller may well be there, unseen."),
    )
    return Section("smallest", "What this run could have seen", "Power", [table], lead=lead)


def _size(numbers: Numbers, *keys: str | int) -> Words:
    return NONE if numbers.at(*keys) is None else joined("±", numbers.one(*keys))


def _gaps(numbers: Numbers, *keys: str | int) -> tuple[Words, Words]:
    """As a gap closes, and as it widens."""
    found = numbers.outcome.detectable
    one = found.categories[str(keys[-1])] if found and len(keys) > 1 else found
    if one is not None and older(one):
        return _size(numbers, *keys, "gap"), _size(numbers, *keys, "gap")
    sizes: list[Words] = []
    for sign, way in ((MINUS, "closing"), ("+", "widening")):
        none = numbers.at(*keys, way) is None
        sizes.append("none" if none else joined(sign, numbers.one(*keys, way)))
    return sizes[0], sizes[1]


def _percentage(value: float) -> str:
    return f"{100 * value:.0f}"
