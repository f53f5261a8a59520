"""How a judge errs, measured where the truth is known: answers with an exact verdict, shown to it.

Three kinds of answers, so that right and wrong ones are both there whatever the model can do: what the
model said and drew, what would have been right, and near misses of that. Asks the model only for the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from gapeval_lab import registry
from gapeval_lab.bench import chosen_items
from gapeval_lab.calibration import Calibration, Confusion, confusion
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import respond
from gapeval_lab.interfaces import Benchmark, Judge
from gapeval_lab.items import Direction, Item, Response
from gapeval_lab.labels import answer_hash
from gapeval_lab.recipe import LoadedRecipe
from gapeval_lab.scene import CELL, CELLS, EVERY_THING, SIZE, Scene, Thing, near_miss, pixels, render
from gapeval_lab.stored_runs import StoredRun

Pair = tuple[Item, Response]
TRUTH = "exact"
TRIES = 8  # near misses of which the first wrong one is taken


def asked(loaded: LoadedRecipe) -> tuple[Benchmark, list[Item], list[Pair]]:
    """The recipe's model asked its items, as it is.

    Raises:
        UserError: a part of the recipe does not fit.
        PromptsFailed: the model could not answer.
    """
    recipe = loaded.recipe
    benchmark: Benchmark = recipe.build("benchmark")
    items = chosen_items(recipe, benchmark)
    umm = recipe.build("model").load()
    given = respond(umm, items, umm.directions, seed=recipe.seed, chunk=recipe.evaluation.batch)
    known = {item.id: item for item in items}
    return benchmark, items, [(known[response.item_id], response) for response in given.values()]


def stored(run: StoredRun) -> tuple[Benchmark, list[Item], list[Pair]]:
    """The same of a finished run: every answer of every phase, each once.

    Raises:
        UserError: the run lost its pictures.
    """
    from gapeval_lab.rescoring import distinct

    node: Mapping[str, Any] = run.outcome.recipe["benchmark"]
    settings = {key: value for key, value in node.items() if key != "use"}
    benchmark: Benchmark = registry.build("benchmarks", node["use"], settings=settings)
    return benchmark, list(run.items), distinct(run)


def made_up(benchmark: Benchmark, items: Sequence[Item], *, seed: int) -> list[Pair]:
    """A right answer and a near miss to each item, in both directions, where there are such.

    A near miss in words is the right answer to another item of the same kind; one in pictures is the right
    picture with one thing changed or, where the picture is no scene, another item's right picture. Where
    none of a few is wrong, as when any picture with two things is right, there is none.

    Args:
        benchmark: draws the truths.
        items: whose answers.
        seed: which near misses.
    """
    rng = np.random.default_rng([seed, len(items)])
    exact = _exact()
    kinds: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        kinds.setdefault((item.category, item.subcategory), []).append(item)
    found: list[Pair] = []
    for item in items:
        others = kinds[item.category, item.subcategory]
        found.append((item, Response(item.id, Direction.UNDERSTANDING, text=item.reference_text)))
        words = sorted({other.reference_text for other in others})
        tries = [words[index] for index in rng.permutation(len(words))[:TRIES]]
        told = [(item, Response(item.id, Direction.UNDERSTANDING, text=text)) for text in tries]
        found += _first_wrong(exact, told)
        picture = benchmark.illustrate(item.target)
        if picture is None:
            continue
        found.append((item, Response(item.id, Direction.GENERATION, picture=picture)))
        drawn = [
            (item, Response(item.id, Direction.GENERATION, picture=one))
            for one in _near(picture, benchmark, others, rng)
        ]
        found += _first_wrong(exact, drawn)
    return found


def _exact() -> Judge:
    exact: Judge = registry.build("judges", TRUTH, settings={})
    return exact


def _first_wrong(exact: Judge, tries: Sequence[Pair]) -> list[Pair]:
    """The first of these answers that is wrong, if any."""
    said = exact(tries)
    return [pair for pair, one in zip(tries, said, strict=True) if one.correct is False][:1]


def _near(
    picture: Image.Image, benchmark: Benchmark, others: Sequence[Item], rng: np.random.Generator
) -> list[Image.Image]:
    """A few pictures close to this one."""
    scene = scene_of(picture)
    if scene is not None and scene.things:
        return [render(near_miss(scene, rng)) for _ in range(TRIES)]
    chosen = [others[index] for index in rng.permutation(len(others))[:TRIES]]
    drawn = [benchmark.illustrate(other.target) for other in chosen]
    return [one for one in drawn if one is not None]


def scene_of(picture: Image.Image) -> Scene | None:
    """The scene whose rendering the picture is, pixel by pixel; None where it is of none."""
    if picture.size != (SIZE, SIZE):
        return None
    values = np.asarray(picture.convert("RGB"))
    placed: dict[int, Thing] = {}
    for cell in range(CELLS):
        top, left = (CELL * index for index in divmod(cell, 3))
        block = values[top : top + CELL, left : left + CELL].tobytes()
        if block not in _blocks():
            return None
        thing = _blocks()[block]
        if thing is not None:
            placed[cell] = thing
    return Scene.of(placed)


@cache
def _blocks() -> dict[bytes, Thing | None]:
    """A cell's pixels -> what it shows."""
    found: dict[bytes, Thing | None] = {pixels(Scene.of({}))[:CELL, :CELL].tobytes(): None}
    return found | {pixels(Scene.of({0: one}))[:CELL, :CELL].tobytes(): one for one in EVERY_THING}


def calibrate(
    judge: Judge, pairs: Sequence[Pair], *, name: str, node: Mapping[str, Any], source: str
) -> Calibration:
    """Hold the judge against the exact one.

    Args:
        judge: asked once, about all pairs.
        pairs: answers, right and wrong ones; one that is there several times counts once.
        name, node: what the judge is called, and how a recipe has it.
        source: where the answers come from, in words.

    Raises:
        UserError: the exact judge cannot tell any of the answers.
    """
    distinct: dict[str | None, Pair] = {}
    for pair in pairs:
        distinct.setdefault(answer_hash(*pair), pair)
    pairs = list(distinct.values())
    truth, said = ([one.correct for one in who(pairs)] for who in (_exact(), judge))
    cells: dict[str, Confusion] = {
        group: confusion([truth[i] for i in members], [said[i] for i in members])
        for group, members in _groups(pairs)
    }
    if all(one is None for one in truth):
        raise UserError(
            f"judge calibrate: the judge '{TRUTH}', which is the truth here, tells nothing of these answers; "
            "take a recipe whose benchmark it knows, such as baseline"
        )
    return Calibration(
        judge=name, node=dict(node), settings=judge.settings(), truth=TRUTH, source=source, cells=cells
    )


def _groups(pairs: Sequence[Pair]) -> Iterator[tuple[str, list[int]]]:
    """Indices of the pairs per direction, then per direction and category."""
    groups: dict[str, list[int]] = {}
    for direction in Direction:
        for index, (item, response) in enumerate(pairs):
            if response.direction is direction:
                groups.setdefault(str(direction), []).append(index)
                groups.setdefault(f"{direction}/{item.category}", []).append(index)
    yield from groups.items()
