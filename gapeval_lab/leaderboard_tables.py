"""A leaderboard as tables for a terminal: plain rows first, then their layout."""

from __future__ import annotations

import datetime
import textwrap

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gapeval_lab.comparing_tables import NONE, Words, counted
from gapeval_lab.gap.records import Estimate
from gapeval_lab.leaderboard import Board, Place, Ranked
from gapeval_lab.report_cells import MINUS, draw_rows, signed, spread
from gapeval_lab.report_cells import Row as Line

DEFAULT = "delta/gap_score"
OF_EDITS = ("run", "side", "seed", "gap before → after", "told", "drawn", "reliability", "placebo")
OF_MODELS = ("model", "seed", "Gap Score [95 %]", "by chance", "told", "drawn")


def heading(ranked: Ranked) -> str:
    """'Interventions on janus/embedded: tinyworld (data a27e2f23c952), judged by exact'."""
    common = ranked.common
    of = f"Interventions on {common['model']}" if ranked.of == "interventions" else "Models"
    return f"{of}: {common['benchmark']} (data {common['data']}), judged by {common['judge']}"


def list_words(ranked: Ranked, *, top: int | None = None) -> Words:
    """A line per run, best first."""
    edits = ranked.of == "interventions"
    first = (_named(ranked.metric),) if edits or ranked.metric != "before/gap_score" else ()
    heads = OF_EDITS if edits else OF_MODELS
    columns = (heads[0], *first, *heads[1:], "")
    lines = []
    for place in ranked.places[:top]:
        own = (_value(place, ranked.metric),) if first else ()
        cells = _edit_cells(place) if edits else _model_cells(place)
        lines.append((rank(place), (cells[0], *own, *cells[1:], "; ".join(place.marks))))
    return Words(heading(ranked), columns, lines, note(ranked, top=top))


def note(ranked: Ranked, *, top: int | None = None) -> str:
    """What the ranks mean, and what is not shown."""
    end = "lower" if ranked.lower_is_better else "higher"
    said = f"ranked by {ranked.metric}, {end} is better"
    said += f"; {ranked.how}" if ranked.how else ""
    hidden = len(ranked.places) - (top or len(ranked.places))
    return said + (f"; {hidden} more rows (--top)" if hidden > 0 else "")


def rank(place: Place) -> str:
    """'3', '1–4', or '–' where no rank is claimed."""
    if place.best is None or place.worst is None:
        return "–"
    return str(place.best) if place.best == place.worst else f"{place.best}–{place.worst}"


def unfinished_words(board: Board) -> Words:
    """Runs without a result."""
    lines = [
        (one.run_id, (one.name, when(one.started), one.status.lower(), reason(one.why)))
        for one in board.unfinished
    ]
    return Words("Without a result", ("name", "started", "status", "why"), lines)


def reason(why: str, *, longest: int = 80) -> str:
    """Why a run ended, in a few words: the kind of error only where it is no message for the user."""
    return textwrap.shorten(why.removeprefix("UserError: "), longest, placeholder=" …")


def when(started: float) -> str:
    """A time of day here, to the minute."""
    return datetime.datetime.fromtimestamp(started).strftime("%Y-%m-%d %H:%M")


def closing(board: Board) -> list[str]:
    """What is not in the lists."""
    lines = list(board.problems)
    if board.trials:
        lines.append(f"left out: {counted(board.trials, 'trial')} of searches (--kind trial ranks them)")
    if board.repeated:
        lines.append(f"left out: {counted(board.repeated, 'repetition')} by reproduce (--where takes them)")
    return lines


def draw(board: Board, *, top: int | None = None) -> Group:
    """Everything, for a terminal."""
    parts: list[Table | Text] = []
    for ranked in board.lists:
        words = list_words(ranked, top=top)
        rows = [Line(label, cells) for label, cells in words.lines]
        parts += [draw_rows(words.title, words.columns, rows), Text(words.note, style="dim"), Text()]
    words = unfinished_words(board)
    if words.lines:
        rows = [Line(label, cells) for label, cells in words.lines]
        parts += [draw_rows(words.title, words.columns, rows), Text()]
    parts += [Text(line, style="yellow") for line in closing(board)]
    return Group(*parts)


def label_of(metric: str) -> str:
    """What a metric is called under a figure."""
    return "shift of the Gap Score" if metric == DEFAULT else metric


def _named(metric: str) -> str:
    return "shift [95 %]" if metric == DEFAULT else metric


def _value(place: Place, metric: str) -> str:
    if place.value is None:
        return NONE
    sign = metric.startswith("delta/") or "/delta_" in metric
    if place.low is None or place.high is None:
        return signed(place.value) if sign else f"{place.value:.3f}".replace("-", MINUS)
    return spread(Estimate(place.value, place.low, place.high), sign=sign)


def _edit_cells(place: Place) -> tuple[str, ...]:
    gaps = (NONE if gap is None else f"{gap:.3f}" for gap in (place.gap_before, place.gap_after))
    told, drawn = (NONE if one is None else signed(one.value) for one in (place.told, place.drawn))
    shares = (place.reliability.get(side) for side in ("text", "image"))
    taken = " / ".join(NONE if share is None else f"{100 * share:.0f} %" for share in shares)
    placebo = NONE if place.placebo_shift is None else signed(place.placebo_shift)
    return (
        place.name or place.recipe,
        place.direction,
        place.seed,
        " → ".join(gaps),
        told,
        drawn,
        taken,
        placebo,
    )


def _model_cells(place: Place) -> tuple[str, ...]:
    gap = spread(place.gap, sign=False) if place.gap else NONE
    if place.gap is None and place.gap_before is not None:
        gap = f"{place.gap_before:.3f}"
    chance = NONE if place.null_gap is None else f"{place.null_gap:.3f}"
    told, drawn = (NONE if one is None else spread(one, sign=False) for one in (place.told, place.drawn))
    return (place.umm, place.seed, gap, chance, told, drawn)
