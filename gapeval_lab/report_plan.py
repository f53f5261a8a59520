"""The answers of `gapeval-lab plan` as tables: plain rows, then the drawing."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gapeval_lab.planning import Answer, Plan
from gapeval_lab.report_cells import Row, draw_rows

NO_ITEMS = "cannot"
NONE = "none"

GAP_COLUMNS = ("gap before", "shift")


def plan_columns(plan: Plan, test: str) -> list[str]:
    """Of the Gap Score, the gap and its way; the sizes; what was confirmed; what the items at hand tell."""
    sizes = [f"{size:g}" for size in plan.answers[0].items]
    found = next(answer for answer in plan.answers if answer.test == test)
    first = GAP_COLUMNS if found.way else ()
    return [*first, *sizes, f"power at {plan.detect:g}", f"{plan.answers[0].at_hand:,} items tell"]


def plan_data(plan: Plan, test: str) -> list[Row]:
    """Items per category by size of the shift, a row per direction, or per category and of the mean."""
    return [_row(answer) for answer in plan.answers if answer.test == test]


def _row(answer: Answer) -> Row:
    first = () if answer.way is None or answer.gap is None else (f"{answer.gap:.3f}", answer.way)
    items = [NO_ITEMS if n is None else f"{n:,}" for n in answer.items.values()]
    reached = ""
    if answer.power is not None:
        reached = (
            f"{100 * answer.power:.0f}" + (f" ± {100 * answer.error:.0f}" if answer.error else "") + " %"
        )
    detects = NONE if answer.detects is None else f"{answer.detects:.3f}"
    return Row(_of(answer), (*first, *items, reached, detects), strong=answer.of.startswith("mean"))


def plan_notes(plan: Plan) -> list[str]:
    """How to read the tables, and why there is no number where there is none."""
    gaps = [answer for answer in plan.answers if answer.way]
    notes = [
        f"Numbers are items per category. With so many or more, a shift of that size is told with a power of "
        f"{100 * plan.power:g} %; the last column: the smallest shift that the items at hand tell so often.",
        "McNemar's power is exact. The Gap Score's comes from drawn runs, each bootstrapped as a report does "
        "it: its items are rounded up to two digits, and right to about 10 %.",
    ]
    if any(answer.way == "closes" for answer in gaps):
        notes.append(
            "A gap is a size without a sign: near 0 chance alone makes it larger. One that closes almost "
            "wholly is therefore harder to tell than one that closes by half."
        )
    for answer in plan.answers:
        said: dict[str, list[str]] = {}
        for size, reason in answer.reasons.items():
            said.setdefault(reason, []).append(f"{size:g}")
        notes += [
            f"{NO_ITEMS}: {_of(answer)}, {', '.join(sizes)}: {reason}." for reason, sizes in said.items()
        ]
    unseen = [_of(answer) for answer in plan.answers if answer.detects is None]
    if unseen:
        notes.append(f"{NONE}: the items at hand tell no shift of {_listed(unseen)} that goes this way.")
    return notes


def draw_plan(plan: Plan) -> Group:
    """Assumptions, tables, reading."""
    parts: list[Table | Text] = [Text("Assumed", style="bold")]
    parts += [Text(f"  {line}") for line in plan.assumed]
    titles = {
        "McNemar": "Items per category to tell a shift of accuracy by",
        "Gap Score": "Items per category to tell a shift of the gap by",
    }
    for test, title in titles.items():
        parts += [Text(), draw_rows(title, plan_columns(plan, test), plan_data(plan, test))]
    parts.append(Text())
    parts += [Text(note, style="dim") for note in plan_notes(plan)]
    return Group(*parts)


def _of(answer: Answer) -> str:
    return answer.of.replace("_", " ")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
