"""Verdicts to cells: which items a model gets right in both directions, in one, in none.

Knows verdicts as plain values and the published file of rows; knows no model, judge or estimator.
Column order everywhere: both, und_only, gen_only, neither (the paper's p11, p10, p01, p00).
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.errors import UserError
from gapeval_lab.gap.records import Cells

ASSUMED_N = 1000
"""Items per row that the closed form takes where a file gives proportions, which carry no n."""

SUM_TOLERANCE = 5e-3
"""How far a row of proportions may be from summing to 1; the published evaluator's own limit."""

_CELLS = 4
_FIX = (
    "write a row as [both, understanding only, generation only, neither], "
    "in proportions with sum 1 or in whole counts"
)


class ItemVerdict(NamedTuple):
    """One item's verdicts in one state; None where a direction was not scored."""

    category: str
    understanding: bool | None
    generation: bool | None


@dataclass(frozen=True)
class Rows:
    """One model's rows in the published format.

    Attributes:
        proportions: one [p11, p10, p01, p00] per row, each summing to 1 within `SUM_TOLERANCE`,
            as the file has them (counts are divided by their sum).
        counts: the same rows as cells where the file gave counts; None where it gave proportions.
    """

    proportions: tuple[tuple[float, float, float, float], ...]
    counts: tuple[Cells, ...] | None

    @property
    def assumed_n(self) -> int | None:
        """The n that a closed-form score has to assume per row; None where n is real."""
        return ASSUMED_N if self.counts is None else None


def cells(items: Iterable[ItemVerdict], *, categories: Sequence[str] | None = None) -> dict[str, Cells]:
    """Count the joint outcomes of each category.

    Args:
        items: verdicts of one state. An item that lacks a verdict is unscored, never wrong.
        categories: the order of the result, and all that may occur; a category without items gets
            empty cells. By default those that occur, in order of first appearance.

    Raises:
        UserError: an item's category is not among `categories`.
    """
    return {name: cells_of(codes) for name, codes in encode(items, categories=categories).items()}


def encode(
    items: Iterable[ItemVerdict], *, categories: Sequence[str] | None = None
) -> dict[str, NDArray[np.int64]]:
    """The cell of each item, 0 to 3 in column order, or -1 where it is unscored: per category.

    The items of a category keep their order; `categories` is as for `cells`.

    Raises:
        UserError: an item's category is not among `categories`.
    """
    found: dict[str, list[int]] = {name: [] for name in categories or ()}
    for item in items:
        if item.category not in found:
            if categories is not None:
                raise UserError(
                    f"category: an item has '{item.category}', which is not one of "
                    f"{', '.join(categories)}; add it to the categories or leave the item out"
                )
            found[item.category] = []
        found[item.category].append(_code(item))
    return {name: np.array(codes, dtype=np.int64) for name, codes in found.items()}


def cells_of(codes: NDArray[np.int64]) -> Cells:
    """Cells from codes as `encode` gives them."""
    scored = codes[codes >= 0]
    both, und_only, gen_only, neither = np.bincount(scored, minlength=_CELLS).tolist()
    return Cells(both, und_only, gen_only, neither, unscored=len(codes) - len(scored))


def counts_array(table: Iterable[Cells]) -> NDArray[np.int64]:
    """(rows, 4) counts, in the given order."""
    rows = [[c.both, c.und_only, c.gen_only, c.neither] for c in table]
    return np.array(rows, dtype=np.int64).reshape(len(rows), _CELLS)


def proportions(table: Mapping[str, Cells]) -> NDArray[np.float64]:
    """(categories, 4) joint proportions, in the order of the mapping.

    Raises:
        UserError: a category has no item scored in both directions.
    """
    empty = [name for name, c in table.items() if c.n == 0]
    if empty:
        raise UserError(
            f"category: {', '.join(empty)} has no item scored in both directions; "
            "leave it out, or score its items"
        )
    counts = counts_array(table.values())
    shares: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return shares


def read_rows(path: Path) -> dict[str, Rows]:
    """Read rows in the published format: {model: [[p11, p10, p01, p00], ...]}, one row per category.

    The rows of a model are proportions if all of them sum to 1 (within `SUM_TOLERANCE`), otherwise
    counts, which must be whole numbers.

    Raises:
        UserError: the file cannot be read, is not of this form, or has bad rows (all are listed).
    """
    data = _parse(path)
    problems: list[str] = []
    result: dict[str, Rows] = {}
    for model, rows in data.items():
        if not isinstance(rows, list) or not rows:
            problems.append(f"model '{model}': {_short(rows)} is not a list of rows")
            continue
        faults = [_fault(row) for row in rows]
        if not any(faults):
            faults = _faults_together(rows)
        if not any(faults):
            result[model] = _rows(rows)
        problems += [f"model '{model}', row {i}: {fault}" for i, fault in enumerate(faults, 1) if fault]
    if problems:
        raise UserError("\n".join([f"{path}: {len(problems)} bad; {_FIX}", *problems]))
    return result


def _code(item: ItemVerdict) -> int:
    if item.understanding is None or item.generation is None:
        return -1
    return (0 if item.understanding else 2) + (0 if item.generation else 1)


def _parse(path: Path) -> dict[str, Any]:
    shape = 'write {"model name": [[p11, p10, p01, p00], ...]}'
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); {shape}") from None
    if not isinstance(data, dict) or not data:
        raise UserError(f"{path}: {_short(data)} is not an object of models; {shape}")
    return data


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{', '.join(twice)} stands twice")
    return data


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fault(row: Any) -> str:
    """What is wrong with a row taken alone; empty if nothing is."""
    if not isinstance(row, list) or len(row) != _CELLS:
        return f"{_short(row)} is not a list of 4 numbers"
    if any(isinstance(x, bool) or not isinstance(x, int | float) for x in row):
        return f"{_short(row)} holds something that is not a number"
    # Beyond 1e15 a float no longer tells neighbouring counts apart; this also catches nan and inf.
    if not all(abs(x) <= 1e15 for x in row):
        return f"{_short(row)} holds a number that is not finite or too large"
    total = math.fsum(row)
    if min(row) < 0:
        return f"{_short(row)} (sum {total:g}) holds a negative number"
    if total == 0:
        return f"{_short(row)} (sum 0) is empty"
    if not _is_proportions(row) and not _is_counts(row):
        return f"{_short(row)} sums to {total:g}, not 1, and is not whole counts"
    return ""


def _faults_together(rows: list[list[float]]) -> list[str]:
    """What is wrong with rows that are fine alone, one text per row: proportions beside counts."""
    if all(map(_is_proportions, rows)) or all(map(_is_counts, rows)):
        return [""] * len(rows)
    return [
        ""
        if _is_proportions(row)
        else f"{_short(row)} sums to {math.fsum(row):g}, beside rows of proportions"
        for row in rows
    ]


def _is_proportions(row: list[float]) -> bool:
    return abs(math.fsum(row) - 1) <= SUM_TOLERANCE


def _is_counts(row: list[float]) -> bool:
    return all(float(x).is_integer() for x in row)


def _rows(rows: list[list[float]]) -> Rows:
    if all(map(_is_proportions, rows)):
        return Rows(tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in rows), None)
    counts = tuple(Cells(*(int(x) for x in row)) for row in rows)
    shares = proportions({str(i): c for i, c in enumerate(counts)})
    return Rows(tuple((a, b, c, d) for a, b, c, d in shares.tolist()), counts)
