"""A comparison as tables for a terminal: plain rows first, then their layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gapeval_lab.comparing import Comparison, Pair, Row, Test
from gapeval_lab.gap.records import Estimate
from gapeval_lab.outcome import QUALITIES
from gapeval_lab.report_cells import MINUS, draw_rows, signed, spread
from gapeval_lab.report_cells import Row as Line

NONE = "n/a"
SIGNIFICANT = 0.05
LONGEST = 44  # letters of a setting's value in a terminal
RUN_COLUMNS = ("gap before → after", "shift [95 %]", "told", "drawn")
EDIT_COLUMNS = ("on / off target", "shift over placebo", *QUALITIES, "transfer ratio")
PAIR_COLUMNS = ("items", "gap, difference", "shift, difference", "told", "drawn")
PAIR_NOTE = (
    "the run minus the reference, on items scored in both; paired bootstrap, 95 %, each by itself; (+right "
    f"here and wrong there {MINUS}the reverse); * exact McNemar, Holm-corrected over runs, p < 0.05"
)


SEEDS_NOTE = (
    "how far the seed moves each number; what other items would change is in the intervals of the runs"
)


@dataclass(frozen=True)
class Words:
    """A named table of text cells: what a terminal and a page have in common."""

    title: str
    columns: tuple[str, ...]
    lines: Sequence[tuple[str, tuple[str, ...]]]
    note: str = ""


def run_words(comparison: Comparison) -> Words:
    """A line per run: the gap before and after, and what shifted."""
    lines = []
    for row in comparison.rows:
        gaps = " → ".join(f"{one.value:.3f}" for one in (row.gap_before, row.gap_after) if one) or NONE
        lines.append(
            (title(row, comparison), (gaps, *(_spread(x) for x in (row.shift, row.told, row.drawn))))
        )
    return Words("Runs", RUN_COLUMNS, lines, "told, drawn: shift of the accuracy, mean over categories")


def edit_words(comparison: Comparison) -> Words:
    """A line per run that changed a model: where, against its placebo, and how good the edit is."""
    lines = []
    for row in comparison.rows:
        if row.shift is None and not any(row.quality.values()):
            continue
        where = " / ".join(NONE if x is None else signed(x) for x in (row.on_target, row.off_target))
        ratio = spread(row.transfer_ratio, sign=False) if row.transfer_ratio else NONE
        shares = [_sides(row.quality.get(name, {})) for name in QUALITIES]
        lines.append((f"{row.number}", (where, _spread(row.over_placebo), *shares, ratio)))
    note = (
        "shift over placebo: the run's shift minus that of its own random change of the same size, paired by "
        "item; shares after the edit, text / image"
    )
    return Words("Edits", EDIT_COLUMNS, lines, note)


def pair_words(comparison: Comparison) -> Words:
    """A line per run that can be compared with the reference."""
    lines = [
        (
            f"{pair.number} {MINUS} {pair.reference}",
            (
                str(pair.scored) if pair.gap else str(pair.items),
                _spread(pair.gap),
                _spread(pair.shift),
                tested(pair.understanding),
                tested(pair.generation),
            ),
        )
        for pair in comparison.pairs
        if pair.compared != "nothing"
    ]
    return Words(f"Against run {comparison.reference}", PAIR_COLUMNS, lines, PAIR_NOTE)


def pooled_words(comparison: Comparison) -> list[Words]:
    """Runs that differ in their seed alone, taken together."""
    return [
        Words(
            f"{one.name} over {len(one.seeds)} seeds (runs {', '.join(map(str, one.numbers))})",
            ("mean [95 %, t]",),
            [
                (name, (spread(estimate, sign=name.endswith(" shift")),))
                for name, estimate in one.means.items()
            ],
            SEEDS_NOTE,
        )
        for one in comparison.pooled
    ]


def setting_words(comparison: Comparison, *, longest: int = LONGEST, own: bool = False) -> Words:
    """What the runs' recipes, versions and data differ in.

    Args:
        comparison: of the runs.
        longest: letters of a value that are shown.
        own: whether settings that only some methods know are told, too, where methods differ.
    """
    several = any(one.path == "intervention.use" for one in comparison.settings)
    hidden = [
        one.path
        for one in comparison.settings
        if several and not own and one.path.startswith("intervention.") and None in one.values
    ]

    def cell(value: str | None) -> str:
        text = MINUS if value is None else value
        return text if len(text) <= longest else text[: longest - 1] + "…"

    lines = [
        (one.path, tuple(cell(value) for value in one.values))
        for one in comparison.settings
        if one.path not in hidden
    ]
    note = (
        f"and {len(hidden)} settings that only some of the methods know (--html shows them)" if hidden else ""
    )
    return Words("What differs", tuple(str(row.number) for row in comparison.rows), lines, note)


def remarks(comparison: Comparison) -> list[str]:
    """What must be known about runs and pairs, a line each."""
    lines = [f"{row.number}: {mark}" for row in comparison.rows for mark in row.marks]
    for pair in comparison.pairs:
        said = "not compared" if pair.compared == "nothing" else "compared in part" if part(pair) else "note"
        lines += [f"{pair.number} {MINUS} {pair.reference}: {said}: {reason}" for reason in pair.reasons]
    if comparison.left_out:
        lines.append(
            f"{comparison.left_out} more runs match; these are the {len(comparison.rows)} best (--all takes "
            "all, 'gapeval-lab leaderboard' ranks them)"
        )
    if comparison.repeated:
        repeated = counted(comparison.repeated, "repetition")
        lines.append(f"left out: {repeated} by reproduce (name one by its id to compare it)")
    return lines


def counted(number: int, thing: str) -> str:
    """'1 trial', '2 trials'."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def part(pair: Pair) -> bool:
    """Whether the last states alone are compared."""
    return pair.compared == "after"


