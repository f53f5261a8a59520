"""The figures of a run's page. Plain data first, then the drawing; see `svg` for what they share.

Before is a hollow blue circle, after a full vermilion diamond, everywhere: two shapes and two colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gapeval_lab.gap.records import Estimate
from gapeval_lab.outcome import QUALITIES, Outcome
from gapeval_lab.pages.svg import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH,
    style,
)

ROW, EDGE = 0.6, 0.92  # inches: of a row, and of what stands above and below all rows
MANY = 10  # categories, above which the plane of told and drawn is too full to be read
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class States:
    """Estimates before and after, a row each; `chance` is what would be there by chance, `after` may lack."""

    labels: list[str]
    before: list[Estimate]
    after: list[Estimate | None]
    chance: list[float | None]


def gap_data(outcome: Outcome) -> States | None:
    """The Gap Score of every category and their mean; None where there is no gap."""
    before, after = outcome.before.gap, outcome.after.gap if outcome.after else None
    if before.gap is None:
        return None
    names = list(before.categories)
    later = after.categories if after else {}
    return States(
        labels=["mean", *(_label(name, outcome) for name in names)],
        before=[before.gap, *(before.categories[name].gap for name in names)],
        after=[
            after.gap if after else None,
            *(later[name].gap if name in later else None for name in names),
        ],
        chance=[before.null_gap, *(before.categories[name].null_gap for name in names)],
    )


def quality_data(outcome: Outcome) -> States | None:
    """Edit quality, told and drawn apart; None where no fact was asked."""
    if outcome.quality is None:
        return None
    cells = [
        (f"{name}, {word}", getattr(outcome.quality, name)[side])
        for name in QUALITIES
        for side, word in (("text", "told"), ("image", "drawn"))
        if side in getattr(outcome.quality, name)
    ]
    if not cells:
        return None
    return States(
        labels=[label for label, _ in cells],
        before=[cell.before for _, cell in cells],
        after=[cell.after for _, cell in cells],
        chance=[None] * len(cells),
    )


def _figure_of_rows(count: int) -> tuple[Any, Any]:
    """A figure as high as so many rows need, and its axes."""
    from matplotlib.figure import Figure

    height = EDGE + ROW * count
    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.5 / height, top=1 - 0.38 / height)
    return figure, figure.subplots()


def draw_states(data: States, *, xlabel: str) -> Any:
    """A row per label with both states and their intervals; a short upright line marks chance."""
    with style():
        count = len(data.labels)
        figure, axes = _figure_of_rows(count)
        for row, (label, old, new, chance) in enumerate(
            zip(data.labels, data.before, data.after, data.chance, strict=True)
        ):
            _row_label(axes, row, label)
            _interval(axes, row + (0.0 if new is None else -0.1), old, BLUE, "o", hollow=True)
            if new is not None:
                _interval(axes, row + 0.14, new, VERMILION, "D")
            if chance is not None:
                axes.plot([chance] * 2, [row - 0.2, row + 0.24], color=GREY, linewidth=2.2)
        handles = [_key(BLUE, "o", "before" if any(data.after) else "measured", hollow=True)]
        handles += [_key(VERMILION, "D", "after")] if any(data.after) else []
        handles += [_key(GREY, "|", "by chance")] if any(one is not None for one in data.chance) else []
        _rows(axes, count, xlabel, handles)
    return figure


@dataclass(frozen=True)
class Shifts:
    """Shifts of a run, and of its placebo where it has one, a row each."""

    labels: list[str]
    shift: list[Estimate]
    placebo: list[Estimate | None]


def shift_data(outcome: Outcome) -> Shifts | None:
    """The gap's shift in every category and in the mean; None where there is none."""
    shift, placebo = outcome.shift, outcome.placebo_shift
    if shift is None or shift.gap is None:
        return None
    names = list(shift.categories)
    control = placebo.categories if placebo else {}
    return Shifts(
        labels=["mean", *(_label(name, outcome) for name in names)],
        shift=[shift.gap, *(shift.categories[name].gap for name in names)],
        placebo=[
            placebo.gap if placebo else None,
            *(control[name].gap if name in control else None for name in names),
        ],
    )


def draw_shifts(data: Shifts, *, xlabel: str) -> Any:
    """A row per label: the shift with its interval, the placebo's under it, and a line at nothing."""
    with style():
        count = len(data.labels)
        figure, axes = _figure_of_rows(count)
        axes.axvline(0.0, color=INK, linewidth=0.9)
        for row, (label, shift, placebo) in enumerate(
            zip(data.labels, data.shift, data.placebo, strict=True)
        ):
            _row_label(axes, row, label)
            _interval(axes, row + (0.0 if placebo is None else -0.1), shift, VERMILION, "D")
            if placebo is not None:
                _interval(axes, row + 0.14, placebo, GREY, "s", hollow=True)
        handles = [_key(VERMILION, "D", "intervention")]
        handles += [_key(GREY, "s", "placebo", hollow=True)] if any(data.placebo) else []
        _rows(axes, count, xlabel, handles)
    return figure


@dataclass(frozen=True)
class Plane:
    """Where each category stands: (told, drawn) before, and after where there is one."""

    labels: list[str]
    before: list[tuple[float, float]]
    after: list[tuple[float, float] | None]


