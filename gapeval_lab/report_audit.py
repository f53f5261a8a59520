"""What an audit found and the smallest shifts that a run could have told: rows, tables, a warning."""

from collections.abc import Sequence
from typing import Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gapeval_lab.gap.audit import MEAN, OFFICIAL, OURS, SMALLEST
from gapeval_lab.gap.records import (
    Audit,
    Detectable,
    DetectableCategory,
    DetectableSide,
    Dispute,
    Estimate,
    Variant,
)
from gapeval_lab.outcome import Outcome
from gapeval_lab.report_cells import MINUS, Row, draw_rows, signed

NONE = "n/a"
NAMED = 3  # categories that a warning names; the rest are counted
_OTHERWISE = f"{OURS} with "

AUDIT_COLUMNS = ("before", "after", "shift", "sign")


def estimators_note(outcome: Outcome, *, see: str = "") -> str:
    """What to know before believing the sign of a shift, at a glance.

    Which ways of computing the gap contradict what an interval of ours claims; where they contradict
    nothing that is claimed, one sentence; empty where they agree.

    Args:
        outcome: an audited run.
        see: where the rest stands; by default the command that prints it.
    """
    audit = outcome.audit
    if audit is None or audit.said is None:
        return ""
    if claimed := _claimed(outcome):
        return _said(audit, claimed)
    where = [dispute.where for dispute in audit.disputes]
    if not where:
        return ""
    start = "A shift this small has no sign on which all ways of computing the gap agree"
    if MEAN not in where:
        start = "Ways of computing the gap differ on the sign of a category's shift that is too small to tell"
    return f"{start}; see {see or f'`gapeval-lab audit {outcome.run_id}`'}."


def firm(outcome: Outcome) -> bool:
    """True where a warning touches something that our intervals claim: the mean's shift or a category's."""
    return outcome.audit is not None and outcome.audit.said is not None and bool(_claimed(outcome))


def _claimed(outcome: Outcome) -> list[str]:
    """The shifts that an interval of ours claims and another way of computing the gap does not share."""
    audit = outcome.audit
    if audit is None or outcome.shift is None:
        return []
    claims = {name: category.gap for name, category in outcome.shift.categories.items()}
    if outcome.shift.gap is not None:
        claims[MEAN] = outcome.shift.gap
    doubted = [dispute.where for dispute in audit.disputes] + [MEAN] * (MEAN in audit.unsure)
    return [name for name in dict.fromkeys(doubted) if name in claims and _leaves_out_0(claims[name])]


def _leaves_out_0(claim: Estimate) -> bool:
    return claim.low > 0 or claim.high < 0


def _said(audit: Audit, names: Sequence[str]) -> str:
    """Who says what about the shifts of these names."""
    disputes = [dispute for dispute in audit.disputes if dispute.where in names]
    overall = next((d for d in disputes if d.where == MEAN), None)
    rest = [d for d in disputes if d.where != MEAN]
    said = []
    if overall is not None:
        said.append(f"Whether the gap closed depends on the estimator: {_sides(overall)}.")
    if MEAN in names and MEAN in audit.unsure and (published := _variant(audit, OFFICIAL)) is not None:
        said.append(
            f"The published estimator cannot tell: its shift {signed(published.shift or 0.0)} is within its "
            f"rounding, {published.band:.3f}."
        )
    if rest:
        shown = "; ".join(f"{_words(d.where)} ({_sides(d)})" for d in rest[:NAMED])
        more = f"; and {len(rest) - NAMED} more" if len(rest) > NAMED else ""
        start = "Also" if overall else "The sign of a category's shift depends on the estimator"
        said.append(f"{start}: {shown}{more}.")
    return " ".join(said)


HOW_AUDIT = (
    "Every row is computed from the same verdicts. The sign is that of the shift alone, however small. ±: "
    "how far rounding alone moves the published shift."
)


