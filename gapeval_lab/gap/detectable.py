"""The smallest shifts that a finished run could have told, from what it measured. Asks no model.

Accuracies by category: McNemar's exact test, at the run's number of items and with its own flips. The
gap, and all means: (1.96 + 0.84) standard errors of the shift's bootstrap, the same draws as the report's.
"""

from typing import Literal

import numpy as np
from scipy import stats

from gapeval_lab.gap.power import mcnemar_shift
from gapeval_lab.gap.records import (
    Detectable,
    DetectableCategory,
    DetectableSide,
    DirectionShift,
    GapReport,
    ShiftReport,
)
from gapeval_lab.gap.score import Floats
from gapeval_lab.gap.shift import resampled

POWER = 0.8
ALPHA = 0.05

Side = Literal["understanding", "generation"]
SIDES: tuple[Side, ...] = ("understanding", "generation")


def detectable(
    before: GapReport,
    shift: ShiftReport,
    placebo: ShiftReport | None,
    *,
    seed: int,
    replicates: int = 10_000,
) -> Detectable:
    """The smallest shifts that could have been told, with a power of 80 %.

    Flips without an effect are the placebo's, half of them each way; without a placebo, those of the
    run itself that went against the shift, as if as many had gone with it by chance.

    Args:
        before: the state that shifts are counted from.
        shift: the run's.
        placebo: the placebo's shift, where there is one.
        seed, replicates: the report's, so that its draws are drawn again.
    """
    factor = float(stats.norm.isf(ALPHA / 2) + stats.norm.ppf(POWER))
    found: dict[str, DetectableCategory] = {}
    draws = []
    for name, moved in shift.categories.items():
        part = resampled(name, np.array(moved.transitions), seed=seed, replicates=replicates)
        draws.append(part)
        control = placebo.categories.get(name) if placebo else None
        found[name] = DetectableCategory(
            gap=_size(part["gap"], factor),
            **{
                side: _side(
                    getattr(moved, side),
                    (getattr(control, side), control.n) if control else None,
                    n=moved.n,
                    accuracy=_accuracy(before, name, side),
                    alpha=ALPHA / len(shift.categories),
                )
                for side in SIDES
            },
        )
    for name, single in shift.one_sided.items():
        alone = placebo.one_sided.get(name) if placebo else None
        side = _side(
            single.accuracy,
            (alone.accuracy, alone.n) if alone else None,
            n=single.n,
            accuracy=_accuracy(before, name, single.direction),
            alpha=ALPHA / sum(one.direction == single.direction for one in shift.one_sided.values()),
        )
        told = single.direction == "understanding"
        found[name] = DetectableCategory(None, side if told else None, None if told else side)
    means = {
        what: _size(np.mean([part[what] for part in draws], axis=0), factor) if draws else None
        for what in ("gap", *SIDES)
    }
    return Detectable(POWER, found, **means)


def _side(
    moved: DirectionShift,
    control: tuple[DirectionShift, int] | None,
    *,
    n: int,
    accuracy: float,
    alpha: float,
) -> DetectableSide:
    """One direction of one category; `control` is the placebo's shift and its items."""
    noise = min(moved.gained, moved.lost) / n
    if control is not None:
        noise = (control[0].gained + control[0].lost) / (2 * control[1])
    room = max(accuracy, 1 - accuracy) - noise
    return DetectableSide(
        n=n,
        alpha=alpha,
        noise=noise,
        source="before and after" if control is None else "placebo",
        shift=mcnemar_shift(n, noise=noise, alpha=alpha, power=POWER, room=room),
    )


def _accuracy(before: GapReport, name: str, side: Side) -> float:
    """Of a direction; a category that is one-sided after may have been two-sided before."""
    if name in before.categories:
        return float(getattr(before.categories[name], side).value)
    return before.one_sided[name].accuracy.value


def _size(draws: Floats, factor: float) -> float | None:
    """So many standard errors; None where no item changed, which shows no error rather than none at all."""
    error = float(draws.std(ddof=1))
    return factor * error if error > 1e-12 else None
