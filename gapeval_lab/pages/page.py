"""Lays a page out as one HTML file that fetches nothing. Knows jinja2, and nothing of runs.

Everything is escaped; a policy in the page itself forbids the browser to fetch or send anything.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gapeval_lab.pages.parts import Block, Interval, Number, Page, Piece, Words

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

HERE = Path(__file__).parent
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLES, SCRIPTS = ("page.css",), ("page.js",)


def render(page: Page) -> str:
    """The page as HTML; the same bytes for the same page."""
    from markupsafe import Markup

    def inlined(names: tuple[str, ...]) -> Markup:
        return Markup("\n".join((HERE / "static" / name).read_text(encoding="utf-8") for name in names))

    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            policy=POLICY,
            style=inlined((*STYLES, *page.styles)),
            script=inlined((*SCRIPTS, *page.scripts)),
        )
    )


def written(words: Words) -> Markup:
    """Words as HTML: numbers as elements that say where they come from, all else escaped."""
    from markupsafe import Markup

    pieces = words if isinstance(words, tuple) else (words,)
    return Markup("").join(_piece(one) for one in pieces)


def _piece(piece: Piece) -> Markup:
    from markupsafe import escape

    if isinstance(piece, Number):
        return _number(piece)
    return _interval(piece) if isinstance(piece, Interval) else escape(piece)


def _interval(interval: Interval) -> Markup:
    from markupsafe import Markup

    low, high = _number(interval.low), _number(interval.high)
    return Markup('<span class="ci"> [{}, {}]</span>').format(low, high)


def _number(number: Number) -> Markup:
    from markupsafe import Markup, escape

    origin = {"run": number.run, "path": number.path, "metric": number.metric, "less": number.less}
    if number.metric and number.step:
        origin["step"] = str(number.step)
    if number.path and number.scale != 1:
        origin["scale"] = str(number.scale)
    if number.total:
        origin["total"] = " ".join(number.total)
    told = Markup("").join(Markup(' data-{}="{}"').format(name, one) for name, one in origin.items() if one)
    return Markup('<span class="n"{}>{}</span>').format(told, escape(number.text))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def laid_out(block: Block) -> Markup:
        return Markup(made.get_template(block.template).render(block=block))

    made.filters["words"] = written
    made.filters["block"] = laid_out
    return made