def plane_data(outcome: Outcome) -> Plane | None:
    """Accuracies of both directions; None where there are none, or too many to be told apart."""
    before, after = outcome.before.gap.categories, outcome.after.gap.categories if outcome.after else {}
    if not 0 < len(before) <= MANY:
        return None
    return Plane(
        labels=[_label(name, outcome, 24) for name in before],
        before=[(one.understanding.value, one.generation.value) for one in before.values()],
        after=[
            (after[name].understanding.value, after[name].generation.value) if name in after else None
            for name in before
        ],
    )


def draw_plane(data: Plane) -> Any:
    """Told to the right, drawn upwards; arrows lead from before to after."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with style():
        lines = -(-len(data.labels) // 2)
        height = 4.5 + 0.24 * lines
        figure = Figure(figsize=(WIDTH, height))
        figure.subplots_adjust(
            left=0.13, right=0.97, bottom=0.5 / height, top=1 - (0.15 + 0.24 * lines) / height
        )
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], "--", color=GREY, linewidth=1)
        axes.text(31, 27, "no gap", ha="left", va="center", color=GREY, fontsize=10)
        handles = []
        for number, (label, old, new) in enumerate(zip(data.labels, data.before, data.after, strict=True)):
            color, mark = COLORS[number % len(COLORS)], MARKS[number % len(MARKS)]
            start = (100 * old[0], 100 * old[1])
            axes.plot(*start, mark, color=color, markerfacecolor="none", markersize=7)
            if new is not None:
                end = (100 * new[0], 100 * new[1])
                if end != start:
                    arrow = {"arrowstyle": "-|>", "color": color, "shrinkA": 4, "shrinkB": 4}
                    axes.annotate("", end, start, arrowprops=arrow)
                axes.plot(*end, mark, color=color, markersize=7)
            handles.append(Line2D([], [], linestyle="", marker=mark, color=color, markersize=7, label=label))
        axes.set(xlim=(-3, 103), ylim=(-3, 103), xlabel="told right, %", ylabel="drawn right, %")
        axes.grid(True)
        axes.set_axisbelow(True)
        _legend(axes, -0.13, handles=handles, ncols=2)
    return figure


@dataclass(frozen=True)
class Curves:
    """Named lines over steps; None where a line has no value. `levels` are guide lines across."""

    steps: list[int]
    lines: dict[str, list[float | None]]
    xlabel: str
    ylabel: str
    levels: tuple[float, ...] = ()
    spread_out: bool = False  # few steps far apart: a logarithmic axis with each of them named


def draw_curves(data: Curves) -> Any:
    """Every line with its own colour, style and mark."""
    from matplotlib.figure import Figure

    with style():
        known = {name: _known(data.steps, values) for name, values in data.lines.items()}
        known = {name: points for name, points in known.items() if points}
        rows = -(-len(known) // 2) if len(known) > 1 else 0
        height = 3.2 + 0.24 * rows
        figure = Figure(figsize=(WIDTH, height))
        figure.subplots_adjust(
            left=0.14, right=0.97, bottom=0.5 / height, top=1 - (0.15 + 0.24 * rows) / height
        )
        axes = figure.subplots()
        for level in data.levels:
            axes.axhline(level, color=FAINT, linewidth=0.8)
        for number, (name, points) in enumerate(known.items()):
            axes.plot(
                [step for step, _ in points],
                [value for _, value in points],
                LINES[number % len(LINES)],
                color=COLORS[number % len(COLORS)],
                marker=MARKS[number % len(MARKS)] if len(points) <= 40 else "",
                markersize=4,
                label=name,
            )
        axes.set(xlabel=data.xlabel, ylabel=data.ylabel)
        if data.spread_out:
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xticks(data.steps, [str(step) for step in data.steps])
            axes.minorticks_off()
        if rows:
            _legend(axes, -0.14, ncols=2)
    return figure


def _known(steps: Sequence[int], values: Sequence[float | None]) -> list[tuple[int, float]]:
    return [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]


def _label(name: str, outcome: Outcome, longest: int = 48) -> str:
    """As in tables, cut where there is no room for it."""
    words = name.replace("_", " ")
    cut = words if len(words) <= longest else words[: longest - 1] + "…"
    return cut + (" (edited)" if name in outcome.target_categories else "")


def _row_label(axes: Any, row: int, label: str) -> None:
    """Above its row, so that the row has the whole width."""
    axes.text(0.0, row - 0.19, label, transform=axes.get_yaxis_transform(), va="bottom", ha="left")


def _interval(axes: Any, row: float, one: Estimate, color: str, mark: str, *, hollow: bool = False) -> None:
    axes.plot([one.low, one.high], [row, row], color=color, linewidth=1.6, solid_capstyle="butt")
    face = PAPER if hollow else color
    axes.plot([one.value], [row], mark, color=color, markerfacecolor=face, markersize=6)


def _key(color: str, mark: str, label: str, *, hollow: bool = False) -> Any:
    from matplotlib.lines import Line2D

    face = PAPER if hollow else color
    return Line2D([], [], color=color, markerfacecolor=face, marker=mark, ls="", markersize=7, label=label)


def _rows(axes: Any, count: int, xlabel: str, handles: Sequence[Any]) -> None:
    """What figures of rows have in common: the first on top, no y axis, the key above."""
    axes.set_ylim(count - 0.55, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel)
    _legend(axes, -0.02, handles=handles, ncols=3)


def _legend(axes: Any, left: float, **settings: Any) -> None:
    """Above the axes; `left` is where it begins, in their widths."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(left, 1.0), borderpad=0.2, handletextpad=0.4,
        columnspacing=1.2, **settings,
    )  # fmt: skip
