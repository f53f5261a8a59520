"""Stored deltas added up into one, each times its scale, in the order given.

A sum: the order changes roundings and the order of the factors, so the address, and nothing that can
be measured. What was fitted to the model as another edit had left it is reordered by a recipe's
`then`, which fits again.
"""

from __future__ import annotations

from collections.abc import Sequence

from gapeval_lab.delta import WeightDelta
from gapeval_lab.delta_file import SHORT, Origin, Part, ScaledFile, read_head
from gapeval_lab.errors import UserError


def compose(files: Sequence[ScaledFile], *, any_weights: bool = False) -> tuple[WeightDelta, Origin]:
    """The sum, and where it comes from.

    Args:
        files: what to add up, in order.
        any_weights: also take deltas that were made for different weights; the sum then fits all.

    Raises:
        UserError: a file cannot be read, shapes differ, or the deltas are of different weights.
    """
    total, parts, weights, sides = WeightDelta.zero(), [], set(), set()
    for file in files:
        head = read_head(file.path)
        total = total.then(WeightDelta.load(file.path).scaled(file.scale))
        parts.append(Part(head.address, file.scale, file.name))
        weights.add(head.origin.weights)
        sides.add(head.origin.direction)
    known = sorted(weights - {""})
    if len(known) > 1 and not any_weights:
        raise UserError(
            f"delta: these were made for different weights ({', '.join(one[:SHORT] for one in known)}), and "
            "their sum means little; take deltas of one model, or give --any-weights"
        )
    return total, Origin(
        weights=known[0] if len(known) == 1 else "",
        direction=sides.pop() if len(sides) == 1 else "both",
        parts=tuple(parts),
    )