def audit_data(outcome: Outcome) -> list[Row]:
    """Every way of computing the gap, a row each: before, after, shift, and what the shift says."""
    if outcome.audit is None:
        return []
    return [_row(variant) for variant in outcome.audit.variants]


def _row(variant: Variant) -> Row:
    if variant.low is not None and variant.high is not None:
        bounds = f"{_from(variant.low)} to {_from(variant.high)}"
        if variant.of == "gap":
            return Row(variant.name, (bounds, NONE, "", ""))
        return Row(variant.name, ("", "", bounds, _said_of_bounds(variant.low, variant.high)))
    states = tuple(NONE if x is None else f"{x:.3f}" for x in (variant.before, variant.after))
    moved, says = "", ""
    if variant.shift is not None:
        moved = signed(variant.shift) + (f" ± {variant.band:.3f}" if variant.band else "")
        says = _says(variant.shift, variant.band)
    return Row(variant.name, (*states, moved, says), strong=variant.name == OURS)


def category_data(outcome: Outcome) -> list[Row]:
    """The shift of each category, a row per way of computing it; in the order of the outcome's."""
    if outcome.audit is None or outcome.after is None:
        return []
    names = category_columns(outcome, raw=True)
    rows = []
    for variant in outcome.audit.variants:
        moves = [variant.moved(name) for name in names]
        if any(move is not None for move in moves):
            cells = tuple(NONE if move is None else signed(move) for move in moves)
            rows.append(Row(variant.name, cells, strong=variant.name == OURS))
    return rows


def category_columns(outcome: Outcome, *, raw: bool = False) -> list[str]:
    """The categories that an audit has, as words or as they are."""
    first = outcome.audit.variants[0].categories_before if outcome.audit else {}
    return [name if raw else _words(name) for name in first]


def audit_notes(outcome: Outcome) -> list[str]:
    """Who says what about the signs, also of shifts too small to tell; then what the tables take to read."""
    if outcome.audit is None:
        return ["No audit: no item is scored in both directions, before and after."]
    audit, notes = outcome.audit, []
    if audit.said is not None:
        every = [MEAN, *(d.where for d in audit.disputes)]
        notes = [_said(audit, every) or "Every way of computing the gap says the same about every shift."]
    shift = outcome.shift.gap if outcome.shift else None
    if MEAN in [dispute.where for dispute in audit.disputes] and shift and not _leaves_out_0(shift):
        notes[0] += (
            f" The interval of our own shift, {signed(shift.low)} to {signed(shift.high)}, holds 0: the run "
            "claims no sign of the mean."
        )
    return [*notes, *audit.notes]


def draw_audit(outcome: Outcome) -> Group:
    """The audit as tables for a terminal."""
    parts: list[Table | Text] = []
    for note in audit_notes(outcome):
        parts.append(Text(note))
    if outcome.audit is not None:
        parts += [Text(), draw_rows("The gap, computed in other ways", AUDIT_COLUMNS, audit_data(outcome))]
        if rows := category_data(outcome):
            title = "Shift of each category"
            parts += [Text(), draw_rows(title, category_columns(outcome), rows)]
        parts.append(Text(HOW_AUDIT, style="dim"))
    return Group(*parts)


DETECTABLE_COLUMNS = ("items", "understanding", "generation", "gap closes", "gap widens")


def detectable_data(outcome: Outcome) -> list[Row]:
    """The smallest shift that the run could have told, a row per category; the means last."""
    found = outcome.detectable
    if found is None:
        return []
    rows = []
    for name, category in found.categories.items():
        sides = (category.understanding, category.generation)
        n = max(side.n for side in sides if side is not None)
        gaps = (_size(category, "closing"), _size(category, "widening")) if all(sides) else (NONE, NONE)
        cells = (str(n), *(_side(side) for side in sides), *gaps)
        rows.append(Row(_words(name), cells, strong=name in outcome.target_categories))
    means = [NONE if x is None else f"±{x:.3f}" for x in (found.understanding, found.generation)]
    both = any(one.understanding and one.generation for one in found.categories.values())
    gaps = (_size(found, "closing"), _size(found, "widening")) if both else (NONE, NONE)
    rows.append(Row("mean", ("", *means, *gaps), strong=True))
    return rows


