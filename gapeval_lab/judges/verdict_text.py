"""A judge's words -> its verdict: the last JSON object with the named key and an allowed value.

Found in prose, code fences and braces; nothing is guessed where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RIGHT = (True, 1, "1", "true")
WRONG = (False, 0, "0", "false")
RAW = "raw"
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Found:
    """A verdict that could be read, and the reason that stands beside it."""

    correct: bool
    reason: str


def read_verdict(
    text: str, *, keys: Sequence[str], raw: bool = False, wanted: str | None = None
) -> Found | None:
    """The verdict in a judge's reply; None where there is none.

    Args:
        text: the reply.
        keys: names under which the verdict may stand; an object in which two of them differ is none.
        raw: "raw" is allowed, too, and means wrong.
        wanted: the verdict is "yes" or "no" instead, and right if it is this one.
    """
    decoder, place, found = json.JSONDecoder(), 0, None
    while (place := text.find("{", place)) >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        verdict = _verdict(value, keys, raw, wanted)
        # An object without a verdict may hold one that has it.
        found, place = (found, place + 1) if verdict is None else (verdict, end)
    return found


def _verdict(value: Any, keys: Sequence[str], raw: bool, wanted: str | None) -> Found | None:
    if not isinstance(value, dict):
        return None
    read = {_correct(value[key], raw, wanted) for key in keys if key in value}
    if len(read) != 1 or None in read:
        return None
    (correct,) = read
    reason = value.get("reason", "")
    words = reason if isinstance(reason, str) else json.dumps(reason)
    given = [value[key] for key in keys if key in value]
    if raw and isinstance(given[0], str) and given[0].strip().lower() == RAW:
        words = f"raw: {words}" if words else "raw"
    return Found(bool(correct), words)


def _correct(value: Any, raw: bool, wanted: str | None) -> bool | None:
    plain = value.strip().lower() if isinstance(value, str) else value
    if wanted is not None:
        return plain == wanted if isinstance(plain, str) and plain in YES_NO else None
    if not isinstance(plain, str | bool | int | float):
        return None
    if raw and plain == RAW:
        return False
    return True if plain in RIGHT else False if plain in WRONG else None