def draw(comparison: Comparison) -> Group:
    """Everything, for a terminal."""
    parts: list[Table | Text] = []
    for words in (run_words(comparison), edit_words(comparison), pair_words(comparison)):
        parts += _laid_out(words)
    for line in remarks(comparison):
        parts.append(Text(line, style="yellow"))
    if remarks(comparison):
        parts.append(Text())
    for words in pooled_words(comparison):
        parts += _laid_out(words)
    words = setting_words(comparison)
    if len(comparison.rows) > 1 and not words.lines:
        parts.append(
            Text(
                "the runs' settings do not differ, but for the seed"
                if len({row.seed for row in comparison.rows}) > 1
                else "the runs' settings do not differ",
                style="dim",
            )
        )
    parts += _laid_out(words)
    return Group(*parts)


def title(row: Row, comparison: Comparison) -> str:
    """'2 rome-wk-text-L0, seed 1'."""
    many = len({one.umm for one in comparison.rows}) > 1
    return f"{row.number} {row.name}" + (f" of {row.umm}" if many else "") + f", seed {row.seed}"


def tested(test: Test | None) -> str:
    """A difference of accuracies, items gained and lost, and a star where the test says so."""
    if test is None or test.difference is None:
        return NONE
    star = " *" if test.p_holm < SIGNIFICANT else ""
    return f"{spread(test.difference)} (+{test.gained} {MINUS}{test.lost}){star}"


def _laid_out(words: Words) -> Sequence[Table | Text]:
    if not words.lines:
        return []
    parts: list[Table | Text] = [
        draw_rows(words.title, words.columns, [Line(label, cells) for label, cells in words.lines])
    ]
    if words.note:
        parts.append(Text(words.note, style="dim"))
    return [*parts, Text()]


def _spread(value: Estimate | None) -> str:
    return spread(value) if value else NONE


def _sides(shares: dict[str, float]) -> str:
    return " / ".join(f"{100 * shares[side]:.0f} %" if side in shares else NONE for side in ("text", "image"))
