"""How much better a chosen trial looks on what it was chosen on: dev minus test, with its interval.

The two halves hold different items and facts, so nothing is paired. Part of a difference between them is
that one half is harder: that of `before/...`, which no search has touched, says how much.
"""

import math
from statistics import fmean

from gapeval_lab.gap.records import Estimate
from gapeval_lab.outcome import QUALITIES, Outcome


def optimism(dev: Outcome, test: Outcome) -> dict[str, Estimate]:
    """Dev minus test of every metric that has an interval of its own on both."""
    own, other = estimates(dev), estimates(test)
    return {name: difference(own[name], other[name]) for name in own if name in other}


def difference(one: Estimate, other: Estimate) -> Estimate:
    """one - other of independent estimates, with the interval that follows from theirs.

    The limits' distances add up in squares, each side with the limits that matter there (Zou and Donner
    2008; of Wilson's intervals it is Newcombe's for two shares).
    """
    value = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, value - below, value + above)


def estimates(outcome: Outcome) -> dict[str, Estimate]:
    """The metrics that come with an interval, under their names in MLflow."""
    found: dict[str, Estimate | None] = {"before/gap_score": outcome.before.gap.gap}
    found |= {f"before/{name}": category.gap for name, category in outcome.before.gap.categories.items()}
    if outcome.after:
        found["after/gap_score"] = outcome.after.gap.gap
        found |= {f"after/{name}": category.gap for name, category in outcome.after.gap.categories.items()}
    if outcome.shift:
        shift = outcome.shift
        found["delta/gap_score"] = shift.gap
        found["delta/understanding"] = shift.understanding
        found["delta/generation"] = shift.generation
        found |= {f"delta/{name}": category.gap for name, category in shift.categories.items()}
        for name, inside in (("on_target", True), ("off_target", False)):
            moved = [
                category.gap
                for target, category in shift.categories.items()
                if (target in outcome.target_categories) == inside
            ]
            if moved:
                found[f"delta/{name}"] = _mean(moved)
    if outcome.quality:
        for name in (*QUALITIES, "target_logprob"):
            cells = getattr(outcome.quality, name)
            found |= {f"edit/{name}/{side}": cell.after for side, cell in cells.items()}
        if outcome.quality.transfer_ratio:
            found["edit/transfer_ratio"] = outcome.quality.transfer_ratio
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _mean(independent: list[Estimate]) -> Estimate:
    """The mean of independent estimates, limits as in `difference`."""
    value, number = fmean(one.value for one in independent), len(independent)
    below = math.hypot(*(one.value - one.low for one in independent)) / number
    above = math.hypot(*(one.high - one.value for one in independent)) / number
    return Estimate(value, value - below, value + above)
