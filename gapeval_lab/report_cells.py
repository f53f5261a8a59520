"""What tables in a terminal are made of: numbers as text, rows, and their layout."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from gapeval_lab.gap.records import Estimate

MINUS = "−"  # a real minus sign, as wide as the plus


@dataclass(frozen=True)
class Row:
    """One line of a table: its label and its cells."""

    label: str
    cells: tuple[str, ...]
    strong: bool = False


def signed(value: float) -> str:
    """Three decimals with a sign; an exact 0 has none."""
    if value == 0:
        return "0"
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", MINUS)


def fixed(value: float) -> str:
    """Three decimals, with a sign only where it is negative."""
    return f"{value:.3f}".replace("-", MINUS)


def hundredths(value: float) -> str:
    """A share as a whole percentage."""
    text = f"{100 * value:.0f}"
    return "0" if text == "-0" else text.replace("-", MINUS)


def nats(value: float) -> str:
    """A log-probability, with two decimals."""
    return f"{value:.2f}".replace("-", MINUS)


def spread(estimate: Estimate, *, sign: bool = True) -> str:
    """A number with its interval."""
    write = signed if sign else fixed
    return f"{write(estimate.value)} [{write(estimate.low)}, {write(estimate.high)}]"


def percent(estimate: Estimate) -> str:
    """A share as a percentage, with its interval."""
    value, low, high = (hundredths(one) for one in (estimate.value, estimate.low, estimate.high))
    return f"{value} % [{low}, {high}]"


def draw_rows(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """Rows as a table."""
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False
    )
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row.label, *row.cells, style="bold" if row.strong else None)
    return table
