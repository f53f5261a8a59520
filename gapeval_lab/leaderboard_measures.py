"""A metric of many runs with what is needed to rank them: values, intervals, errors of differences.

What can be counted from verdicts (gaps, accuracies, and their shifts) is drawn anew for all runs together, so
that differences are paired; anything else has its own interval, or none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.errors import UserError
from gapeval_lab.gap.ranks import NORMAL, code, draw, standard_errors
from gapeval_lab.gap.records import Estimate
from gapeval_lab.summaries import Summary
from gapeval_lab.tracking_read import Logged
from gapeval_lab.tracking_values import clean_key

_COUNTED = re.compile(r"(delta|before|after)/(.+)")
_HIGHER = re.compile(
    r"((delta|before|after)/(understanding|generation)|(understanding|generation)/.+"
    r"|edit/(?!locality_pixel_distance).+|protocol/.+/(understanding|generation|pass_.+|agreement_.+)"
    r"|protocol/.+/delta_(understanding|generation)|.+/overlap)"
)


@dataclass(frozen=True)
class Sort:
    """By which metric, and which end of it is best."""

    metric: str
    lower_is_better: bool

    @staticmethod
    def parse(text: str) -> Sort:
        """Of 'METRIC', 'METRIC asc' or 'METRIC desc'; the metric may be written as in a filter.

        Raises:
            UserError: it is neither.
        """
        words = text.strip().rsplit(maxsplit=1)
        order = words.pop().lower() if len(words) == 2 and words[1].lower() in ("asc", "desc") else ""
        name = words[0] if words else ""
        name = re.sub(r"^metrics?\.", "", name).strip("`\"'")
        if not name or len(words) != 1 or " " in name:
            raise UserError(f"--sort: '{text}' is no metric; write 'delta/gap_score' or 'time/after desc'")
        return Sort(name, order == "asc" if order else _HIGHER.fullmatch(name) is None)


@dataclass(frozen=True)
class Measured:
    """The metric of several runs, nan where a run lacks it.

    Attributes:
        values: (runs,). low, high: (runs,), nan without an interval.
        errors: (runs, runs), of differences, nan where nothing is known of one of the two.
        paired: how many runs are paired by item.
    """

    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    errors: NDArray[np.float64]
    paired: int


def measure(runs: Sequence[tuple[Summary | None, Logged | None]], metric: str) -> Measured:
    """The metric of runs that asked the same items.

    Args:
        runs: summary and MLflow's record of each, of which one may be missing.
        metric: its name in MLflow.
    """
    n = len(runs)
    estimates = [_own(summary, logged, metric) for summary, logged in runs]
    values, low, high = (
        np.array([getattr(one, end) for one in estimates]) for end in ("value", "low", "high")
    )
    own = (high - low) / (2 * NORMAL)
    errors = np.sqrt(own[:, None] ** 2 + own[None, :] ** 2)
    places, draws = _drawn([summary for summary, _ in runs], metric)
    if places:
        block = np.ix_(places, places)
        single = draws[1:].std(axis=0, ddof=1)
        others = np.ones(n, dtype=bool)
        others[places] = False
        for place, spread in zip(places, single, strict=True):
            errors[place, others] = errors[others, place] = np.sqrt(spread**2 + own[others] ** 2)
        errors[block] = standard_errors(draws[1:])
        span = np.percentile(draws[1:], (2.5, 97.5), axis=0)
        for at, place in enumerate(places):
            if np.isnan(low[place]):
                value = values[place] = draws[0, at]
                low[place], high[place] = min(span[0, at], value), max(span[1, at], value)
    np.fill_diagonal(errors, 0.0)
    return Measured(values, low, high, errors, len(places))


def _drawn(summaries: Sequence[Summary | None], metric: str) -> tuple[list[int], NDArray[np.float64]]:
    """Places of the runs that could be drawn together, and the draws, value first."""
    nothing: tuple[list[int], NDArray[np.float64]] = ([], np.empty((0, 0)))
    match = _COUNTED.fullmatch(metric)
    if match is None:
        return nothing
    state, of = match.groups()
    needed = ("before", "after") if state == "delta" else (state,)
    candidates = [
        place for place, one in enumerate(summaries) if one and all(phase in one.states for phase in needed)
    ]
    if not candidates:
        return nothing
    first = summaries[candidates[0]]
    same = [
        (place, one)
        for place in candidates
        if (one := summaries[place]) and first and (one.items, one.digests) == (first.items, first.digests)
    ]
    chosen = _categories([one for _, one in same], of)
    if first is None or chosen is None:
        return nothing
    signs = {"before": -1, "after": 1} if state == "delta" else {state: 1}
    states = [
        (sign, np.stack([code(one.states[phase].told, one.states[phase].drawn) for _, one in same]))  # type: ignore[index]
        for phase, sign in signs.items()
    ]
    what = of if of in ("understanding", "generation") else "gap"
    drawn = draw(states, of=first.category_of, categories=first.categories, what=what)
    means = drawn.mean(chosen)
    known = ~np.isnan(means[0])
    return [place for (place, _), there in zip(same, known, strict=True) if there], means[:, known]


def _categories(summaries: Sequence[Summary], of: str) -> NDArray[np.bool_] | None:
    """(runs, categories): those that the metric is a mean over; None where it is no such metric."""
    found = []
    for one in summaries:
        targets = [name in one.target_categories for name in one.categories]
        if of in ("gap_score", "understanding", "generation"):
            found.append([True] * len(targets))
        elif of == "on_target":
            found.append(targets)
        elif of == "off_target":
            found.append([not there for there in targets])
        elif of in map(clean_key, one.categories):
            found.append([clean_key(name) == of for name in one.categories])
        else:
            return None
    return np.array(found)


def _own(summary: Summary | None, logged: Logged | None, metric: str) -> Estimate:
    """A run's own number with its interval; nan where it has none."""
    found = _of_summary(summary, metric) if summary else None
    if found is not None:
        return found
    nothing = float("nan")
    if logged is None or metric not in logged.metrics:
        return Estimate(nothing, nothing, nothing)
    ends = (nothing, nothing)
    if metric.startswith("delta/"):
        low, high = (logged.metrics.get(metric.replace("delta", end, 1)) for end in ("low", "high"))
        if low is not None and high is not None:
            ends = (low, high)
    return Estimate(logged.metrics[metric], *ends)


def _of_summary(summary: Summary, metric: str) -> Estimate | None:
    side = {"gap_score": "gap", "understanding": "understanding", "generation": "generation"}
    found: Estimate | None = None
    match metric.split("/"):
        case ["delta", ("gap_score" | "understanding" | "generation") as what] if summary.shift:
            found = getattr(summary.shift, side[what])
        case ["before" | "after" as state, ("gap_score" | "understanding" | "generation") as what]:
            there = summary.states.get(state)
            found = getattr(there.gap, side[what]) if there else None
        case ["delta", category] if summary.shift and category in summary.shift.categories:
            found = summary.shift.categories[category].gap
        case ["edit", measure, ("text" | "image") as of] if of in summary.quality.get(measure, {}):
            found = summary.quality[measure][of].after
        case ["edit", "transfer_ratio"]:
            found = summary.transfer_ratio
    return found
