"""The procedural questions of tinyworld: instructions, numbers, reasoning.

Each operation makes a `Question` from a random generator: one core phrase, asked in text (with a
picture where there is one) and asked for as a drawing (an edit of that picture where there is one).
Which operations a model is taught in which direction is part of the world: `OPERATIONS`. Questions
whose key falls into the held-out bucket are the benchmark's; all others may be trained on.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from gapeval_lab.scene import (
    CELLS,
    CORNERS,
    EVERY_THING,
    NUMBERS,
    PLACES,
    Scene,
    Thing,
    counted,
    plural,
    scatter,
    thing,
)

Taught = Literal["both", "text", "image", "neither"]

INSTRUCTION: Final = "instruction_following"
NUMERICAL: Final = "numerical_perception"
KNOWLEDGE: Final = "world_knowledge"
REASONING: Final = "reasoning"

HELD_OUT: Final = 8  # one key in so many belongs to the benchmark


@dataclass(frozen=True)
class Question:
    """One question, before it becomes an item or a training example.

    Attributes:
        key: what is asked, whatever the wording: decides on which side of the split it falls.
        understand, generate: the texts; `shown` and `edited` the scenes that go with them.
        answers: accepted texts, the first is the one taught.
        target: see `gapeval_lab.judges.exact`.
        taught: the directions in which the operation (or the entity) is taught.
    """

    category: str
    subcategory: str
    operation: str
    key: str
    understand: str
    generate: str
    answers: tuple[str, ...]
    target: Mapping[str, Any]
    taught: Taught
    shown: Scene | None = None
    edited: Scene | None = None

    @property
    def held_out(self) -> bool:
        """True for the benchmark's questions, which are never trained on."""
        return is_held_out(self.key)


