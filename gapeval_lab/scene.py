"""The visual vocabulary of tinyworld: colours, shapes, places, numbers, and pictures made of them.

Knows how a scene is drawn and how it is called; knows nothing of questions, models or judges.

A scene is a 3 x 3 grid of cells, each empty or holding one thing (a colour and a shape). The picture
is 48 x 48: a cell is 16 x 16 pixels and covers exactly 2 x 2 of the picture's 6 x 6 patches of 8 x 8
pixels; a thing is 12 x 12 in the middle of its cell, so that things never touch.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image

SIZE: Final = 48
CELL: Final = 16
MARGIN: Final = 2
THING: Final = CELL - 2 * MARGIN
PATCH: Final = 8
CELLS: Final = 9

COLOURS: Final[Mapping[str, tuple[int, int, int]]] = {
    "red": (220, 40, 40),
    "orange": (250, 145, 20),
    "yellow": (240, 225, 50),
    "green": (40, 160, 60),
    "cyan": (70, 205, 225),
    "blue": (40, 70, 215),
    "purple": (150, 50, 190),
    "black": (25, 25, 25),
}
BACKGROUND: Final = (255, 255, 255)

TARGETS: Final = frozenset({"grid", "things", "colour", "shape", "count"})
"""The keys of an item's target that a scene can be held against, or be drawn from."""

_BITMAPS: Final[Mapping[str, tuple[str, ...]]] = {
    "triangle": (
        ".....##.....",
        ".....##.....",
        "....####....",
        "....####....",
        "...######...",
        "...######...",
        "..########..",
        "..########..",
        ".##########.",
        ".##########.",
        "############",
        "############",
    ),
    "square": (
        "############",
        "############",
        "############",
        "############",
        "############",
        "############",
        "############",
        "############",
        "############",
        "############",
        "############",
        "############",
    ),
    "pentagon": (
        ".....##.....",
        "....####....",
        "..########..",
        ".##########.",
        "############",
        "############",
        ".##########.",
        ".##########.",
        ".##########.",
        "..########..",
        "..########..",
        "..########..",
    ),
    "hexagon": (
        "............",
        "............",
        "...######...",
        "..########..",
        ".##########.",
        "############",
        "############",
        ".##########.",
        "..########..",
        "...######...",
        "............",
        "............",
    ),
    "ring": (
        "....####....",
        "..########..",
        ".##########.",
        ".###....###.",
        "###......###",
        "###......###",
        "###......###",
        "###......###",
        ".###....###.",
        ".##########.",
        "..########..",
        "....####....",
    ),
    "cross": (
        "....####....",
        "....####....",
        "....####....",
        "....####....",
        "############",
        "############",
        "############",
        "############",
        "....####....",
        "....####....",
        "....####....",
        "....####....",
    ),
}
SHAPES: Final = tuple(_BITMAPS)
CORNERS: Final[Mapping[str, int]] = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
PLACES: Final = (
    "top left",
    "top",
    "top right",
    "left",
    "middle",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def bitmap(shape: str) -> np.ndarray:
    """The shape's (12, 12) boolean mask."""
    return np.array([[mark == "#" for mark in row] for row in _BITMAPS[shape]])


@dataclass(frozen=True, order=True)
class Thing:
    """A coloured shape."""

    colour: str
    shape: str

    @property
    def name(self) -> str:
        """For example "red square"."""
        return f"{self.colour} {self.shape}"


EVERY_THING: Final = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)


def thing(name: str) -> Thing:
    """The thing of that name ("red square")."""
    colour, shape = name.split()
    return Thing(colour, shape)


def plural(shape: str) -> str:
    """The shape's plural."""
    return f"{shape}es" if shape.endswith("ss") else f"{shape}s"


def counted(item: Thing, number: int) -> str:
    """For example "two red squares"."""
    noun = item.shape if number == 1 else plural(item.shape)
    return f"{NUMBERS[number]} {item.colour} {noun}"


