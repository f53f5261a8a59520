"""Reads tinyworld pictures: which thing stands in which cell. Exact on clean pictures.

Works from pixels alone (colour segmentation, connected components, shape matching); what the
picture was meant to show is not known here.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from gapeval_lab.scene import (
    BACKGROUND,
    CELL,
    CELLS,
    COLOURS,
    MARGIN,
    SHAPES,
    SIZE,
    THING,
    Scene,
    Thing,
    bitmap,
)

FOREGROUND_DISTANCE = 90.0  # RGB distance from the background at which a pixel belongs to a thing
COLOUR_DISTANCE = 80.0  # a thing whose mean colour is farther than this from every colour is unreadable
SPECK = 8  # components of so few pixels are noise
SHAPE_OVERLAP = 0.72  # intersection over union with the best shape below which it is unreadable
OFFSET = 3.0  # pixels between a component's centre and its cell's, at most

_NAMES = tuple(COLOURS)
_PALETTE = np.array(list(COLOURS.values()), dtype=float)
_MASKS = np.stack([bitmap(shape) for shape in SHAPES])


@dataclass(frozen=True)
class Reading:
    """What a picture shows; `scene` is None where it could not be read, `problem` says why."""

    scene: Scene | None
    problem: str = ""


def read_picture(image: Image.Image) -> Reading:
    """Parse a 48 x 48 picture (others are resized to it) into a scene."""
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BOX)
    picture = np.asarray(image.convert("RGB"), dtype=float)
    foreground = np.linalg.norm(picture - np.array(BACKGROUND, dtype=float), axis=2) > FOREGROUND_DISTANCE
    labels, count = ndimage.label(foreground, structure=np.ones((3, 3)))
    placed: dict[int, Thing] = {}
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[box] == number
        if mask.sum() <= SPECK:
            continue
        cell = _cell(box[0], box[1])
        if cell is None:
            return Reading(
                None, f"something stands between the cells, at pixel {box[0].start}, {box[1].start}"
            )
        if cell in placed:
            return Reading(None, f"cell {cell} holds two things")
        colour = _colour(picture[box][mask])
        if colour is None:
            return Reading(None, f"the thing in cell {cell} has no known colour")
        shape = _shape(labels, number, cell)
        if shape is None:
            return Reading(None, f"the thing in cell {cell} has no known shape")
        placed[cell] = Thing(colour, shape)
    return Reading(Scene.of(placed))


def _cell(rows: slice, columns: slice) -> int | None:
    """The cell whose centre the box's centre is near to."""
    row, column = ((side.start + side.stop) / 2 for side in (rows, columns))
    nearest = (int(row // CELL), int(column // CELL))
    near = all(
        abs(CELL * index + CELL / 2 - centre) <= OFFSET
        for index, centre in zip(nearest, (row, column), strict=True)
    )
    cell = 3 * nearest[0] + nearest[1]
    return cell if near and 0 <= cell < CELLS else None


def _colour(values: np.ndarray) -> str | None:
    """The palette's colour nearest to the median of (n, 3) pixel values."""
    distances = np.linalg.norm(_PALETTE - np.median(values, axis=0), axis=1)
    best = int(distances.argmin())
    return _NAMES[best] if distances[best] <= COLOUR_DISTANCE else None


def _shape(labels: np.ndarray, number: int, cell: int) -> str | None:
    """The shape whose mask overlaps best with the component, within the cell's window."""
    top, left = (CELL * index + MARGIN for index in divmod(cell, 3))
    window = labels[top : top + THING, left : left + THING] == number
    union = (_MASKS | window).sum(axis=(1, 2)) + (labels == number).sum() - window.sum()
    overlap = (_MASKS & window).sum(axis=(1, 2)) / union
    best = int(overlap.argmax())
    return SHAPES[best] if overlap[best] >= SHAPE_OVERLAP else None
