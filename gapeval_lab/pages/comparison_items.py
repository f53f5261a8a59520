"""Items on which runs part: their last pictures and answers side by side, filterable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gapeval_lab.comparing import Comparison
from gapeval_lab.comparing_runs import Run
from gapeval_lab.outcome import ItemRow, Outcome
from gapeval_lab.pages.gallery import MARKS, Facet, State, shot
from gapeval_lab.pages.parts import Block, Note, Section

MOST_RUNS = 6  # pictures that stand side by side
MOST = 400  # cards
SIDES = (("Told", "understanding"), ("Drawn", "generation"))


@dataclass(frozen=True)
class Split:
    """An item on which verdicts differ: each run's last state of it, named by the run's number.

    `facets`: the places of its values in the filters.
    """

    views: tuple[State, ...]
    facets: str


@dataclass(frozen=True)
class Disagreements:
    """The filters and the cards."""

    template: ClassVar[str] = "disagreements.html.j2"
    facets: Sequence[Facet]
    cards: Sequence[Split]
    marks: ClassVar[dict[str, str]] = MARKS


def disagreements(comparison: Comparison, runs: Sequence[Run], outcomes: Sequence[Outcome]) -> Section | None:
    """The section; None where no item is common or no verdict differs.

    The reference comes first, then the others in their order, at most `MOST_RUNS` in all; those that cannot
    be compared with it are left out.
    """
    places = _chosen(comparison)
    if len(places) < 2:
        return None
    rows = []
    for place in places:
        last = outcomes[place].after if "after" in runs[place].summary.states else outcomes[place].before
        keyed = zip(runs[place].summary.keys(), last.rows if last else [], strict=True)
        rows.append(dict(keyed))
    common = [key for key in rows[0] if all(key in one for one in rows[1:])]
    split = [key for key in common if _parted([one[key] for one in rows])]
    if not split:
        return None
    shown = split[:MOST] if len(split) <= MOST else [split[i * len(split) // MOST] for i in range(MOST)]
    folders = [run.place if run.place.is_dir() else run.place.parent for run in runs]
    groups = [
        tuple(_view(place + 1, one[key], folders[place]) for place, one in zip(places, rows, strict=True))
        for key in shown
    ]
    columns = [column for column in _columns(groups) if len(set(column[1])) > 1]
    facets = [Facet(label, tuple(_counted(values).items())) for label, values in columns]
    known = [{value: place for place, value in enumerate(_counted(values))} for _, values in columns]
    cards = [
        Split(
            views,
            " ".join(str(of[values[number]]) for of, (_, values) in zip(known, columns, strict=True)),
        )
        for number, views in enumerate(groups)
    ]
    blocks: list[Block] = []
    if len(shown) < len(split):
        said = f"{len(shown)} of {len(split)} items are shown, evenly spaced; name fewer runs to see more."
        blocks.append(Note(said, "warning"))
    left = len(outcomes) - len(places)
    numbers = ", ".join(str(place + 1) for place in places)
    lead = f"{len(split)} of {len(common)} common items, of which the verdicts in runs {numbers} differ."
    if left:
        lead += f" {left} more runs are not shown here."
    return Section(
        "items", "Items on which they part", "Items", [*blocks, Disagreements(facets, cards)], lead=lead
    )


def _chosen(comparison: Comparison) -> list[int]:
    able = {pair.number for pair in comparison.pairs if pair.compared != "nothing"}
    others = [row.number for row in comparison.rows if row.number in able]
    return [number - 1 for number in (comparison.reference, *others)][:MOST_RUNS]


def _parted(rows: Sequence[ItemRow]) -> bool:
    return any(len({getattr(row, side) for row in rows}) > 1 for _, side in SIDES)


def _view(number: int, row: ItemRow, folder: Path) -> State:
    found = shot(folder / row.picture) if row.picture else None
    return State(str(number), row, found, lost=bool(row.picture) and found is None)


def _columns(groups: Sequence[tuple[State, ...]]) -> list[tuple[str, list[str]]]:
    """The filters: their labels, and each card's value."""
    columns = [("Category", [views[0].row.category.replace("_", " ") for views in groups])]
    for label, side in SIDES:
        columns.append((f"{label} right in", [_right_in(views, side) for views in groups]))
    return columns


def _right_in(views: Sequence[State], side: str) -> str:
    """'runs 1, 3', 'all', 'none'."""
    right = [view.name for view in views if getattr(view.row, side)]
    if len(right) == len(views):
        return "all"
    return f"run{'s' if len(right) > 1 else ''} {', '.join(right)}" if right else "none"


def _counted(values: Sequence[str]) -> dict[str, int]:
    counts = Counter(values)
    return {value: counts[value] for value in sorted(counts)}
