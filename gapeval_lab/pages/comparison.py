"""The page of several runs side by side: the answer, shifts, pairs, categories, items that they part on.

Numbers of single runs are those of their Outcomes and say so; differences between runs are the comparison's.
"""

from __future__ import annotations

from collections.abc import Sequence

from gapeval_lab.comparing import Comparison, Pair
from gapeval_lab.comparing_runs import Run
from gapeval_lab.comparing_tables import (
    RUN_COLUMNS,
    Words,
    edit_words,
    pair_words,
    pooled_words,
    remarks,
    run_words,
    setting_words,
    title,
)
from gapeval_lab.outcome import Outcome
from gapeval_lab.pages.comparison_items import disagreements
from gapeval_lab.pages.figures import Shifts, draw_shifts
from gapeval_lab.pages.numbers import Numbers, joined
from gapeval_lab.pages.page import render
from gapeval_lab.pages.parts import Beside, Block, Drawing, Line, Note, Page, Section, Table
from gapeval_lab.pages.svg import inline
from gapeval_lab.report_cells import spread

WHOLE = 10_000  # letters of a setting: a page wraps them
FOREST = (
    "A diamond is the run's shift, a hollow square its placebo's; lines are 95 % intervals. Left of 0 the "
    "gap closed."
)


def comparison_page(comparison: Comparison, runs: Sequence[Run]) -> str:
    """The page as HTML.

    Args:
        comparison: of the runs.
        runs: in the comparison's order, with their outcomes on this disk.
    """
    outcomes = [Outcome.load(run.place) for run in runs]
    sections = [_runs(comparison, runs, outcomes), _pairs(comparison)]
    if comparison.pooled:
        tables = [_table(words) for words in pooled_words(comparison)]
        sections.append(Section("seeds", "Over seeds", "Seeds", tables))
    sections += [
        section
        for section in (
            _categories(comparison),
            disagreements(comparison, runs, outcomes),
            _settings(comparison),
        )
        if section is not None
    ]
    names = [title(row, comparison) for row in comparison.rows]
    page = Page(
        title=f"{len(runs)} runs compared",
        kicker="Runs side by side",
        heading=headline(comparison),
        about=["; ".join(names)],
        sections=sections,
        styles=("gallery.css",),
        scripts=("gallery.js",),
    )
    return render(page)


def headline(comparison: Comparison) -> str:
    """What the pairs say, in one sentence."""
    base = comparison.reference
    told = [pair for pair in comparison.pairs if pair.gap is not None]
    if not told:
        return f"No Gap Score can be compared with that of run {base}"
    if len(told) == 1 and told[0].gap is not None:
        pair, gap = told[0], told[0].gap
        if _side(pair) == 0:
            return (
                f"No difference of the gap can be told between runs {pair.number} and {base}: {spread(gap)}"
            )
        which = "smaller" if _side(pair) < 0 else "larger"
        return f"Run {pair.number} ends with a {which} gap than run {base}: {spread(gap)}"
    smaller, larger = (sum(_side(pair) == side for pair in told) for side in (-1, 1))
    rest = len(told) - smaller - larger
    if rest == len(told):
        return f"No difference of the gap can be told between run {base} and any of the other {rest}"
    found = [f"{n} with a {which} gap" for n, which in ((smaller, "smaller"), (larger, "larger")) if n]
    found += [f"{rest} with one that cannot be told apart"] if rest else []
    return f"Against run {base}, {len(told)} runs end: {', '.join(found)}"


def _side(pair: Pair) -> int:
    """-1 where the run's gap is surely smaller, 1 where it is larger, else 0."""
    if pair.gap is None:
        return 0
    return -1 if pair.gap.high < 0 else int(pair.gap.low > 0)


def _runs(comparison: Comparison, runs: Sequence[Run], outcomes: Sequence[Outcome]) -> Section:
    blocks: list[Block] = [Note(line, "warning") for line in remarks(comparison)]
    shifted = [row for row in comparison.rows if row.shift is not None]
    if shifted:
        data = Shifts(
            [title(row, comparison) for row in shifted],
            [row.shift for row in shifted if row.shift],
            [row.placebo_shift for row in shifted],
        )
        figure = draw_shifts(data, xlabel="shift of the Gap Score, after minus before")
        alt = "; ".join(
            f"{label}: {spread(shift)}" for label, shift in zip(data.labels, data.shift, strict=True)
        )
        blocks.append(Drawing(inline(figure, name="forest"), "Shift of the Gap Score, by run", alt, FOREST))
    words, lines = run_words(comparison), []
    for (label, cells), run, outcome in zip(words.lines, runs, outcomes, strict=True):
        if run.summary.shift is None:
            lines.append(Line(label, cells))
            continue
        of = Numbers(outcome, run=outcome.run_id)
        gaps = joined(of.one("before", "gap", "gap", "value"), " → ", of.one("after", "gap", "gap", "value"))
        moved = [of.spread("shift", name) for name in ("gap", "understanding", "generation")]
        lines.append(Line(label, (gaps, *moved)))
    blocks.append(Table(words.title, RUN_COLUMNS, lines, how=words.note, corner="run"))
    edits = edit_words(comparison)
    if edits.lines:
        blocks.append(_table(edits, corner="run"))
    return Section("runs", "The runs", "Runs", blocks)


def _pairs(comparison: Comparison) -> Section:
    words = pair_words(comparison)
    blocks: list[Block] = [_table(words, corner="runs")]
    if not words.lines:
        blocks = [Note("No run can be compared with the reference; the reasons stand above.", "warning")]
    lead = "On the items that both were asked, verdict by verdict; the gap is that of each run's last state."
    return Section("pairs", words.title, "Pairs", blocks, lead=lead)


def _categories(comparison: Comparison) -> Section | None:
    """A small figure per category, the runs as rows."""
    names = list(dict.fromkeys(name for row in comparison.rows for name in row.categories))
    drawings = []
    for number, name in enumerate(names):
        rows = [
            (f"{row.number} {row.name}, seed {row.seed}", cell)
            for row in comparison.rows
            if (cell := row.categories.get(name)) and cell.gap
        ]
        if not rows:
            continue
        data = Shifts(
            [label for label, _ in rows],
            [cell.gap for _, cell in rows if cell.gap],
            [cell.placebo for _, cell in rows],
        )
        words = name.replace("_", " ")
        edited = any(name in row.target.split(", ") for row in comparison.rows)
        figure = inline(draw_shifts(data, xlabel="shift of the gap"), name=f"category-{number}")
        alt = "; ".join(
            f"{label}: {spread(shift)}" for label, shift in zip(data.labels, data.shift, strict=True)
        )
        drawings.append(Drawing(figure, words + (" (edited)" if edited else ""), alt))
    if not drawings:
        return None
    return Section("categories", "Category by category", "Categories", [Beside(drawings)], lead=FOREST)


def _settings(comparison: Comparison) -> Section | None:
    words = setting_words(comparison, longest=WHOLE, own=True)
    if not words.lines:
        return None
    table = Table(
        "Settings, versions and data in which the runs differ", words.columns, _lines(words), words=True
    )
    return Section("differs", words.title, "Settings", [table])


def _table(words: Words, *, corner: str = "") -> Table:
    return Table(words.title, words.columns, _lines(words), how=words.note, corner=corner)


def _lines(words: Words) -> list[Line]:
    return [Line(label, cells) for label, cells in words.lines]
