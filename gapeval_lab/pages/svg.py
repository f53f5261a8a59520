"""A matplotlib figure as SVG inside a page: scalable, with real text, the same bytes every time.

Figures are drawn about as wide as a phone, so that their text is readable there, and grow on a desk.
Text and axes take the colour of the page's text, so that they are seen on a dark page, too.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any

WIDTH = 5.0  # inches; with 72 points each, 360 pixels

# Okabe and Ito's colours, which people of all colour visions tell apart. Never the only cue.
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7"),
)
GREY = "#7f7f7f"
INK, FAINT, PAPER = "#010203", "#040506", "#070809"
"""Colours of text, of guide lines and of the page, for matplotlib; `inline` makes them the page's own."""

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "text.color": INK,
    "text.parse_math": False,  # a category's name may hold a dollar sign
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "axes.unicode_minus": True,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """What figures of a page have in common; draw inside it."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        yield


def inline(figure: Any, *, name: str) -> str:
    """The figure as an `<svg>` element.

    Args:
        figure: matplotlib's, drawn inside `style()`.
        name: letters, digits and '-', unlike that of any other figure in the page; starts its ids.
    """
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (\d[\d.]*px) [^\";]*", r"font: \1 var(--sans)", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", text, count=1)
    text = re.sub(r"\n\s*", "\n", text)
    return text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)").replace(PAPER, "var(--paper)")