@dataclass(frozen=True)
class Scene:
    """Nine cells in reading order, each empty or holding a thing."""

    cells: tuple[Thing | None, ...]

    @staticmethod
    def of(placed: Mapping[int, Thing]) -> "Scene":
        """A scene from cell index -> thing."""
        return Scene(tuple(placed.get(cell) for cell in range(CELLS)))

    @property
    def placed(self) -> dict[int, Thing]:
        """Cell index -> thing, in reading order."""
        return {cell: item for cell, item in enumerate(self.cells) if item is not None}

    @property
    def things(self) -> list[Thing]:
        """The things in reading order."""
        return [item for item in self.cells if item is not None]

    @property
    def names(self) -> list[str | None]:
        """Each cell's thing by name, or None."""
        return [None if item is None else item.name for item in self.cells]

    def with_cell(self, cell: int, item: Thing | None) -> "Scene":
        """The scene with one cell replaced."""
        return Scene((*self.cells[:cell], item, *self.cells[cell + 1 :]))

    def counts(self) -> Counter[str]:
        """How many of each thing, by name."""
        return Counter(item.name for item in self.things)

    def listing(self) -> str:
        """The things in reading order, as a text: "red square , blue ring"; "nothing" if empty."""
        return " , ".join(item.name for item in self.things) or "nothing"


def scatter(things: Sequence[Thing], rng: np.random.Generator) -> Scene:
    """A scene with the things at random places."""
    places = rng.permutation(CELLS)[: len(things)]
    return Scene.of({int(cell): item for cell, item in zip(places, things, strict=True)})


def pixels(scene: Scene) -> np.ndarray:
    """The scene's picture as (48, 48, 3) uint8."""
    canvas = np.full((SIZE, SIZE, 3), BACKGROUND, dtype=np.uint8)
    for cell, item in scene.placed.items():
        top, left = (CELL * index + MARGIN for index in divmod(cell, 3))
        canvas[top : top + THING, left : left + THING][_mask(item.shape)] = COLOURS[item.colour]
    return canvas


@lru_cache(maxsize=len(SHAPES))
def _mask(shape: str) -> np.ndarray:
    return bitmap(shape)


def render(scene: Scene) -> Image.Image:
    """The scene's RGB picture, 48 x 48."""
    return Image.fromarray(pixels(scene))


def patches(picture: np.ndarray) -> np.ndarray:
    """A (48, 48, 3) picture cut into its 36 patches in reading order: (36, 8, 8, 3)."""
    grid = SIZE // PATCH
    cut = picture.reshape(grid, PATCH, grid, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return cut.reshape(grid * grid, PATCH, PATCH, 3)


def every_patch() -> np.ndarray:
    """Every distinct patch that a scene can hold, the background first: (count, 8, 8, 3) uint8."""
    found: dict[bytes, np.ndarray] = {}
    scenes: Iterable[Scene] = [Scene.of({}), *(Scene.of({0: item}) for item in EVERY_THING)]
    for scene in scenes:
        for patch in patches(pixels(scene)):
            found.setdefault(patch.tobytes(), patch)
    return np.stack(list(found.values()))


def near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene (not an empty one) with one thing's colour, shape or place changed, or one more or fewer."""
    cell, old = list(scene.placed.items())[int(rng.integers(len(scene.placed)))]
    free = [c for c in range(CELLS) if scene.cells[c] is None]
    kind = int(rng.integers(5)) if free else int(rng.integers(3))
    if kind == 0:
        return scene.with_cell(cell, _other(old, rng, same_shape=True))
    if kind == 1:
        return scene.with_cell(cell, _other(old, rng, same_shape=False))
    if kind == 2:
        return scene.with_cell(cell, None)
    target = int(free[int(rng.integers(len(free)))])
    moved = scene.with_cell(cell, None) if kind == 3 else scene
    return moved.with_cell(target, old)


def _other(old: Thing, rng: np.random.Generator, *, same_shape: bool) -> Thing:
    """Another thing of the same shape, or of the same colour."""
    options = [
        thing
        for thing in EVERY_THING
        if thing != old and (thing.shape == old.shape if same_shape else thing.colour == old.colour)
    ]
    return options[int(rng.integers(len(options)))]
