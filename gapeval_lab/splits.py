"""Halves of a benchmark: one to search on, one to test on.

An item's half is its tag `split`, where the benchmark marks one; else a hash of the item's id decides,
the same in any process. Knows items and nothing of searches.
"""

import hashlib
from collections.abc import Sequence

from gapeval_lab.errors import UserError
from gapeval_lab.items import Item

HALVES = ("dev", "test")


def marked(items: Sequence[Item]) -> bool:
    """Whether the benchmark itself says which half an item is in.

    Raises:
        UserError: it says so of some items only.
    """
    without = [item.id for item in items if "split" not in item.tags]
    if without and len(without) < len(items):
        raise UserError(
            f"evaluation.split: {len(without)} of {len(items)} items have no tag 'split', {without[0]} for "
            "one; mark all of them or none"
        )
    return not without


def of_split(items: Sequence[Item], split: str | None) -> list[Item]:
    """The items of one half, in the benchmark's order; all of them for None.

    Raises:
        UserError: no item is in it, or some items are marked and others are not.
    """
    if split is None:
        return list(items)
    own = marked(items)
    halves = [item.tags["split"] if own else half(item.id) for item in items]
    chosen = [item for item, its in zip(items, halves, strict=True) if its == split]
    if not chosen:
        known = ", ".join(sorted(set(halves)))
        raise UserError(f"evaluation.split: no item is marked '{split}'; the benchmark has {known}")
    return chosen


def half(identity: str) -> str:
    """The half of an item of a benchmark that marks none: by SHA-256 of its id."""
    return HALVES[hashlib.sha256(f"half|{identity}".encode()).digest()[0] % 2]
