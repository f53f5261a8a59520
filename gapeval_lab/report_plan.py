"""The answers of `gapeval-lab plan` as a table: plain rows, then the drawing."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gapeval_lab.planning import Answer, Plan
from gapeval_lab.report_cells import Row, draw_rows

NONE = "none"


def plan_columns(plan: Plan) -> list[str]:
    """The sizes, then what was confirmed, then what the items at hand tell."""
    sizes = [f"{size:g}" for size in plan.answers[0].items]
    return [*sizes, f"power at {plan.detect:g}", "with", "detects"]


def plan_data(plan: Plan) -> list[Row]:
    """Items per category by size of the shift, a row per test."""
    return [_row(answer) for answer in plan.answers]


def _row(answer: Answer) -> Row:
    items = [NONE if n is None else f"{n:,}" for n in answer.items.values()]
    reached = "" if answer.power is None else f"{100 * answer.power:.0f} %"
    detects = NONE if answer.detects is None else f"{answer.detects:.3f}"
    label = f"{answer.test}, {answer.of.replace('_', ' ')}"
    return Row(label, (*items, reached, f"{answer.at_hand:,}", detects))


def plan_notes(plan: Plan) -> list[str]:
    """How to read the table."""
    notes = [
        f"numbers: items per category, for a power of {100 * plan.power:g} %; 'with' so many items a test "
        "'detects' shifts from that size on",
        "power: McNemar's by its exact sum; the Gap Score's by drawing runs and bootstrapping each",
    ]
    if any(n is None for answer in plan.answers for n in answer.items.values()):
        notes.append("none: these moves cannot make so large a shift, or no number of items is enough")
    return notes


def draw_plan(plan: Plan) -> Group:
    """Assumptions, table, reading."""
    parts: list[Table | Text] = [Text("Assumed", style="bold")]
    parts += [Text(f"  {line}") for line in plan.assumed]
    parts += [
        Text(),
        draw_rows("Items per category to detect a shift of", plan_columns(plan), plan_data(plan)),
    ]
    parts += [Text(note, style="dim") for note in plan_notes(plan)]
    return Group(*parts)