def is_held_out(key: str) -> bool:
    """Whether the key falls into the benchmark's bucket: a stateless split."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT == 0


_Made = tuple[str, str, tuple[str, ...], dict[str, Any], Scene | None, bool]
# core phrase, what the text side asks about it, accepted answers, target, picture, is it an edit?


@dataclass(frozen=True)
class Operation:
    """A kind of question, how it is made, and in which directions it is taught."""

    name: str
    category: str
    subcategory: str
    taught: Taught
    make: Callable[
        [np.random.Generator], tuple[str, str, tuple[str, ...], dict[str, Any], Scene | None, bool]
    ]


def _choice(rng: np.random.Generator, options: "list[Any] | tuple[Any, ...]") -> Any:
    return options[int(rng.integers(len(options)))]


def _distinct(rng: np.random.Generator, number: int) -> list[Thing]:
    return [EVERY_THING[i] for i in rng.permutation(len(EVERY_THING))[:number]]


def _some_scene(rng: np.random.Generator, least: int, most: int) -> Scene:
    return scatter(_distinct(rng, int(rng.integers(least, most + 1))), rng)


_AFTER = "what is there then ?"


def _edit(core: str, scene: Scene, result: Scene) -> _Made:
    return core, _AFTER, (result.listing(),), {"grid": result.names}, scene, True


def _recolour(rng: np.random.Generator) -> _Made:
    scene = _some_scene(rng, 1, 3)
    cell, old = _choice(rng, list(scene.placed.items()))
    others = sorted({item.colour for item in EVERY_THING} - {old.colour})
    new = Thing(_choice(rng, others), old.shape)
    return _edit(f"make the {old.name} {new.colour}", scene, scene.with_cell(cell, new))


def _add(rng: np.random.Generator) -> _Made:
    scene = _some_scene(rng, 1, 3)
    cell = int(_choice(rng, [c for c in range(CELLS) if scene.cells[c] is None]))
    new = _choice(rng, EVERY_THING)
    return _edit(f"add a {new.name} at the {PLACES[cell]}", scene, scene.with_cell(cell, new))


def _remove(rng: np.random.Generator) -> _Made:
    scene = _some_scene(rng, 2, 3)
    cell, old = _choice(rng, list(scene.placed.items()))
    return _edit(f"remove the {old.name}", scene, scene.with_cell(cell, None))


def _move(rng: np.random.Generator) -> _Made:
    scene = _some_scene(rng, 1, 3)
    cell, old = _choice(rng, list(scene.placed.items()))
    free = int(_choice(rng, [c for c in range(CELLS) if scene.cells[c] is None]))
    result = scene.with_cell(cell, None).with_cell(free, old)
    return _edit(f"move the {old.name} to the {PLACES[free]}", scene, result)


def _swap(rng: np.random.Generator) -> _Made:
    scene = _some_scene(rng, 2, 3)
    cells = [int(cell) for cell in rng.permutation(list(scene.placed))[:2]]
    a, b = (scene.placed[cell] for cell in cells)
    result = scene.with_cell(cells[0], b).with_cell(cells[1], a)
    return _edit(f"swap the {a.name} and the {b.name}", scene, result)


def _crowd(rng: np.random.Generator, most: int = 6) -> tuple[Thing, int, Scene]:
    """A scene with one to `most` of a thing among others."""
    wanted, *others = _distinct(rng, 3)
    number = int(rng.integers(1, most + 1))
    rest = [_choice(rng, others) for _ in range(int(rng.integers(0, min(3, CELLS - number) + 1)))]
    return wanted, number, scatter([wanted] * number + rest, rng)


def _count(rng: np.random.Generator) -> _Made:
    wanted, number, scene = _crowd(rng)
    kept = Scene(tuple(item if item == wanted else None for item in scene.cells))
    core = f"only the {wanted.colour} {plural(wanted.shape)}"
    return core, "how many ?", (NUMBERS[number],), {"grid": kept.names}, scene, True


def _draw(rng: np.random.Generator) -> _Made:
    first, second = _distinct(rng, 2)
    a = int(rng.integers(1, 6))
    b = int(rng.integers(0, 7 - a))
    scene = scatter([first] * a + [second] * b, rng)
    counts = [(first, a)] + ([(second, b)] if b else [])
    if scene.things[0] != first:
        counts.reverse()  # told in the order in which they are seen
    parts = [counted(item, number) for item, number in counts]
    answers = tuple(dict.fromkeys((" and ".join(parts), " and ".join(reversed(parts)))))
    things = {item.name: number for item, number in counts}
    return " and ".join(parts), "", answers, {"things": things}, scene, False


def _match(each: int) -> Callable[[np.random.Generator], _Made]:
    def make(rng: np.random.Generator) -> _Made:
        wanted, number, scene = _crowd(rng, most=6 // each)
        new = _choice(rng, [item for item in EVERY_THING if item not in scene.things])
        core = f"{counted(new, each)} for each {wanted.name}"
        total = each * number
        return core, "what is that ?", (counted(new, total),), {"things": {new.name: total}}, scene, True

    return make


def _sort(fewest_first: bool) -> Callable[[np.random.Generator], _Made]:
    def make(rng: np.random.Generator) -> _Made:
        shapes = [list(CORNERS)[i] for i in rng.permutation(len(CORNERS))[:3]]
        things = [Thing(_choice(rng, EVERY_THING).colour, shape) for shape in shapes]
        ordered = sorted(things, key=lambda item: CORNERS[item.shape], reverse=not fewest_first)
        row = 3 * int(rng.integers(3))
        scene = Scene.of({row + i: item for i, item in enumerate(things)})
        result = Scene.of({row + i: item for i, item in enumerate(ordered)})
        core = f"sort by corners , {'fewest' if fewest_first else 'most'} first"
        return core, "what is the order ?", (result.listing(),), {"grid": result.names}, scene, True

    return make


def _arithmetic(plus: bool) -> Callable[[np.random.Generator], _Made]:
    def make(rng: np.random.Generator) -> _Made:
        item = _choice(rng, EVERY_THING)
        total = int(rng.integers(2, 7))
        part = int(rng.integers(1, total))
        a, b, result = (part, total - part, total) if plus else (total, part, total - part)
        core = f"{NUMBERS[a]} {'plus' if plus else 'minus'} {NUMBERS[b]} {item.colour} {plural(item.shape)}"
        return core, "how many ?", (NUMBERS[result],), {"things": {item.name: result}}, None, False

    return make


def _three_terms(rng: np.random.Generator) -> _Made:
    item = _choice(rng, EVERY_THING)
    total = int(rng.integers(3, 7))
    first, second = sorted(int(cut) for cut in 1 + rng.permutation(total - 1)[:2])
    parts = (first, second - first, total - second)
    core = f"{' plus '.join(NUMBERS[part] for part in parts)} {item.colour} {plural(item.shape)}"
    return core, "how many ?", (NUMBERS[total],), {"things": {item.name: total}}, None, False


def _same(by_colour: bool) -> Callable[[np.random.Generator], _Made]:
    def make(rng: np.random.Generator) -> _Made:
        named = _choice(rng, EVERY_THING)
        alike = [item for item in EVERY_THING if item != named and _shares(item, named, by_colour)]
        unlike = [item for item in EVERY_THING if not _shares(item, named, by_colour)]
        partner = _choice(rng, alike)
        others = [unlike[i] for i in rng.permutation(len(unlike))[: int(rng.integers(1, 3))]]
        scene = scatter([named, partner, *others], rng)
        what = "colour" if by_colour else "shape"
        core = f"the thing with the same {what} as the {named.name}"
        return core, "what is it ?", (partner.name,), {"things": {partner.name: 1}}, scene, True

    return make


def _shares(a: Thing, b: Thing, by_colour: bool) -> bool:
    return a.colour == b.colour if by_colour else a.shape == b.shape


def _sequence(period: int) -> Callable[[np.random.Generator], _Made]:
    def make(rng: np.random.Generator) -> _Made:
        pattern = _distinct(rng, period)
        shown = int(rng.integers(period + 2, CELLS))
        scene = Scene.of({i: pattern[i % period] for i in range(shown)})
        new = pattern[shown % period]
        result = scene.with_cell(shown, new)
        return "the next thing in the row", "what is it ?", (new.name,), {"grid": result.names}, scene, True

    return make


OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation("recolour", INSTRUCTION, "recolour", "both", _recolour),
    Operation("add", INSTRUCTION, "add", "both", _add),
    Operation("remove", INSTRUCTION, "remove", "both", _remove),
    Operation("move", INSTRUCTION, "move", "both", _move),
    Operation("swap", INSTRUCTION, "move", "text", _swap),
    Operation("count", NUMERICAL, "count", "both", _count),
    Operation("draw", NUMERICAL, "draw", "both", _draw),
    Operation("match", NUMERICAL, "as_many_as", "both", _match(1)),
    Operation("match_double", NUMERICAL, "as_many_as", "both", _match(2)),
    Operation("sort_up", REASONING, "polygon_order", "both", _sort(True)),
    Operation("sort_down", REASONING, "polygon_order", "text", _sort(False)),
    Operation("plus", REASONING, "arithmetic", "both", _arithmetic(True)),
    Operation("minus", REASONING, "arithmetic", "text", _arithmetic(False)),
    Operation("plus_plus", REASONING, "arithmetic", "image", _three_terms),
    Operation("same_colour", REASONING, "same_as", "both", _same(True)),
    Operation("same_shape", REASONING, "same_as", "both", _same(False)),
    Operation("sequence_two", REASONING, "sequence", "both", _sequence(2)),
    Operation("sequence_three", REASONING, "sequence", "both", _sequence(3)),
)


def _list(rng: np.random.Generator) -> _Made:
    scene = scatter([_choice(rng, EVERY_THING) for _ in range(int(rng.integers(1, CELLS)))], rng)
    return "everything again", "what is there ?", (scene.listing(),), {"grid": scene.names}, scene, True


# Taught, and never asked by the benchmark: to tell everything that is there, and to copy it.
AUXILIARY: Final = Operation("list", NUMERICAL, "list", "both", _list)

# How a core phrase is asked. {} is the core phrase, then the text side's question about it.
UNDERSTAND: Final = ("{} : {}", "if you do this : {} , {}", "think of {} . {}", "{} . tell me , {}")
GENERATE: Final = ("draw {} .", "paint this : {} .", "show me {} .", "{} . draw it .")


def ask(operation: Operation, rng: np.random.Generator) -> Question:
    """A random question of the operation, on either side of the held-out split."""
    core, about, answers, target, scene, edits = operation.make(rng)
    understand = _choice(rng, UNDERSTAND).format(core, about) if about else _describe(rng)
    # What is asked, whatever the wording: a picture counts where it is part of the question on both
    # sides; where the drawing is asked for in words alone, its content does.
    content = str(scene.names) if scene is not None and edits else str(sorted(answers))
    key = f"{operation.name}|{core if about else ''}|{content}"
    return Question(
        category=operation.category,
        subcategory=operation.subcategory,
        operation=operation.name,
        key=key,
        understand=understand,
        generate=_choice(rng, GENERATE).format(core),
        answers=answers,
        target=target,
        taught=operation.taught,
        shown=scene,
        edited=scene if edits else None,
    )


def _describe(rng: np.random.Generator) -> str:
    return str(_choice(rng, ("what is here ?", "tell me what you see .", "how many of what ?")))


def draw_target(target: Mapping[str, Any]) -> Scene:
    """A scene that the target accepts: the truth as a picture.

    Where places are free, the things stand side by side from the top left on, in the target's order.
    """
    match dict(target):
        case {"grid": grid}:
            return Scene(tuple(None if name is None else thing(name) for name in grid))
        case {"things": things}:
            return _in_a_row([thing(name) for name, number in things.items() for _ in range(number)])
        case {"colour": colour}:
            return _in_a_row([Thing(colour, "square")])
        case {"shape": shape}:
            return _in_a_row([Thing("black", shape)])
        case {"count": count}:
            return _in_a_row([Thing("black", "square")] * count)
        case _:
            raise ValueError(f"unknown kind of target: {dict(target)}")


def _in_a_row(things: list[Thing]) -> Scene:
    return Scene.of(dict(enumerate(things)))


__all__ = [
    "AUXILIARY",
    "GENERATE",
    "HELD_OUT",
    "INSTRUCTION",
    "KNOWLEDGE",
    "NUMERICAL",
    "OPERATIONS",
    "REASONING",
    "UNDERSTAND",
    "Operation",
    "Question",
    "Taught",
    "ask",
    "draw_target",
    "is_held_out",
]
