"""The figures of a study: plain data first, then the drawing. Colours are told apart by everybody.

Knows matplotlib, but no GUI and no pyplot: nothing global is touched.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from gapeval_lab.search_report import importances
from gapeval_lab.search_study import pareto
from gapeval_lab.study_settings import Search

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"
FEWEST = 2
"""Finished trials below which there is nothing to draw."""

ACROSS = 3
"""Parameters side by side in the slices."""


@dataclass(frozen=True)
class Axis:
    """One parameter or goal: a position per trial (None where it did not vary there), and its scale.

    ticks: position -> label, for parameters that are no numbers.
    """

    name: str
    positions: list[float | None]
    log: bool = False
    ticks: dict[float, str] | None = None


@dataclass(frozen=True)
class Points:
    """The finished trials of a study.

    Attributes:
        numbers: of the trials.
        goals: one axis per goal.
        directions: of the goals.
        params: one axis per parameter.
        kept: whether a trial keeps the constraints.
        front: whether no other trial that keeps them is better in everything.
        past: whether it is an earlier run; it cannot win, and is neither best nor on the front.
    """

    numbers: list[int]
    goals: list[Axis]
    directions: list[str]
    params: list[Axis]
    kept: list[bool]
    front: list[bool]
    past: list[bool]


def points_data(study: Any, section: Search) -> Points:
    """What the figures show, from Optuna's study."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    kept = [all(value <= 0 for value in trial.constraints.values()) for trial in done]
    past = ["past" in trial.user_attrs for trial in done]
    able = [trial for trial, ok, old in zip(done, kept, past, strict=True) if ok and not old]
    front = pareto(able, list(section.goal.values()))
    found: dict[str, Any] = {}
    for trial in done:
        found |= trial.distributions
    best = {trial.number for trial in front}
    return Points(
        numbers=[trial.number for trial in done],
        goals=[Axis(goal, [trial.values[n] for trial in done]) for n, goal in enumerate(section.goal)],
        directions=list(section.goal.values()),
        params=[_axis(name, found[name], done) for name in sorted(found)],
        kept=kept,
        front=[trial.number in best for trial in done],
        past=past,
    )


def figures(study: Any, section: Search) -> dict[str, Any]:
    """Name -> matplotlib figure; none while too few trials are finished."""
    data = points_data(study, section)
    if len(data.numbers) < FEWEST:
        return {}
    drawn = {"history": draw_history(data), "slice": draw_slice(data), "parallel": draw_parallel(data)}
    weights = importances(study, section)
    if weights:
        drawn["importances"] = draw_importances(weights)
    if len(data.goals) > 1:
        drawn["pareto"] = draw_pareto(data)
    return drawn


