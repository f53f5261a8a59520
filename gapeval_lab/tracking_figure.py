"""The figures of one run: how the gap shifted, when facts were learned. Plain data first, then the drawing.

Knows matplotlib, but no GUI and no pyplot: nothing global is touched.
"""

from dataclasses import dataclass
from typing import Any

from gapeval_lab.outcome import Emergence, Outcome


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
    """The gap's shift, overall and per category, with intervals; None where there is no after, or no gap."""
    after, shift = outcome.after, outcome.shift
    if not (after and shift):
        return None
    old, new = outcome.before.gap, after.gap
    if not (old.gap and new.gap and shift.gap):
        return None
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


@dataclass(frozen=True)
class EmergenceCurve:
    """Named lines by updates (or facts written), and the updates at which levels are crossed.

    lines: legend -> (color, style of the line, values); None where nothing was measured.
    """

    unit: str
    steps: list[int]
    lines: dict[str, tuple[str, str, list[float | None]]]
    crossings: dict[str, dict[str, float | None]]


def emergence_data(found: Emergence) -> EmergenceCurve:
    """The curve of a training."""
    return EmergenceCurve(
        unit=found.unit,
        steps=[point.step for point in found.points],
        lines={
            **(_written_lines(found) if found.unit == "facts" else _learned_lines(found)),
            "Gap Score, on a subset": (GREY, ":", [point.gap for point in found.points]),
        },
        crossings={str(side): dict(levels) for side, levels in found.crossings.items()},
    )


def _learned_lines(found: Emergence) -> dict[str, tuple[str, str, list[float | None]]]:
    return {
        "facts told": (CURVE_COLORS["text"], "o-", [point.text for point in found.points]),
        "facts drawn": (CURVE_COLORS["image"], "o-", [point.image for point in found.points]),
    }


def _written_lines(found: Emergence) -> dict[str, tuple[str, str, list[float | None]]]:
    told, drawn = CURVE_COLORS["text"], CURVE_COLORS["image"]
    return {
        "reliability, told": (told, "o-", [point.reliability.get("text") for point in found.points]),
        "reliability, drawn": (drawn, "o-", [point.reliability.get("image") for point in found.points]),
        "locality, told": (told, "s--", [point.locality.get("text") for point in found.points]),
        "locality, drawn": (drawn, "s--", [point.locality.get("image") for point in found.points]),
    }


CURVE_COLORS, GREY = {"text": "#1f5fd0", "image": "#d9770a"}, "#8a8f98"


def draw_emergence(data: EmergenceCurve, *, title: str) -> Any:
    """Both directions' shares and the gap against updates, with marks where 50 % and 90 % are crossed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6))
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.16, top=0.88)
    axes = figure.subplots()
    for level in (0.5, 0.9):
        axes.axhline(level, color="#cccccc", linewidth=0.8, zorder=0)
    for label, (color, style, shares) in data.lines.items():
        known = [(step, share) for step, share in zip(data.steps, shares, strict=True) if share is not None]
        if not known:
            continue
        axes.plot(*zip(*known, strict=True), style, color=color, markersize=3.5, label=label)
    for side, levels in data.crossings.items():
        for name, crossed in levels.items():
            if crossed is not None:
                axes.scatter(
                    [crossed], [int(name) / 100], s=50, marker="D", color=CURVE_COLORS[side], alpha=0.5
                )
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel("updates" if data.unit == "updates" else "facts written")
    axes.set_ylabel("share right (all wordings)" if data.unit == "updates" else "share")
    if data.unit == "facts":
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks(data.steps, [str(step) for step in data.steps])
        axes.set_xlim(-0.2, 1.2 * max(data.steps[-1], 1))
    axes.legend(loc="center right" if data.unit == "updates" else "lower left", frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


@dataclass(frozen=True)
class Retention:
    """Share of each fact set that is right in each state, one matrix per side: rows states, columns sets."""

    states: list[str]
    sets: list[str]
    shares: dict[str, list[list[float | None]]]


def retention_data(outcome: Outcome) -> Retention | None:
    """What each fact set still holds after each intervention; None for a single intervention."""
    if not outcome.stages:
        return None
    kept = [outcome.kept_before, *(stage.kept for stage in outcome.stages)]
    return Retention(
        states=["before", *(f"after {n} {s.method}" for n, s in enumerate(outcome.stages, start=1))],
        sets=[f"facts {number}" for number in range(1, len(outcome.stages) + 1)],
        shares={
            "told": [[row.get("text") for row in state] for state in kept],
            "drawn": [[row.get("image") for row in state] for state in kept],
        },
    )


def draw_retention(data: Retention, *, title: str) -> Any:
    """Two matrices side by side, the share written into every field."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 + 2.2 * len(data.sets), 1.6 + 0.5 * len(data.states)))
    figure.subplots_adjust(left=0.2, right=0.97, bottom=0.06, top=0.74, wspace=0.12)
    for number, (name, rows) in enumerate(data.shares.items()):
        axes = figure.add_subplot(1, len(data.shares), number + 1)
        values = [[float("nan") if share is None else share for share in row] for row in rows]
        axes.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for y, row in enumerate(rows):
            for x, share in enumerate(row):
                shade = "white" if share is not None and share > 0.6 else "black"
                text = "n/a" if share is None else f"{share:.2f}"
                axes.text(x, y, text, ha="center", va="center", color=shade)
        axes.set_xticks(range(len(data.sets)), data.sets)
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(data.states)), data.states if number == 0 else [""] * len(data.states))
        axes.set_xlabel(name)
    figure.suptitle(title, fontsize=11)
    return figure