def older(found: Detectable | DetectableCategory) -> bool:
    """True of a record that has one size of the gap's shift, from its errors, and not one for each way."""
    return found.gap is not None and found.closing is None and found.widening is None


def detectable_note(outcome: Outcome) -> str:
    """What the numbers of `detectable_data` are, in plain words."""
    found = outcome.detectable
    if found is None:
        return ""
    sides = [
        side for one in found.categories.values() for side in (one.understanding, one.generation) if side
    ]
    said = []
    if sides:
        alpha = min(side.alpha for side in sides)
        holm = " (Holm, where one category shifts alone)" if len(found.categories) > 1 else ""
        flips = "its own that went against its shift"
        if any(side.source == "placebo" for side in sides):
            flips += ", or its placebo's where these are more"
        said.append(f"Accuracies by category: exact McNemar, p under {alpha:.3g}{holm}.")
        said.append("Gaps and means: the 95 % interval leaves out 0.")
        said.append(f"Flips beside the effect: {flips}.")
    two = [one for one in found.categories.values() if one.understanding and one.generation]
    if older(found):
        said.append("Gaps: 2.8 standard errors of the shift; `gapeval-lab audit` has them by drawn runs.")
    elif two and (found.closing is None or any(one.closing is None for one in two)):
        said.append("none, of a gap that closes: not even one that closes wholly would be told.")
    if any(one.widening is None for one in two if not older(one)):
        said.append("none, of a gap that widens: there are too few items.")
    if any(side.shift is None for side in sides):
        said.append("none, of an accuracy: not even the largest possible shift.")
    return " ".join(said)


def draw_detectable(outcome: Outcome) -> Group:
    """The smallest shifts as a table for a terminal."""
    power = outcome.detectable.power if outcome.detectable else 0.8
    title = f"Smallest shift this run could see, {100 * power:.0f} % power"
    return Group(
        draw_rows(title, DETECTABLE_COLUMNS, detectable_data(outcome)),
        Text(detectable_note(outcome), style="dim"),
    )


def _sides(dispute: Dispute) -> str:
    return f"closed by {_list(dispute.closed)}; wider by {_list(dispute.wider)}"


def _list(names: Sequence[str]) -> str:
    """Estimators by name; of ours with other constants, three at most, or how many."""
    others = [name for name in names if not name.startswith(_OTHERWISE)]
    ways = [name.removeprefix(_OTHERWISE) for name in names if name.startswith(_OTHERWISE)]
    if len(ways) > 3:
        return ", ".join([*others, f"{len(ways)} variants of ours"])
    return ", ".join([*others, *([_OTHERWISE + ", ".join(ways)] if ways else [])])


def _says(shift: float, band: float) -> Literal["closed", "wider", "no shift", "cannot tell"]:
    if band and abs(shift) <= band:
        return "cannot tell"
    return "no shift" if abs(shift) <= SMALLEST else "closed" if shift < 0 else "wider"


def _said_of_bounds(low: float, high: float) -> str:
    return "closed" if high < 0 else "wider" if low > 0 else "could be either"


def _from(value: float) -> str:
    return f"{value:.3f}".replace("-", MINUS)


def _side(side: DetectableSide | None) -> str:
    if side is None:
        return NONE
    return "none" if side.shift is None else f"±{side.shift:.3f}"


def _size(found: Detectable | DetectableCategory, way: Literal["closing", "widening"]) -> str:
    if older(found):
        return f"±{found.gap:.3f}"
    size = getattr(found, way)
    return "none" if size is None else f"{MINUS if way == 'closing' else '+'}{size:.3f}"


def _variant(audit: Audit, name: str) -> Variant | None:
    return next((variant for variant in audit.variants if variant.name == name), None)


def _words(name: str) -> str:
    return name.replace("_", " ")
