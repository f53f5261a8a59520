"""What an audit found and the smallest shifts that a run could have told: rows, tables, a warning."""

from collections.abc import Sequence
from typing import Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gapeval_lab.gap.audit import MEAN, OURS
from gapeval_lab.gap.records import Audit, DetectableSide, Dispute, Variant
from gapeval_lab.outcome import Outcome
from gapeval_lab.report_cells import MINUS, Row, draw_rows, signed

NONE = "n/a"
NAMED = 3  # categories that a warning names; the rest are counted
_OTHERWISE = f"{OURS} with "

AUDIT_COLUMNS = ("before", "after", "shift", "says")


def estimators_note(outcome: Outcome) -> str:
    """What to know before believing the sign of a shift; empty where every way of computing it agrees."""
    audit = outcome.audit
    if audit is None or audit.said is None:
        return ""
    overall = next((d for d in audit.disputes if d.where == MEAN), None)
    rest = [d for d in audit.disputes if d.where != MEAN]
    said = []
    if overall is not None:
        said.append(f"Whether the gap closed depends on the estimator: {_sides(overall)}.")
    if MEAN in audit.unsure and (published := _variant(audit, "published")) is not None:
        said.append(
            f"The published estimator cannot tell: its shift {signed(published.shift or 0.0)} is within its "
            f"rounding, {published.band:.3f}."
        )
    if rest:
        shown = "; ".join(f"{_words(d.where)} ({_sides(d)})" for d in rest[:NAMED])
        more = f"; and {len(rest) - NAMED} more" if len(rest) > NAMED else ""
        start = "Also" if overall else "The sign of a category's shift depends on the estimator"
        said.append(f"{start}: {shown}{more}.")
    shift = outcome.shift.gap if outcome.shift else None
    if overall is not None and shift is not None and shift.low <= 0 <= shift.high:
        said.append("Our interval holds 0, too.")
    return " ".join(said)


def firm(outcome: Outcome) -> bool:
    """True where a warning touches something that our intervals claim: the mean's shift or a category's."""
    if outcome.audit is None or outcome.shift is None:
        return False
    claims = {name: category.gap for name, category in outcome.shift.categories.items()}
    if outcome.shift.gap is not None:
        claims[MEAN] = outcome.shift.gap
    found = (claims[d.where] for d in outcome.audit.disputes if d.where in claims)
    return any(claim.low > 0 or claim.high < 0 for claim in found)


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
    """The warning, where there is one, then what has to be known to read the tables."""
    if outcome.audit is None:
        return ["No audit: no item is scored in both directions, before and after."]
    warning = estimators_note(outcome)
    agree = "Every way of computing the gap says the same about every shift."
    return [*([warning or agree] if outcome.audit.said else []), *outcome.audit.notes]


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
        parts.append(Text("± how far rounding alone moves the published shift", style="dim"))
    return Group(*parts)


DETECTABLE_COLUMNS = ("items", "understanding", "generation", "gap")


def detectable_data(outcome: Outcome) -> list[Row]:
    """The smallest shift that the run could have told, a row per category; the means last."""
    found = outcome.detectable
    if found is None:
        return []
    rows = []
    for name, category in found.categories.items():
        sides = (category.understanding, category.generation)
        n = max(side.n for side in sides if side is not None)
        cells = (str(n), *(_side(side) for side in sides), _size(category.gap))
        rows.append(Row(_words(name), cells, strong=name in outcome.target_categories))
    means = (_size(found.understanding), _size(found.generation), _size(found.gap))
    rows.append(Row("mean", ("", *means), strong=True))
    return rows


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
        flips = "the placebo" if sides[0].source == "placebo" else "before and after (against the shift)"
        said.append(
            f"accuracies by category: exact McNemar, p under {alpha:.3g} (Holm, where one category shifts "
            f"alone), flips without an effect as in {flips}"
        )
    said.append("gaps and means: 2.8 standard errors of the shift's bootstrap")
    gaps = [one.gap for one in found.categories.values()]
    if None in gaps and any(one.understanding and one.generation for one in found.categories.values()):
        said.append("n/a: no item changed its cell there, so nothing tells how much chance moves the gap")
    if any(side.shift is None for side in sides):
        said.append("none: not even the largest possible shift")
    return "; ".join(said)


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
    if abs(shift) <= band:
        return "cannot tell"
    return "no shift" if abs(shift) <= 5e-4 else "closed" if shift < 0 else "wider"


def _said_of_bounds(low: float, high: float) -> str:
    return "closed" if high < 0 else "wider" if low > 0 else "could be either"


def _from(value: float) -> str:
    return f"{value:.3f}".replace("-", MINUS)


def _side(side: DetectableSide | None) -> str:
    if side is None:
        return NONE
    return "none" if side.shift is None else f"±{side.shift:.3f}"


def _size(value: float | None) -> str:
    return NONE if value is None else f"±{value:.3f}"


def _variant(audit: Audit, name: str) -> Variant | None:
    return next((variant for variant in audit.variants if variant.name == name), None)


def _words(name: str) -> str:
    return name.replace("_", " ")
