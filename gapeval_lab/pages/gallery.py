"""The gallery of a run's page: every item with its pictures and answers, before and after.

Cards are plain HTML, so that they are there without scripts; the browser lays out those in sight alone.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gapeval_lab.outcome import ItemRow, Outcome
from gapeval_lab.pages.numbers import Numbers, joined
from gapeval_lab.pages.parts import Block, Note, Section, Words
from gapeval_lab.tracking_tables import Pair, pairs, word

SIDE = 256  # pixels: larger pictures are made smaller
AS_IT_IS = 24 * 1024  # bytes: a small picture's file is taken as it is up to this size
QUALITY = 80
MOST = 1500  # cards
THREADS = 4
ANSWERS = 20  # in the filter by what was answered
LONGEST_ANSWER = 40

MARKS = {"right": "✓", "wrong": "✗", "not scored": "–"}
CHANGED = "changed"


@dataclass(frozen=True)
class Shot:
    """A picture inside the page: a data URI, its size in pixels, and the size of its file in bytes."""

    data: str
    width: int
    height: int
    size: int


@dataclass(frozen=True)
class State:
    """An item in one state, or in one of several runs."""

    name: str
    row: ItemRow
    shot: Shot | None
    lost: bool  # it was drawn, but the picture is not there

    @property
    def told(self) -> str:
        """The verdict on the answer."""
        return word(self.row.understanding)

    @property
    def drawn(self) -> str:
        """The verdict on the picture."""
        return word(self.row.generation)


@dataclass(frozen=True)
class Card:
    """An item. `places` are its values in each facet, as their places there."""

    pair: Pair
    given: Shot | None  # the picture that was asked about, or to be edited
    states: tuple[State, ...]
    places: tuple[tuple[int, ...], ...]

    @property
    def same(self) -> bool:
        """True where the picture after is the one before, to the bit."""
        shots = [state.shot for state in self.states]
        return len(shots) == 2 and shots[0] is not None and shots[0] == shots[1]

    @property
    def moved(self) -> str:
        """Where it stood and where it stands, as 'both → told only'."""
        return _cell(self.pair)

    @property
    def facets(self) -> str:
        """`places` as one attribute: facets apart by spaces, values by commas."""
        return " ".join(",".join(map(str, values)) for values in self.places)


@dataclass(frozen=True)
class Facet:
    """A filter: its label, and each value with how many cards have it."""

    label: str
    options: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Gallery:
    """The filters and the cards."""

    template: ClassVar[str] = "gallery.html.j2"
    facets: Sequence[Facet]
    cards: Sequence[Card]
    marks: ClassVar[dict[str, str]] = MARKS


def gallery(numbers: Numbers, folder: Path) -> Section | None:
    """The section; None for a run without items."""
    found = pairs(numbers.outcome)
    if not found:
        return None
    chosen = sample(found, MOST)
    made = cards(chosen, folder)
    blocks: list[Block] = []
    if len(chosen) < len(found):
        changed = sum(_moved(pair) for pair in found)
        blocks.append(
            Note(
                f"{len(chosen)} of {len(found)} items are shown, to keep this file small: all {changed} "
                f"that changed, and {len(chosen) - changed} of the others, evenly spaced. "
                "All stand in outcome.json.",
                "warning",
            )
        )
    lost = sum(state.lost for card in made for state in card.states)
    if lost:
        blocks.append(Note(f"{lost} pictures are no longer in the run's folder.", "warning"))
    blocks.append(Gallery(facets(chosen), made))
    return Section("gallery", "Every item", "Items", blocks, lead=_lead(numbers.outcome, made))


def _lead(outcome: Outcome, made: Sequence[Card]) -> Words:
    weight = sum(shot.size for card in made for shot in shots(card)) / 1024
    start = "Same prompts, same seeds, before and after; what changed comes first. " if outcome.after else ""
    if outcome.target_categories:
        start += "Items keep their old truth: an edited fact, given as edited, counts as wrong here. "
    said = f"{weight:.0f} KiB" if weight < 1000 else f"{weight / 1024:.1f} MiB"
    return joined(start, f"Pictures take {said} of this file.") if weight else start


def shots(card: Card) -> list[Shot]:
    """The pictures that a card holds; one that did not change is held once."""
    states = card.states[:1] if card.same else card.states
    return [shot for shot in (card.given, *(state.shot for state in states)) if shot]


def sample(found: Sequence[Pair], most: int) -> list[Pair]:
    """What changed first, then the rest in its order; over the limit, evenly spaced ones of the rest."""
    moved = [pair for pair in found if _moved(pair)]
    rest = [pair for pair in found if not _moved(pair)]
    room = max(0, most - len(moved))
    if len(rest) > room:
        rest = [rest[place * len(rest) // room] for place in range(room)]
    return moved + rest


def cards(chosen: Sequence[Pair], folder: Path) -> list[Card]:
    """Items as cards, with their pictures read."""
    names = {
        name
        for pair in chosen
        for row in (pair.before, pair.after)
        if row
        for name in (row.picture, row.input_picture)
        if name
    }
    ordered = sorted(names)
    with ThreadPoolExecutor(THREADS) as pool:
        read = dict(zip(ordered, pool.map(lambda name: shot(folder / name), ordered), strict=True))

    def state(name: str, row: ItemRow) -> State:
        found = read.get(row.picture or "")
        return State(name, row, found, lost=bool(row.picture) and found is None)

    return [
        Card(
            pair,
            read.get(pair.before.input_picture or ""),
            (state("before", pair.before), *([state("after", pair.after)] if pair.after else [])),
            places,
        )
        for pair, places in zip(chosen, _places(chosen), strict=True)
    ]


def shot(file: Path) -> Shot | None:
    """A picture for the page, made smaller where it is large; None where it cannot be read."""
    from PIL import Image

    try:
        raw = file.read_bytes()
        with Image.open(io.BytesIO(raw)) as picture:
            kind, size = picture.format, picture.size
            if kind not in ("PNG", "JPEG", "WEBP", "GIF") or max(size) > SIDE or len(raw) > AS_IT_IS:
                smaller = picture.convert("RGBA" if "A" in picture.getbands() else "RGB")
                smaller.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                smaller.save(stream, "WEBP", quality=QUALITY, method=4)
                raw, kind, size = stream.getvalue(), "WEBP", smaller.size
    except (OSError, ValueError):
        return None
    data = f"data:image/{kind.lower()};base64,{base64.b64encode(raw).decode('ascii')}"
    return Shot(data, *size, len(data))


def facets(chosen: Sequence[Pair]) -> list[Facet]:
    """The filters, each value with its count; those that could not tell cards apart are left out."""
    return [Facet(label, tuple(_counted(values, order).items())) for label, values, order in _columns(chosen)]


def change(old: bool | None, new: bool | None) -> tuple[str, ...]:
    """What became of a verdict, as the filter's values."""
    if old is None or new is None:
        return ("not scored",)
    if old == new:
        return (f"still {word(new)}",)
    return (CHANGED, "gained" if new else "lost")


