"""What came of a repetition, as tables in a terminal. `*_data` computes plain rows, `draw_*` lays out."""

from collections.abc import Sequence

from rich.console import Group as Lines
from rich.text import Text

from gapeval_lab.report_cells import MINUS, Row, draw_rows
from gapeval_lab.reproducing_compare import Compared, Comparison, Group
from gapeval_lab.reproducing_differences import Difference

METRIC_COLUMNS = ("then", "now", "match")
REST = "every other value of the record"
COUNT_COLUMNS = ("compared", "exact", "within rounding", "differ")


def metric_data(metrics: Sequence[Compared]) -> list[Row]:
    """A row per metric; a strong one differs."""
    return [
        Row(one.name, (_number(one.then), _number(one.now), _match(one)), strong=one.status == "differs")
        for one in metrics
    ]


def count_data(comparison: Comparison) -> list[Row]:
    """A row per kind of item and per section of the record; sections that are exact are one row."""
    rows = []
    exact = [group.n for group in comparison.record if group.exact == group.n and not group.unknown]
    parted = [group for group in comparison.record if group.exact != group.n or group.unknown]
    whole = [Group(REST, n=sum(exact), exact=sum(exact), within=0, differs=0)] if exact else []
    for group in (*comparison.items, *parted, *whole):
        same = f"{group.exact}" + (f" ({group.unknown} not kept)" if group.unknown else "")
        cells = (str(group.n), same, str(group.within), str(group.differs))
        rows.append(Row(group.name, cells, strong=bool(group.differs)))
    return rows


def draw_comparison(
    comparison: Comparison, differences: Sequence[Difference], *, then: str, now: str
) -> Lines:
    """All of it, the answer first.

    Args:
        comparison: of both outcomes.
        differences: what else is not as it was.
        then, now: the runs' ids.
    """
    parts: list[object] = [
        Text(comparison.verdict, style="bold"),
        Text(f"{then} then, {now} now", style="dim"),
        Text(),
        draw_rows("Metrics", METRIC_COLUMNS, metric_data(comparison.metrics)),
        Text(),
        draw_rows("Items, and the record", COUNT_COLUMNS, count_data(comparison)),
        Text(),
    ]
    for one in comparison.single:
        parts.append(Text(f"{one.name}: {_match(one)}" + (f" ({one.note})" if one.note else "")))
    for group in (*comparison.items, *comparison.record):
        if group.differs or group.note:
            listed = ", ".join(group.first) + (" ..." if group.differs > len(group.first) else "")
            parts.append(
                Text("; ".join(word for word in (f"{group.name}: {listed}".rstrip(": "), group.note) if word))
            )
    if comparison.status != "exact" or differences:
        parts += [Text(), draw_differences(differences, causes=comparison.status != "exact")]
    return Lines(*parts)  # type: ignore[arg-type]


def draw_differences(differences: Sequence[Difference], *, causes: bool = False) -> Lines:
    """A line per difference; `causes` says that something came out otherwise."""
    if not differences:
        return Lines(Text("Nothing differs from then: data, settings, code, versions, machine."))
    title = "Not as it was then" + (", and may be the cause" if causes else "")
    lines = [Text(title, style="bold"), *(Text(f"  {one.told()}") for one in differences)]
    return Lines(*lines)


def _match(one: Compared) -> str:
    if one.status == "within":
        return one.note if one.note.startswith("within") else "within rounding"
    return {"exact": "exact", "differs": "DIFFERS", "unknown": "unknown"}[one.status]


def _number(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "none" if value is None else f"{value:.6g}".replace("-", MINUS)
