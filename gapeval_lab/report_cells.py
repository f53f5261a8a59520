"""What tables in a terminal are made of: numbers as text, rows, and their layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gapeval_lab.gap.records import Estimate

LONGEST = 16  # letters of a word that are kept together, where room is short: numbers are shorter
GUTTER = 2  # columns between two cells
_PLAIN: dict[str, Any] = {"box": None, "pad_edge": False, "header_style": "dim"}
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


def draw_rows(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    *,
    head: str = "",
    justify: Literal["left", "right"] = "right",
) -> Table:
    """Rows as a table, which takes another form where it would be too wide; no word is ever cut.

    Args:
        title: above it; may be empty.
        columns: heads of the cells' columns.
        rows: in their order.
        head: of the labels' column.
        justify: of the cells.
    """
    table = _Fitting(title=title or None, title_justify="left", title_style="bold", **_PLAIN)
    table.rows_given, table.head_given, table.cells_justify = rows, (head, *columns), justify
    table.add_column(head)
    for column in columns:
        table.add_column(column, justify=justify)
    for row in rows:
        table.add_row(row.label, *row.cells, style=_style(row))
    return table


class _Fitting(Table):
    """A table that, where it is too wide, breaks cells between words, has labels above, or is a list."""

    rows_given: Sequence[Row] = ()
    head_given: tuple[str, ...] = ()
    cells_justify: Literal["left", "right"] = "right"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [self.head_given, *((row.label, *row.cells) for row in self.rows_given)]
        columns = list(zip(*lines, strict=True))
        natural = [max(map(cell_len, column)) for column in columns]
        words = [("", *(word for cell in column for word in cell.split())) for column in columns]
        least = [min(max(map(cell_len, found)), LONGEST) for found in words]
        room = options.max_width - GUTTER * (len(columns) - 1)
        # Labels are names to be copied: they stay whole.
        whole, below = [natural[0], *least[1:]], options.max_width - GUTTER * len(columns[1:])
        if sum(natural) <= room or len(columns) == 1:
            yield from super().__rich_console__(console, options)
        elif sum(whole) <= room:
            yield from self._wrapped(lines, _shared(whole, natural, room))
        elif sum(least[1:]) <= below:
            widths = _shared(least[1:], natural[1:], below)
            yield from self._wrapped([lines[0][1:]], widths)
            for line, row in zip(lines[1:], self.rows_given, strict=True):
                yield Text(row.label, style=_style(row) or "")
                yield self._grid([line[1:]], widths, indent=GUTTER, style=_style(row))
        else:
            yield Text(str(self.title or ""), style="bold")
            for row in self.rows_given:
                yield Text(row.label, style=_style(row) or "")
                named = list(zip(self.head_given[1:], row.cells, strict=True))
                first = max(cell_len(name) for name, _ in named)
                yield self._grid(named, [first, options.max_width - first - 2 * GUTTER], indent=GUTTER)

    def _wrapped(self, lines: Sequence[tuple[str, ...]], widths: Sequence[int]) -> RenderResult:
        if self.title:
            yield Text(str(self.title), style="bold")
        labels = len(widths) == len(self.head_given)
        indent = 0 if labels else GUTTER
        yield self._grid(lines[:1], widths, indent=indent, style="dim", labels=labels)
        if len(lines) > 1:
            body = lines[1:]
            for line, row in zip(body, self.rows_given, strict=True):
                yield self._grid([line], widths, style=_style(row), labels=labels)

    def _grid(
        self,
        lines: Sequence[tuple[str, ...]],
        widths: Sequence[int],
        *,
        indent: int = 0,
        style: str | None = None,
        labels: bool = False,
    ) -> RenderableType:
        """Lines in columns of exactly those widths."""
        table = Table(show_header=False, style=style or "", **_PLAIN)
        for place, width in enumerate(widths):
            left = (labels and place == 0) or len(widths) == 2 and not labels
            table.add_column(width=width, justify="left" if left else self.cells_justify, overflow="fold")
        for line in lines:
            table.add_row(*(Text(cell) for cell in line))
        return Padding(table, (0, 0, 0, indent))


def _shared(least: Sequence[int], natural: Sequence[int], room: int) -> list[int]:
    """Widths between the least and the natural ones that fill the room; the widest give way first."""
    widths = list(natural)
    while sum(widths) > room:
        spare = [width - few for width, few in zip(widths, least, strict=True)]
        place = max(range(len(widths)), key=lambda i: (spare[i] > 0, widths[i]))
        widths[place] -= 1
    return widths


def _style(row: Row) -> str | None:
    return "bold" if row.strong else None
