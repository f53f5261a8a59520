"""The page of a leaderboard: a figure and a table for every list."""

from __future__ import annotations

from collections.abc import Sequence

from gapeval_lab.comparing_tables import counted
from gapeval_lab.gap.records import Estimate
from gapeval_lab.leaderboard import Board, Place, Ranked
from gapeval_lab.leaderboard_tables import closing, heading, label_of, list_words, rank, unfinished_words
from gapeval_lab.pages.figures import Shifts, draw_shifts
from gapeval_lab.pages.page import render
from gapeval_lab.pages.parts import Block, Drawing, Line, Note, Page, Section, Table
from gapeval_lab.pages.svg import inline
from gapeval_lab.report_cells import spread

DRAWN = 25  # rows of a figure


def leaderboard_page(board: Board) -> str:
    """The page as HTML, with all rows."""
    counts = {"interventions": 0, "models": 0}
    sections = []
    for number, ranked in enumerate(board.lists, start=1):
        counts[ranked.of] += 1
        sections.append(_list(ranked, number, f"{ranked.of.capitalize()} {counts[ranked.of]}"))
    words = unfinished_words(board)
    notes: list[Block] = [Note(line, "warning") for line in closing(board)]
    if words.lines:
        lines = [Line(label, cells) for label, cells in words.lines]
        notes.insert(0, Table(words.title, words.columns, lines, corner="run", words=True))
    if notes:
        sections.append(Section("left", "Not ranked", "Not ranked", notes))
    runs = sum(len(ranked.places) for ranked in board.lists if ranked.of == "interventions")
    models = len({place.umm for ranked in board.lists if ranked.of == "models" for place in ranked.places})
    heading_words = f"{counted(runs, 'intervention')} and {counted(models, 'model')}, ranked"
    about = "A rank is a range: runs that the data cannot tell apart are in no order. Lists are apart where "
    about += "items, judges or models differ."
    return render(
        Page(
            title="Leaderboard",
            kicker="Leaderboard",
            heading=heading_words,
            about=[about],
            sections=sections,
        )
    )


def _list(ranked: Ranked, number: int, short: str) -> Section:
    words = list_words(ranked)
    blocks: list[Block] = []
    if drawing := _drawing(ranked, number):
        blocks.append(drawing)
    lines = [Line(label, cells) for label, cells in words.lines]
    blocks.append(Table("All rows", words.columns, lines, how=words.note, corner="rank"))
    return Section(f"list-{number}", heading(ranked), short, blocks)


def _drawing(ranked: Ranked, number: int) -> Drawing | None:
    """The best rows with their intervals; None where nothing has one, or where 0 says nothing."""
    shown: Sequence[tuple[Place, Estimate]] = [
        (place, Estimate(place.value, place.low, place.high))
        for place in ranked.places
        if place.value is not None and place.low is not None and place.high is not None
    ][:DRAWN]
    if not shown or not ranked.metric.startswith("delta/"):
        return None
    labels = [f"{rank(place)}  {place.name or place.umm}, seed {place.seed}" for place, _ in shown]
    data = Shifts(labels, [one for _, one in shown], [None] * len(shown))
    alt = "; ".join(f"{label}: {spread(one)}" for label, (_, one) in zip(labels, shown, strict=True))
    best = f"The best {len(shown)}" if len(shown) < len(ranked.places) else "All"
    return Drawing(
        inline(draw_shifts(data, xlabel=label_of(ranked.metric)), name=f"list-{number}"),
        f"{best} by {label_of(ranked.metric)}",
        alt,
        "Lines are 95 % intervals.",
    )
