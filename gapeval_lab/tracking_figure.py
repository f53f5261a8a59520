"""The figure of one run: how the gap shifted. Plain data first, then the drawing.

Knows matplotlib, but no GUI and no pyplot: nothing global is touched.
"""

from dataclasses import dataclass
from typing import Any

from gapeval_lab.outcome import Outcome


@dataclass(frozen=True)
class GapShift:
    """What the gap-shift figure shows, from top to bottom; errors are (below, above) the values."""

    labels: list[str]
    before: list[float]
    after: list[float]
    shift: list[float]
    low: list[float]
    high: list[float]


def gap_shift_data(outcome: Outcome) -> GapShift | None:
    """The gap's shift, overall and per category, with intervals; None where there is no after."""
    after, shift = outcome.after, outcome.shift
    if not (after and shift):
        return None
    old, new = outcome.before.gap, after.gap
    names = list(shift.categories)
    moved = [shift.gap, *(shift.categories[name].gap for name in names)]
    marked = [f"{name} (target)" if name in outcome.target_categories else name for name in names]
    return GapShift(
        labels=["overall", *marked],
        before=[old.gap.value, *(old.categories[name].gap.value for name in names)],
        after=[new.gap.value, *(new.categories[name].gap.value for name in names)],
        shift=[estimate.value for estimate in moved],
        low=[estimate.low for estimate in moved],
        high=[estimate.high for estimate in moved],
    )


def draw_gap_shift(data: GapShift, *, title: str) -> Any:
    """Two panels over one list of categories: gap before → after, and the shift with its interval.

    Returns:
        A matplotlib figure that belongs to no GUI and to no global state.
    """
    from matplotlib.figure import Figure

    rows = range(len(data.labels))
    height = 1.6 + 0.42 * len(data.labels)
    figure = Figure(figsize=(9.0, height))
    # Fixed margins (in inches): an automatic layout would draw everything twice.
    figure.subplots_adjust(left=0.26, right=0.98, bottom=0.6 / height, top=1 - 0.45 / height, wspace=0.06)
    states, shifts = figure.subplots(1, 2, sharey=True)
    for row, old, new in zip(rows, data.before, data.after, strict=True):
        states.annotate("", (new, row), (old, row), arrowprops={"arrowstyle": "->", "color": "#555555"})
    states.scatter(data.before, rows, color="#8a8f98", zorder=3, label="before")
    states.scatter(data.after, rows, color="#1f5fd0", zorder=3, label="after")
    states.set_xlabel("gap score (lower is better)")
    states.set_yticks(list(rows), data.labels)
    states.invert_yaxis()
    states.legend(loc="best", frameon=False)
    for row, value, low, high in zip(rows, data.shift, data.low, data.high, strict=True):
        shade = "#0f8a5f" if high < 0 else "#b3202c" if low > 0 else "#8a8f98"
        shifts.plot([low, high], [row, row], color=shade, linewidth=2)
        shifts.plot([value], [row], "o", color=shade)
    shifts.axvline(0.0, color="#222222", linewidth=0.8)
    shifts.set_xlabel("shift (left of 0: the gap closed), 95 % interval")
    figure.suptitle(title, fontsize=11)
    return figure
