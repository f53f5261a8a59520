"""Runs as a list: name, when, method, model, result, status. Reads MLflow and summaries of outcomes."""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gapeval_lab.comparing_runs import open_entry
from gapeval_lab.errors import UserError
from gapeval_lab.gap.records import Estimate
from gapeval_lab.leaderboard_tables import reason
from gapeval_lab.report_cells import Row, draw_rows, spread
from gapeval_lab.summaries import Summary
from gapeval_lab.tracking_find import FINISHED, Entry, entries, stored
from gapeval_lab.tracking_store import Store, Unreachable

COLUMNS = ("started", "method", "model", "result", "status")


@dataclass(frozen=True)
class Listed:
    """One line per run, oldest first: its id and the cells of COLUMNS. `trials` are left out."""

    lines: list[tuple[str, tuple[str, ...]]]
    trials: int
    note: str = ""


def listed(store: Store) -> Listed:
    """Every run of a store but trials, and but the baselines that edits have logged beside themselves.

    Raises:
        UserError: the store cannot be read.
    """
    note = ""
    try:
        found = entries(store)
    except Unreachable as error:
        found, note = stored(store), f"only what lies on this disk: {error}"
    shown = [e for e in found if e.kind != "trial" and not e.derived]
    trials = sum(entry.kind == "trial" for entry in found)
    return Listed([(entry.id, _cells(entry, store)) for entry in shown], trials, note)


def draw_list(found: Listed) -> Group:
    """The list as a table."""
    rows = [Row(name, cells) for name, cells in found.lines]
    parts: list[Table | Text] = [draw_rows("", COLUMNS, rows, head="run", justify="left")]
    if found.trials:
        said = f"{found.trials} trials of searches: gapeval-lab leaderboard --kind trial"
        parts.append(Text(said, style="dim"))
    if found.note:
        parts.append(Text(found.note, style="yellow"))
    return Group(*parts)


def _cells(entry: Entry, store: Store) -> tuple[str, ...]:
    tags = dict(entry.logged.tags) if entry.logged else {}
    metrics = entry.logged.metrics if entry.logged else {}
    result, status = _result(metrics), entry.status.lower()
    repeated: str | None = entry.reproduces
    if entry.logged is None:
        status = "finished, not in MLflow"
        try:
            run = open_entry(entry, store)
        except UserError:
            return (_when(entry), "", "", "", "outcome cannot be read")
        if run is not None:
            of = run.summary
            tags = {"method": "+".join(of.methods) or "none", "umm": of.umm}
            gap, repeated = of.states["before"].gap.gap, of.reproduces
            result = _shift(of) or (f"gap {gap.value:.3f}" if gap else "")
    elif entry.status == FINISHED and entry.folder is not None:
        with contextlib.suppress(UserError):  # MLflow's, rounded to four places, is rounded once too often
            run = open_entry(entry, store, remote=False)
            result = (_shift(run.summary) if run else "") or result
    elif entry.status == FINISHED and entry.kind != "baseline":
        status = "finished, outcome elsewhere"
    elif entry.status != FINISHED and (why := tags.get("gapeval.end")):
        status += f": {reason(why, longest=60)}"
    if repeated:
        status += ", a repetition"
    return (_when(entry), tags.get("method", ""), tags.get("umm", ""), result, status)


def _shift(of: Summary) -> str:
    """A run's shift as its report has it, if it has one."""
    return f"shift {spread(of.shift.gap)}" if of.shift and of.shift.gap else ""


def _when(entry: Entry) -> str:
    """The day and the time here; ids hold the year."""
    return datetime.datetime.fromtimestamp(entry.started).strftime("%d %b %H:%M")


def _result(metrics: dict[str, float]) -> str:
    ends = [metrics.get(f"{end}/gap_score") for end in ("delta", "low", "high")]
    value, low, high = ends
    if value is not None and low is not None and high is not None:
        return f"shift {spread(Estimate(value, low, high))}"
    gap = metrics.get("before/gap_score")
    if gap is not None:
        return f"gap {gap:.3f}"
    sides = {"told": metrics.get("before/understanding"), "drawn": metrics.get("before/generation")}
    return ", ".join(f"{name} {100 * value:.0f} %" for name, value in sides.items() if value is not None)
