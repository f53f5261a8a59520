"""The smallest shifts that a finished run could have told, from what it measured. Asks no model.

As `plan` reckons them: from the cells before, the number of items, and the flips that come beside an
effect. Accuracies by category: McNemar's exact test; their means: the bootstrap interval; gaps: the
bootstrap interval of drawn runs, as a gap closes and as it widens.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from gapeval_lab.gap.design import Together, design, smoothed
from gapeval_lab.gap.power import gap_shift, interval, mcnemar_shift
from gapeval_lab.gap.records import (
    CategoryShift,
    Detectable,
    DetectableCategory,
    DetectableSide,
    DirectionShift,
    GapReport,
    ShiftReport,
)

POWER = 0.8
ALPHA = 0.05

Side = Literal["understanding", "generation"]
SIDES: tuple[Side, ...] = ("understanding", "generation")


def detectable(before: GapReport, shift: ShiftReport, placebo: ShiftReport | None) -> Detectable:
    """The smallest shifts that could have been told, with a power of 80 %.

    Flips beside an effect are those of the run itself that went against its shift, as if as many had gone
    with it; or half of the placebo's, where these are more.

    Args:
        before: the state that shifts are counted from.
        shift: the run's.
        placebo: the placebo's shift, where there is one.
    """
    found: dict[str, DetectableCategory] = {}
    ways: dict[str, tuple[Together, Together]] = {}
    for name, moved in shift.categories.items():
        control = placebo.categories.get(name) if placebo else None
        told, drawn = (
            _side(
                getattr(moved, side),
                (getattr(control, side), control.n) if control else None,
                n=moved.n,
                accuracy=_accuracy(before, name, side),
                alpha=ALPHA / len(shift.categories),
            )
            for side in SIDES
        )
        cells = smoothed(np.array(moved.transitions).sum(axis=1).tolist())
        noise = (told.noise, drawn.noise)
        closing, widening = (Together((design(cells, noise, way),)) for way in ("closes", "widens"))
        ways[name] = (closing, widening)
        found[name] = DetectableCategory(**_gaps(ways[name], [moved.n]), understanding=told, generation=drawn)
    for name, single in shift.one_sided.items():
        alone = placebo.one_sided.get(name) if placebo else None
        side = _side(
            single.accuracy,
            (alone.accuracy, alone.n) if alone else None,
            n=single.n,
            accuracy=_accuracy(before, name, single.direction),
            alpha=ALPHA / sum(one.direction == single.direction for one in shift.one_sided.values()),
        )
        told_alone = single.direction == "understanding"
        found[name] = DetectableCategory(None, side if told_alone else None, None if told_alone else side)
    return Detectable(POWER, found, **_means(shift.categories, found, ways))


def _means(
    shifts: Mapping[str, CategoryShift],
    found: Mapping[str, DetectableCategory],
    ways: Mapping[str, tuple[Together, Together]],
) -> dict[str, float | None]:
    """Of the categories that have both directions: of the gap, and of each accuracy."""
    means: dict[str, float | None] = dict.fromkeys(("gap", "closing", "widening", *SIDES))
    if not ways:
        return means
    items = [shifts[name].n for name in ways]
    both = [Together(tuple(each[i].designs[0] for each in ways.values())) for i in range(2)]
    means |= _gaps((both[0], both[1]), items)
    # A mean over categories is as sure as one over so many items.
    n = round(len(items) ** 2 / sum(1 / m for m in items))
    for side in SIDES:
        noise = float(np.mean([getattr(found[name], side).noise for name in ways]))
        means[side] = mcnemar_shift(n, noise=noise, alpha=ALPHA, power=POWER, needs=interval)
    return means


def _gaps(ways: tuple[Together, Together], n: list[int]) -> dict[str, float | None]:
    closing, widening = (gap_shift(one, n, alpha=ALPHA, power=POWER) for one in ways)
    told = [size for size in (closing, widening) if size is not None]
    return {"gap": max(told, default=None), "closing": closing, "widening": widening}


def _side(
    moved: DirectionShift,
    control: tuple[DirectionShift, int] | None,
    *,
    n: int,
    accuracy: float,
    alpha: float,
) -> DetectableSide:
    """One direction of one category; `control` is the placebo's shift and its items."""
    own = min(moved.gained, moved.lost) / n
    placebo = (control[0].gained + control[0].lost) / (2 * control[1]) if control else -1.0
    noise = max(own, placebo)
    return DetectableSide(
        n=n,
        alpha=alpha,
        noise=noise,
        source="placebo" if placebo >= own else "before and after",
        shift=mcnemar_shift(
            n, noise=noise, alpha=alpha, power=POWER, room=max(accuracy, 1 - accuracy) - noise
        ),
    )


def _accuracy(before: GapReport, name: str, side: Side) -> float:
    """Of a direction; a category that is one-sided after may have been two-sided before."""
    if name in before.categories:
        return float(getattr(before.categories[name], side).value)
    return before.one_sided[name].accuracy.value
