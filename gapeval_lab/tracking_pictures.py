"""The pictures of an Outcome, laid out for people: before|after pairs, one archive.

Knows PIL and the folder that an outcome lies in; refuses to know where its files go.
"""

import zipfile
from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from gapeval_lab.outcome import Outcome
from gapeval_lab.tracking_tables import Pair, Table, word

CANVAS = 516  # square, since MLflow's grid shows the top half of a square
SIDE = 236  # of one picture of a pair; with its caption it stays in the top half
TABLE_ROWS = 32
PROBES = 6
GREEN, RED, GREY = (15, 138, 95), (179, 32, 44), (138, 143, 152)
INK, PAPER = (34, 34, 34), (255, 255, 255)


def _shade(correct: bool | None) -> tuple[int, int, int]:
    return GREY if correct is None else GREEN if correct else RED


def fit(picture: Image.Image, side: int) -> Image.Image:
    """The picture as RGB in a square of `side` pixels; small ones keep hard pixel edges."""
    picture = picture.convert("RGB")
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    filter_ = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BILINEAR
    square = Image.new("RGB", (side, side), (236, 238, 242))
    square.paste(picture.resize(size, filter_), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def fit_file(file: Path, side: int) -> Image.Image:
    """`fit` of the picture in a file. Nothing is kept: a benchmark's pictures may not fit in memory."""
    with Image.open(file) as picture:
        return fit(picture, side)


def drawn(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose pictures are all there."""
    return [pair for pair in pairs if pair.before.picture and (not pair.after or pair.after.picture)]


def selected(outcome: Outcome, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs for the picture table, at most 32, most telling first.

    Pictures whose verdict flipped, then items that name an edited subject, then items whose answer
    flipped, then unchanged ones, taken in turn from the categories.
    """
    subjects = [fact["subject"].lower() for fact in outcome.facts if fact.get("subject")]
    ranks: dict[int, list[Pair]] = defaultdict(list)
    rest: dict[str, list[Pair]] = defaultdict(list)
    for pair in drawn(pairs):
        asked = f"{pair.before.question} {pair.before.draw_prompt}".lower()
        if pair.flipped_image:
            ranks[0].append(pair)
        elif any(subject in asked for subject in subjects):
            ranks[1].append(pair)
        elif pair.flipped_text:
            ranks[2].append(pair)
        else:
            rest[pair.before.category].append(pair)
    turns = [pair for turn in zip_longest(*rest.values()) for pair in turn if pair is not None]
    # A few unchanged ones always: without them a table of flips says nothing about what stayed.
    telling = (ranks[0] + ranks[1] + ranks[2])[: TABLE_ROWS - 4]
    return (telling + turns)[:TABLE_ROWS]


def probes(pairs: Sequence[Pair]) -> list[Pair]:
    """The first drawn item of each category, at most 6: the same in every run, so charts line up."""
    first: dict[str, Pair] = {}
    for pair in drawn(pairs):
        first.setdefault(pair.before.category, pair)
    return list(first.values())[:PROBES]


def pair_canvas(pair: Pair, folder: Path) -> Image.Image:
    """A square of 516 pixels: both pictures with their verdicts in the top half, the words below."""
    canvas = Image.new("RGB", (CANVAS, CANVAS), PAPER)
    brush = ImageDraw.Draw(canvas)
    big, small = ImageFont.load_default(15), ImageFont.load_default(13)
    states = [("before", pair.before), *([("after", pair.after)] if pair.after else [])]
    for place, (state, row) in enumerate(states):
        left = 8 + place * (SIDE + 28)
        if row.picture:
            canvas.paste(fit_file(folder / row.picture, SIDE), (left, 0))
        brush.text((left, SIDE + 1), f"{state}: {word(row.generation)}", _shade(row.generation), big)
    lines = [f"{pair.before.id}  ({pair.before.category})", f"Draw: {pair.before.draw_prompt}"]
    lines.append(f"Ask: {pair.before.question}")
    for state, row in states:
        lines.append(f"Told {state}: {row.answer or 'nothing'} ({word(row.understanding)})")
    lines.append(f"Right: {pair.before.reference}")
    top = SIDE + 34
    for line in lines:
        for piece in _wrapped(line, 66):
            if top > CANVAS - 18:
                return canvas
            brush.text((8, top), piece, INK, small)
            top += 19
        top += 4
    return canvas


def _wrapped(text: str, width: int) -> list[str]:
    return wrap(text, width)[:4]


def picture_table(chosen: Sequence[Pair], folder: Path, stage: Path) -> Table:
    """`1_pictures`: exactly two columns, as MLflow's compare grid wants; writes the canvases too."""
    rows: list[list[Any]] = []
    for number, pair in enumerate(chosen):
        path = f"table_images/tables/1_pictures/{number:02d}.png"
        file = stage / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pair_canvas(pair, folder).save(file, compress_level=1)
        image = {"type": "image", "filepath": path, "compressed_filepath": path}
        rows.append([f"{pair.before.id}: {pair.before.draw_prompt}", image])
    return Table("1_pictures", ("probe", "before | after" if chosen and chosen[0].after else "before"), rows)


def archive(outcome: Outcome, folder: Path, file: Path) -> int:
    """Every picture in one zip, under the names that the outcome gives; returns how many.

    Stored, not deflated: they are PNG. Two thousand small artifacts would cost far more than one file.
    """
    states = (outcome.before, outcome.after, outcome.placebo, outcome.identity)
    names = [
        name
        for state in states
        if state
        for row in state.rows
        for name in (row.picture, row.input_picture)
        if name
    ]
    names += [one.picture for row in outcome.reasoned for one in row.drawn.values() if one.picture]
    names += [name for row in outcome.protocol_rows for name in (row.step_picture, row.picture) if name]
    unique = list(dict.fromkeys(names))
    if unique:
        file.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as stream:
            for name in unique:
                stream.write(folder / name, name)
    return len(unique)