Column = tuple[str, list[tuple[str, ...]], tuple[str, ...]]
"""A facet's label, the values of each card, and the order of values where it has one."""

CHANGES = (CHANGED, "gained", "lost", "still right", "still wrong", "right", "wrong", "not scored")
OTHER = "another answer"


def _columns(chosen: Sequence[Pair]) -> list[Column]:
    def verdicts(side: str) -> list[tuple[str, ...]]:
        return [
            change(getattr(pair.before, side), getattr(pair.after, side))
            if pair.after
            else (word(getattr(pair.before, side)),)
            for pair in chosen
        ]

    made: list[Column] = [
        ("Category", [(pair.before.category.replace("_", " "),) for pair in chosen], ()),
        ("Told", verdicts("understanding"), CHANGES),
        ("Drawn", verdicts("generation"), CHANGES),
        ("Right in", [(_cell(pair),) for pair in chosen], ()),
        ("Answer", [(answer,) for answer in _answers(chosen)], ()),
    ]
    return [column for column in made if len({value for values in column[1] for value in values}) > 1]


def _cell(pair: Pair) -> str:
    return pair.cell.replace("und only", "told only").replace("gen only", "drawn only")


def _answers(chosen: Sequence[Pair]) -> list[str]:
    """What was told last, for the filter: answers that several items share; the rest are one value."""
    last = [" ".join(((pair.after or pair.before).answer or "nothing").split()) for pair in chosen]
    shared = [answer for answer, count in Counter(last).most_common(ANSWERS) if count > 1]
    kept = {answer for answer in shared if len(answer) <= LONGEST_ANSWER}
    return [answer if answer in kept else OTHER for answer in last]


def _counted(values: Sequence[tuple[str, ...]], order: Sequence[str]) -> dict[str, int]:
    """Each value's count, in the given order, else as they first come."""
    counts = Counter(value for one in values for value in one)
    ranks = {value: place for place, value in enumerate(order)}
    return {value: counts[value] for value in sorted(counts, key=lambda value: ranks.get(value, 0))}


def _places(chosen: Sequence[Pair]) -> list[tuple[tuple[int, ...], ...]]:
    """For each card and facet, the places of its values among the facet's."""
    columns = []
    for _, values, order in _columns(chosen):
        known = {value: place for place, value in enumerate(_counted(values, order))}
        columns.append([tuple(known[value] for value in one) for one in values])
    return list(zip(*columns, strict=True)) if columns else [()] * len(chosen)


def _moved(pair: Pair) -> bool:
    return pair.flipped_text or pair.flipped_image
