"""What a page is made of, as plain data: numbers, tables, figures, notes, sections. Knows no HTML.

Words that are shown are a string, a `Number`, an `Interval`, or a tuple of these. Strings are shown as they
are, whatever they hold: the layout escapes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol


@dataclass(frozen=True)
class Number:
    """A number as it is shown, with where it comes from.

    Attributes:
        text: what is read, such as "−0.142".
        path: where it stands in the run's `outcome.json`, as a JSON pointer (RFC 6901).
        metric: its key in MLflow, empty where MLflow lacks it; step: of that metric.
        scale: the shown number is so many times the one that it comes from: 100 for a percentage.
        run: the run's id, where a page tells of several.
        total: the number is the sum of these fields of what stands at `path`.
        less: what stands there, as a JSON pointer, is taken away.
    """

    text: str
    path: str = ""
    metric: str = ""
    step: int = 0
    scale: int = 1
    run: str = ""
    total: tuple[str, ...] = ()
    less: str = ""


@dataclass(frozen=True)
class Interval:
    """The two ends of an interval; in tables it stands small under its number."""

    low: Number
    high: Number


Piece = str | Number | Interval
Words = Piece | tuple[Piece, ...]


class Block(Protocol):
    """Anything that a section shows; `template` is the file that lays it out."""

    @property
    def template(self) -> str:
        """The name of a file in `templates/`."""


@dataclass(frozen=True)
class Line:
    """A row of a table: its label and its cells.

    Attributes:
        strong: set apart, as a mean is.
        shades: of each cell, 0 (none) to 1; the number stands in it all the same.
    """

    label: Words
    cells: tuple[Words, ...]
    strong: bool = False
    shades: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """Lines under columns; the first column, the labels', is headed by `corner`.

    Attributes:
        caption: its title.
        how: how to read it, in a sentence or two.
        words: True where cells are text, which is set left and wraps.
    """

    template: ClassVar[str] = "table.html.j2"
    caption: str
    columns: Sequence[str]
    lines: Sequence[Line]
    how: Words = ""
    corner: str = ""
    words: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure, see `svg.inline`. `alt` tells what it shows to who cannot see it; `how` how to read it."""

    template: ClassVar[str] = "drawing.html.j2"
    svg: str
    caption: str
    alt: str
    how: Words = ""


@dataclass(frozen=True)
class Note:
    """A paragraph; "warning" for what a reader must not miss."""

    template: ClassVar[str] = "note.html.j2"
    words: Words
    tone: Literal["plain", "quiet", "warning"] = "plain"


@dataclass(frozen=True)
class Terms:
    """Names with what they stand for, one under the other."""

    template: ClassVar[str] = "terms.html.j2"
    rows: Sequence[tuple[str, Words]]


@dataclass(frozen=True)
class Code:
    """Text with its own lines, such as a recipe."""

    template: ClassVar[str] = "code.html.j2"
    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that open on demand; in print they are open."""

    template: ClassVar[str] = "fold.html.j2"
    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Beside:
    """Blocks side by side where there is room, else one under the other."""

    template: ClassVar[str] = "beside.html.j2"
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it; `anchor` is its address in the page, `short` its link's text."""

    anchor: str
    title: str
    short: str
    blocks: Sequence[Block]
    lead: Words = ""


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: of the browser's tab; heading: what the page says first.
        about: lines under the heading; warning: what has to be known before believing it.
        styles, scripts: files in `static/` beside those that every page has.
        foot: the last line.
    """

    title: str
    heading: Words
    about: Sequence[Words]
    sections: Sequence[Section]
    warning: Note | None = None
    kicker: str = ""
    styles: Sequence[str] = ()
    scripts: Sequence[str] = ()
    foot: Words = ""
