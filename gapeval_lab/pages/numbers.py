"""Numbers of an Outcome as they are shown, each with where it stands there and in MLflow.

A number is named by its place; its text is made from what stands there, in the terminal's own formats, so
a page cannot show another number than the record holds.
"""

import math
from collections.abc import Callable
from typing import Any

from gapeval_lab.gap.records import Estimate
from gapeval_lab.outcome import Outcome
from gapeval_lab.pages.metric_names import Keys, metric_name
from gapeval_lab.pages.parts import Interval, Number, Piece, Words
from gapeval_lab.report import NONE, SIGNIFICANT
from gapeval_lab.report_cells import MINUS, fixed, hundredths, signed
from gapeval_lab.tracking_scalars import scalars
from gapeval_lab.tracking_values import clean_key, curves

METRIC_DECIMALS = 4  # of what is logged


def pointer(keys: Keys) -> str:
    """The way as a JSON pointer."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


class Numbers:
    """The numbers of one outcome."""

    def __init__(self, outcome: Outcome, *, run: str = "") -> None:
        """Of an outcome; `run` is written beside each number, for pages of several runs."""
        self.outcome = outcome
        self.run = run
        self._scalars = scalars(outcome)
        self._curves = curves(outcome)

    def at(self, *keys: str | int) -> Any:
        """What stands there; None where there is nothing on the way."""
        found: Any = self.outcome
        for key in keys:
            if isinstance(found, dict):
                found = found.get(key)
            elif isinstance(found, list | tuple) and isinstance(key, int):
                found = found[key] if key < len(found) else None
            else:
                found = getattr(found, str(key), None)
        return found

    def one(self, *keys: str | int, write: Callable[[float], str] = fixed, scale: int = 1) -> Words:
        """One number; "n/a" where there is none.

        Args:
            keys: its place.
            write: how it is shown.
            scale: so many times itself, as 100 for a percentage.
        """
        return self._one(keys, write, scale) or NONE

    def count(self, *keys: str | int) -> Words:
        """A whole number; of a list or a table, how many entries it has."""
        value = self.at(*keys)
        if isinstance(value, list | tuple | dict):
            return Number(str(len(value)), pointer(keys), run=self.run)
        return self.one(*keys, write=lambda value: f"{value:.0f}")

    def total(self, *keys: str | int, of: tuple[str, ...]) -> Words:
        """The sum of some counts that stand side by side."""
        counts = [self.at(*keys, name) for name in of]
        return NONE if None in counts else Number(str(sum(counts)), pointer(keys), run=self.run, total=of)

    def difference(self, to: Keys, since: Keys) -> Words:
        """How far one number is from another; "n/a" where one is missing."""
        ends = self.at(*to), self.at(*since)
        if None in ends:
            return NONE
        return Number(signed(ends[0] - ends[1]), pointer(to), run=self.run, less=pointer(since))

    def moved(self, *keys: str | int) -> Words:
        """A direction's shift with the items gained and lost; a star where Holm's p is under 0.05."""
        if self.at(*keys) is None:
            return NONE
        star = " *" if self.at(*keys, "p_holm") < SIGNIFICANT else ""
        gained, lost = self.count(*keys, "gained"), self.count(*keys, "lost")
        shift = self.one(*keys, "shift", "value", write=signed)
        return joined(shift, " (+", gained, f" {MINUS}", lost, f"){star}")

    def percent(self, *keys: str | int) -> Words:
        """A share as a percentage without its interval."""
        shown = self.one(*keys, write=hundredths, scale=100)
        return shown if isinstance(shown, str) else joined(shown, " %")

    def percents(self, *keys: str | int) -> Words:
        """An Estimate of a share as a percentage with its interval, as the terminal's `percent`."""
        return self._interval(keys, hundredths, 100, " %")

    def spread(self, *keys: str | int, sign: bool = True) -> Words:
        """An Estimate with its interval, as the terminal's `spread`."""
        return self._interval(keys, signed if sign else fixed, 1, "")

    def logged(self, metric: str, *, write: Callable[[float], str] = signed) -> Words:
        """A number that is computed for MLflow and stands nowhere in the record."""
        value = self._scalars.get(metric)
        return NONE if value is None else Number(write(value), metric=metric, run=self.run)

    def _one(self, keys: Keys, write: Callable[[float], str], scale: int) -> Number | None:
        value = self.at(*keys)
        if value is None or not math.isfinite(value):
            return None
        metric, step = self._metric(keys, value)
        return Number(write(value), pointer(keys), metric, step, scale, self.run)

    def _interval(self, keys: Keys, write: Callable[[float], str], scale: int, unit: str) -> Words:
        if not isinstance(self.at(*keys), Estimate):
            return NONE
        value, low, high = (self._one((*keys, end), write, scale) for end in ("value", "low", "high"))
        if value is None or low is None or high is None:
            return NONE
        return joined(value, unit, Interval(low, high))

    def _metric(self, keys: Keys, value: float) -> tuple[str, int]:
        """The metric that holds the very number, and its step; an empty name where none does."""
        found = metric_name(keys, self.outcome)
        if found is None:
            return "", 0
        name, step = clean_key(found[0]), found[1]
        logged = dict(self._curves.get(name, ())).get(step) if step is not None else self._scalars.get(name)
        held = logged is not None and logged == round(float(value), METRIC_DECIMALS)
        return (name, step or 0) if held else ("", 0)


def joined(*parts: Words) -> Words:
    """Words, one after the other."""
    pieces: list[Piece] = []
    for part in parts:
        pieces += part if isinstance(part, tuple) else (part,)
    return tuple(piece for piece in pieces if piece != "")


def plain(words: Words) -> str:
    """Words as a reader sees them."""
    pieces = words if isinstance(words, tuple) else (words,)
    return "".join(_plain(one) for one in pieces)


def _plain(piece: Piece) -> str:
    if isinstance(piece, Interval):
        return f" [{piece.low.text}, {piece.high.text}]"
    return piece.text if isinstance(piece, Number) else piece


def marked(text: str, *numbers: Words) -> Words:
    """A sentence whose numbers, in their order, become elements that say where they come from.

    Raises:
        ValueError: the text does not show one of them.
    """
    made: list[Words] = []
    for number in numbers:
        before, found, text = text.partition(plain(number))
        if not found:
            raise ValueError(f"{plain(number)!r} is not in the sentence")
        made += [before, number]
    return joined(*made, text)
