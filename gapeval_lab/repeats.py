"""Several runs of one recipe, a seed each, as one table: means with intervals over seeds.

Reads Outcomes only. An interval is Student's t over the runs, n - 1 degrees of freedom: it says how
much the seed matters, not how much the choice of facts does (each run's own intervals say that).
"""

import math
from collections.abc import Sequence

import numpy as np

from gapeval_lab.gap.records import Estimate
from gapeval_lab.outcome import QUALITIES, Outcome


def over_seeds(values: Sequence[float], *, share: bool = False) -> Estimate:
    """The mean of at least one value with its 95 % t-interval; a single value has no interval (nan).

    Args:
        values: one per run.
        share: whether they are shares, whose interval ends at 0 and 1.
    """
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    low, high = mean - half, mean + half
    return Estimate(mean, max(low, 0.0), min(high, 1.0)) if share else Estimate(mean, low, high)


def repeats_data(outcomes: Sequence[Outcome]) -> list[tuple[str, Estimate, int]]:
    """(measure, mean over seeds, runs that have it), in the order of the tables of a single run."""
    found: dict[str, list[float]] = {}
    shares = {f"{name}/{side}" for name in QUALITIES for side in ("text", "image")}

    def add(name: str, value: float | None) -> None:
        if value is not None:
            found.setdefault(name, []).append(value)

    for outcome in outcomes:
        if outcome.shift is not None:
            add("gap shift", outcome.shift.gap.value if outcome.shift.gap else None)
            for name, category in outcome.shift.categories.items():
                mark = " (edited)" if name in outcome.target_categories else ""
                add(
                    f"understanding shift, {name.replace('_', ' ')}{mark}", category.understanding.shift.value
                )
                add(f"generation shift, {name.replace('_', ' ')}{mark}", category.generation.shift.value)
        if outcome.quality is not None:
            for name in QUALITIES:
                for side, cell in getattr(outcome.quality, name).items():
                    add(f"{name}/{side}", cell.after.value)
            for protocol in outcome.quality.protocols:
                for name, cell in protocol.cells.items():
                    add(f"{name}/{protocol.name}", cell.after.value)
                    shares.add(f"{name}/{protocol.name}")
                for name, over in protocol.over_direct.items():
                    add(f"{name}/{protocol.name} over direct", over.value)
            ratio = outcome.quality.transfer_ratio
            add("transfer ratio", ratio.value if ratio else None)
        for name, emergence in outcome.trainings().items():
            number = name.partition("/")[2]
            of = f", intervention {number}" if number else ""
            for side, levels in emergence.crossings.items():
                for level, step in levels.items():
                    add(f"{side} crosses {level} %, updates{of}", step)
            for level, lag in emergence.lag.items():
                add(f"lag at {level} %, image after text{of}", lag)
    return [(name, over_seeds(values, share=name in shares), len(values)) for name, values in found.items()]