def draw_history(data: Points) -> Any:
    """Every goal by the trials' numbers; the line is the best one so far that keeps the constraints."""
    figure = _figure(7.5, 0.6 + 2.4 * len(data.goals))
    for row, (goal, direction) in enumerate(zip(data.goals, data.directions, strict=True)):
        axes = figure.add_subplot(len(data.goals), 1, row + 1)
        _scatter(axes, data, data.numbers, goal.positions)
        pick = max if direction == "maximize" else min
        points = zip(data.numbers, goal.positions, data.kept, data.past, strict=True)
        known = [(n, value) for n, value, ok, old in points if ok and not old and value is not None]
        if known:
            best = list(itertools.accumulate((value for _, value in known), pick))
            axes.step([n for n, _ in known], best, where="post", color=ORANGE, label="best so far")
        axes.set_ylabel(goal.name)
        if row == 0:
            axes.legend(loc="best", frameon=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("trial")
    return figure


def draw_slice(data: Points) -> Any:
    """Every goal against every parameter, a few side by side."""
    columns = min(ACROSS, len(data.params))
    rows = math.ceil(len(data.params) / columns)
    figure = _figure(0.6 + 2.8 * columns, 0.2 + 2.2 * rows * len(data.goals))
    for number, goal in enumerate(data.goals):
        for place, param in enumerate(data.params):
            place += number * rows * columns
            axes = figure.add_subplot(rows * len(data.goals), columns, place + 1)
            _scatter(axes, data, param.positions, goal.positions)
            _scale(axes, param)
            axes.set_xlabel(param.name.removeprefix("intervention."))
            if place % columns == 0:
                axes.set_ylabel(goal.name)
    return figure


def draw_parallel(data: Points) -> Any:
    """A line per trial across all parameters and goals, each axis from its least to its greatest value."""
    axes_of = [*data.params, *data.goals]
    figure = _figure(2.0 + 1.5 * len(axes_of), 3.6)
    axes = figure.add_subplot()
    shares = [_shares(axis) for axis in axes_of]
    able = [kept and not past for kept, past in zip(data.kept, data.past, strict=True)]
    for index, (may_win, front) in enumerate(zip(able, data.front, strict=True)):
        known = [(x, column[index]) for x, column in enumerate(shares) if column[index] is not None]
        color = ORANGE if front else BLUE if may_win else GREY
        axes.plot(
            *zip(*known, strict=True), color=color, alpha=1.0 if front else 0.4, linewidth=2 if front else 1
        )
    for x, axis in enumerate(axes_of):
        low, high = _ends(axis)
        axes.axvline(x, color="#cccccc", linewidth=0.8, zorder=0)
        axes.text(x, -0.04, low, ha="center", va="top", fontsize=8)
        axes.text(x, 1.04, high, ha="center", va="bottom", fontsize=8)
    names = [axis.name.removeprefix("intervention.") for axis in axes_of]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.tick_params(axis="x", pad=14)
    axes.set_yticks([])
    axes.set_ylim(-0.02, 1.02)
    for side in ("top", "left", "bottom", "right"):
        axes.spines[side].set_visible(False)
    return figure


def draw_importances(weights: dict[str, dict[str, float]]) -> Any:
    """The parameters' importances, a panel per goal."""
    most = max(len(found) for found in weights.values())
    figure = _figure(1.0 + 5.0 * len(weights), 1.0 + 0.4 * most)
    for number, (goal, found) in enumerate(weights.items()):
        axes = figure.add_subplot(1, len(weights), number + 1)
        names = [name.removeprefix("intervention.") for name in found]
        axes.barh(names, list(found.values()), color=BLUE)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel(f"importance for {goal}")
    return figure


def draw_pareto(data: Points) -> Any:
    """Every pair of goals; trials on the front stand out."""
    pairs = list(itertools.combinations(data.goals, 2))
    figure = _figure(0.6 + 4.4 * len(pairs), 3.8)
    for number, (first, second) in enumerate(pairs):
        axes = figure.add_subplot(1, len(pairs), number + 1)
        _scatter(axes, data, first.positions, second.positions)
        axes.set_xlabel(first.name)
        axes.set_ylabel(second.name)
        if number == 0:
            axes.legend(loc="best", frameon=False)
    return figure


def _axis(name: str, distribution: Any, trials: list[Any]) -> Axis:
    values = [trial.params.get(name) for trial in trials]
    if isinstance(distribution, CategoricalDistribution):
        places = {choice: float(n) for n, choice in enumerate(distribution.choices)}
        ticks = {place: str(choice) for choice, place in places.items()}
        there = [name in trial.params for trial in trials]
        positions = [places[v] if ok else None for v, ok in zip(values, there, strict=True)]
        return Axis(name, positions, ticks=ticks)
    numbers = [None if value is None else float(value) for value in values]
    return Axis(name, numbers, log=distribution.log)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _scatter(axes: Any, data: Points, xs: list[Any], ys: list[Any]) -> None:
    """Four kinds of trials, told apart by colour and by shape."""
    flags = list(zip(data.kept, data.front, data.past, strict=True))
    kinds = {
        "breaks a constraint": (GREY, "x", [not kept and not past for kept, _, past in flags]),
        "past run": (GREY, "+", data.past),
        "trial": (BLUE, "o", [kept and not front and not past for kept, front, past in flags]),
        "best": (ORANGE, "D", data.front),
    }
    for label, (color, marker, chosen) in kinds.items():
        shown = [
            (x, y) for x, y, ok in zip(xs, ys, chosen, strict=True) if ok and x is not None and y is not None
        ]
        if shown:
            axes.scatter(*zip(*shown, strict=True), color=color, marker=marker, s=22, label=label, zorder=3)


def _scale(axes: Any, axis: Axis) -> None:
    if axis.log:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if axis.ticks is not None:
        axes.set_xticks(list(axis.ticks), list(axis.ticks.values()))


def _shares(axis: Axis) -> list[float | None]:
    """Positions between 0 and 1, from the least to the greatest value."""
    scaled = [None if p is None else math.log(p) if axis.log else p for p in axis.positions]
    known = [value for value in scaled if value is not None]
    low, high = min(known), max(known)
    return [None if value is None else (value - low) / (high - low or 1.0) for value in scaled]


def _ends(axis: Axis) -> tuple[str, str]:
    known = [position for position in axis.positions if position is not None]
    low, high = min(known), max(known)
    if axis.ticks is not None:
        return axis.ticks[low], axis.ticks[high]
    return f"{low:.3g}", f"{high:.3g}"
