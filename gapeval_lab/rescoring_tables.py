"""A new score beside the old one, as tables for a terminal. Computes nothing but the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gapeval_lab.agreement import Agreement
from gapeval_lab.calibration import Calibration, Corrected, rates
from gapeval_lab.gap.records import Estimate, GapReport, OneSided, ShiftReport
from gapeval_lab.outcome import Outcome
from gapeval_lab.report_cells import Row, draw_rows, percent, signed, spread
from gapeval_lab.rescoring import Flip, Score
from gapeval_lab.rescoring_corrected import CorrectedRow

Numbers = tuple[Estimate | None, Estimate | None, Estimate | None]
"""Told, drawn, gap."""

MOST_FLIPS = 12
SAYS = {True: "right", False: "wrong", None: "not scored"}
NOTHING = "n/a"

AGREEMENT_COLUMNS = ("answers", "agree", "kappa")
GAP_COLUMNS = ("understanding old → new", "generation old → new", "gap old", "gap new")
SHIFT_COLUMNS = ("gap shift old", "gap shift new", "understanding new", "generation new")
FLIP_COLUMNS = ("direction", "old", "new", "why")


def gap_rows(old: GapReport, new: GapReport | None) -> list[Row]:
    """A row per category, then the mean; what the new judge could not score is n/a."""

    def cells(was: Numbers, now: Numbers | None) -> tuple[str, ...]:
        later = now or (None, None, None)
        short = [NOTHING if one is None else f"{100 * one.value:.0f} %" for one in was[:2]]
        full = [NOTHING if one is None else percent(one) for one in later[:2]]
        accuracies = [f"{one} → {other}" for one, other in zip(short, full, strict=True)]
        gaps = [NOTHING if one is None else spread(one, sign=False) for one in (was[2], later[2])]
        return (*accuracies, *gaps)

    rows = []
    for name, one in old.categories.items():
        other = None if new is None else new.categories.get(name)
        now = None if other is None else (other.understanding, other.generation, other.gap)
        rows.append(Row(name.replace("_", " "), cells((one.understanding, one.generation, one.gap), now)))
    for name, one_sided in old.one_sided.items():
        later = None if new is None else new.one_sided.get(name)
        rows.append(Row(name.replace("_", " "), cells(_side(one_sided), _side(later) if later else None)))
    mean = None if new is None else (new.understanding, new.generation, new.gap)
    return [*rows, Row("mean", cells((old.understanding, old.generation, old.gap), mean), strong=True)]


def _side(one: OneSided) -> Numbers:
    return (one.accuracy, None, None) if one.direction == "understanding" else (None, one.accuracy, None)


def shift_rows(old: ShiftReport | None, new: ShiftReport | None) -> list[Row]:
    """A row per category, then the mean."""
    names = list(dict.fromkeys(name for one in (old, new) if one is not None for name in one.categories))
    rows = []
    for name in names:
        was = old.categories.get(name) if old else None
        now = new.categories.get(name) if new else None
        sides = (now.understanding.shift, now.generation.shift) if now else (None, None)
        gaps = (was.gap if was else None, now.gap if now else None)
        rows.append(Row(name.replace("_", " "), _spreads(*gaps, *sides)))
    mean = (new.gap, new.understanding, new.generation) if new else (None, None, None)
    return [*rows, Row("mean", _spreads(old.gap if old else None, *mean), strong=True)]


def agreement_rows(table: Mapping[str, Agreement]) -> list[Row]:
    """A row per direction, and one per category below it."""
    rows = []
    for name, found in table.items():
        direction, _, category = name.partition("/")
        agree = NOTHING if found.percent is None else percent(found.percent)
        kappa = NOTHING if found.kappa is None else spread(found.kappa, sign=False)
        count = f"{found.n}" + (f" (+{found.unscored} not scored)" if found.unscored else "")
        label = f"  {category.replace('_', ' ')}" if category else direction
        rows.append(Row(label, (count, agree, kappa), strong=not category))
    return rows


def flip_rows(flips: list[Flip]) -> list[Row]:
    """The first few answers on which the judges differ."""
    return [
        Row(one.item, (str(one.direction), SAYS[one.old], SAYS[one.new], one.reason[:60]))
        for one in flips[:MOST_FLIPS]
    ]


def draw_score(score: Score, outcome: Outcome) -> Group:
    """Everything about a new score, phase by phase, then the shifts."""
    parts: list[Table | Text] = [Text(f"{score.run_id}, judged by {score.judge}", style="bold"), Text()]
    for phase, new in score.phases.items():
        if phase not in ("before", "after"):
            continue
        old = getattr(outcome, phase).gap
        parts.append(draw_rows(f"Gap Scores {phase}", GAP_COLUMNS, gap_rows(old, new.gap)))
        if new.note:
            parts.append(Text(new.note, style="dim"))
        parts += [Text(), draw_rows("Old judge and new", AGREEMENT_COLUMNS, agreement_rows(new.agreement))]
        if new.voices:
            title = "The new judge's voices with each other"
            parts += [Text(), draw_rows(title, AGREEMENT_COLUMNS, agreement_rows(new.voices))]
        lone = f"; {len(new.apart)} are scored by one of the two alone" if new.apart else ""
        if new.flips:
            title = f"{len(new.flips)} verdicts flip{lone}" + (
                f"; the first {MOST_FLIPS} flips" if len(new.flips) > MOST_FLIPS else ""
            )
            parts += [Text(), draw_rows(title, FLIP_COLUMNS, flip_rows(new.flips))]
        else:
            parts.append(Text(f"no verdict flips{lone}"))
        parts.append(Text())
    if "after" in score.shifts:
        rows = shift_rows(outcome.shift, score.shifts["after"])
        parts += [draw_rows("What shifted", SHIFT_COLUMNS, rows), Text()]
    return Group(*parts)


def _spreads(*found: Estimate | None) -> tuple[str, ...]:
    return tuple(NOTHING if one is None else spread(one) for one in found)


RATE_COLUMNS = ("right answers", "sensitivity", "wrong answers", "specificity", "not scored")
CORRECTED_COLUMNS = ("before raw", "before corrected", "after raw", "after corrected", "shift raw", "shift")


def rate_rows(known: Calibration) -> list[Row]:
    """A row per direction, and one per category below it."""
    rows = []
    for name, cell in known.cells.items():
        direction, _, category = name.partition("/")
        found = rates(cell, name=name)
        cells = (
            str(cell.right_right + cell.right_wrong),
            NOTHING if found.sensitivity is None else percent(found.sensitivity),
            str(cell.wrong_right + cell.wrong_wrong),
            NOTHING if found.specificity is None else percent(found.specificity),
            str(cell.unscored),
        )
        rows.append(
            Row(f"  {category.replace('_', ' ')}" if category else direction, cells, strong=not category)
        )
    return rows


def corrected_rows(table: Sequence[CorrectedRow]) -> list[Row]:
    """A row per direction and category; a star where the direction's confusion stood in."""
    rows = []
    for one in table:
        cells: list[str] = []
        for rate in (one.before, one.after):
            cells.append(NOTHING if rate is None else f"{100 * rate.raw:.0f} %")
            cells.append(_corrected(rate, share=True))
        cells.append(NOTHING if one.shift is None else signed(one.shift.raw))
        cells.append(_corrected(one.shift, share=False))
        star = "" if one.own else " *"
        rows.append(Row(f"{_named(one)}{star}", tuple(cells)))
    return rows


def corrected_notes(table: Sequence[CorrectedRow]) -> list[str]:
    """What is to be said below `corrected_rows`, each reason once, with the rows that it is about."""
    about: dict[str, list[str]] = {}
    for one in table:
        for note in dict.fromkeys(rate.note for rate in (one.before, one.after, one.shift) if rate):
            if note:
                about.setdefault(note, []).append(_named(one))
    notes = [f"{'; '.join(names)}: {note}" for note, names in about.items()]
    if not all(one.own for one in table):
        notes.append("* by its direction's confusion: it lacks right or wrong answers of this category")
    return notes


def _named(one: CorrectedRow) -> str:
    return f"{one.direction}, {one.category.replace('_', ' ')}"


def _corrected(found: Corrected | None, *, share: bool) -> str:
    if found is None:
        return NOTHING
    if found.value is None:
        return NOTHING
    return percent(found.value) if share else spread(found.value)
