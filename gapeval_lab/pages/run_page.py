"""The page of one run: `report.html` in its folder, made from its record and pictures alone."""

from collections.abc import Callable
from pathlib import Path

from gapeval_lab.files import write_text
from gapeval_lab.outcome import REPORT, Outcome
from gapeval_lab.pages import run_audit, run_course, run_edit, run_gap, run_record
from gapeval_lab.pages.gallery import gallery
from gapeval_lab.pages.numbers import Numbers, joined, marked
from gapeval_lab.pages.page import render
from gapeval_lab.pages.parts import Page, Section, Words
from gapeval_lab.report import headline
from gapeval_lab.tracking_values import method

SIDES = {"text": "told", "image": "drawn", "both": "told and drawn"}

Maker = Callable[[Numbers, Path], Section | None]


def _of(make: Callable[[Numbers], Section | None]) -> Maker:
    return lambda numbers, folder: make(numbers)


SECTIONS: tuple[Maker, ...] = (
    _of(run_gap.gap),
    _of(run_gap.accuracy),
    _of(run_gap.cells),
    _of(run_edit.edit),
    _of(run_gap.untouched),
    _of(run_gap.controls),
    gallery,
    _of(run_course.course),
    _of(run_edit.protocols),
    _of(run_audit.smallest),
    _of(run_audit.audit),
    _of(run_record.record),
)
"""Sections in their order; one that has nothing to say gives None."""


def run_page(outcome: Outcome, folder: Path) -> str:
    """The page as HTML.

    Args:
        outcome: a run, of any kind.
        folder: where its pictures lie; those that are missing there are said to be.
    """
    numbers = Numbers(outcome)
    made = [section for make in SECTIONS if (section := make(numbers, folder)) is not None]
    page = Page(
        title=f"{outcome.recipe.get('name', outcome.run_id)} · {outcome.umm}",
        kicker=f"gapeval_lab · {outcome.run_id}",
        heading=answer(numbers),
        about=[what(numbers)],
        sections=made,
        warning=run_audit.warning(numbers),
        styles=("gallery.css",),
        scripts=("gallery.js",),
        foot=f"Run {outcome.run_id}, started {outcome.started}. Each number's place in outcome.json, and its "
        "name in MLflow, stand in this page's source beside it.",
    )
    return render(page)


def write_report(outcome: Outcome, folder: Path, *, to: Path | None = None) -> Path:
    """Write the page of a run, by default as `report.html` into its folder; returns its path."""
    file = to or folder / REPORT
    write_text(file, run_page(outcome, folder))
    return file


def answer(numbers: Numbers) -> Words:
    """The terminal's headline, its numbers with their places."""
    outcome = numbers.outcome
    said = headline(outcome)
    before = outcome.before.gap
    if before.gap is None or before.null_gap is None:
        return said
    first = numbers.spread("before", "gap", "gap", sign=False)
    if outcome.after is None or outcome.shift is None:
        return marked(said, first, numbers.one("before", "gap", "null_gap"))
    if outcome.after.gap.gap is None or outcome.shift.gap is None:
        return said
    values = [numbers.one(state, "gap", "gap", "value") for state in ("before", "after")]
    return marked(said, *values, numbers.spread("shift", "gap"))


def what(numbers: Numbers) -> Words:
    """What was done, to which model, with how many facts and items."""
    outcome = numbers.outcome
    items = joined(numbers.count("before", "rows"), " items")
    if outcome.shift is None:
        return joined(f"{outcome.umm} as it is, asked in both directions: ", items, ".")
    later = [str(step.get("use")) for step in outcome.recipe.get("then") or ()]
    done = ", then ".join(name.upper() for name in [method(outcome.recipe), *later])
    target = ", ".join(outcome.target_categories).replace("_", " ") or "no category of the benchmark"
    return joined(
        f"{done} on {outcome.umm}: ", numbers.count("facts"), f" facts of {target}, written on the "
        f"{SIDES[outcome.direction]} side; ", items, " asked before and after."
    )  # fmt: skip
