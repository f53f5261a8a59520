"""The exact judge: every truth accepted, near misses refused, damage called damage."""

import numpy as np
import pytest
import torch
from PIL import Image

from gapeval_lab.items import Direction, Item, Prompt, Response
from gapeval_lab.judges.exact import Exact, normalise, shows
from gapeval_lab.judges.vision import read_picture
from gapeval_lab.models.janus import Janus
from gapeval_lab.scene import CELLS, EVERY_THING, TARGETS, Scene, Thing, near_miss, render, scatter

COUNT = 2000


def random_scene(rng: np.random.Generator, least: int = 1) -> Scene:
    number = int(rng.integers(least, CELLS + 1))
    return scatter([EVERY_THING[i] for i in rng.integers(0, len(EVERY_THING), number)], rng)


def test_every_rendered_truth_is_read_exactly() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, least=0) for _ in range(COUNT)]
    assert [read_picture(render(scene)).scene for scene in scenes] == scenes


def test_no_distractor_is_accepted() -> None:
    rng = np.random.default_rng(1)
    accepted = 0
    for _ in range(COUNT):
        scene = random_scene(rng)
        reading = read_picture(render(near_miss(scene, rng)))
        accepted += reading.scene is not None and shows(reading.scene, {"grid": scene.names})
    assert accepted == 0


def through_the_tokenizer(scenes: list[Scene]) -> list[Scene | None]:
    """What the judge reads once the embedded model has turned the pictures into codes and back."""
    layout = Janus(weights="embedded").load().layout
    found: list[Scene | None] = []
    with torch.inference_mode():
        for start in range(0, len(scenes), 100):
            pictures = [render(scene) for scene in scenes[start : start + 100]]
            found += [read_picture(back).scene for back in layout.pictures(layout.codes(pictures))]
    return found


def test_truths_and_near_misses_stay_apart_through_the_models_own_tokenizer() -> None:
    """300 of each here; the model card measures 2,000."""
    rng = np.random.default_rng(3)
    scenes = [random_scene(rng) for _ in range(300)]
    assert through_the_tokenizer(scenes) == scenes
    misses = through_the_tokenizer([near_miss(scene, rng) for scene in scenes])
    accepted = [
        read is not None and shows(read, {"grid": scene.names})
        for read, scene in zip(misses, scenes, strict=True)
    ]
    assert not any(accepted)


def test_mild_noise_is_read_through_and_rubble_is_not() -> None:
    rng = np.random.default_rng(2)
    scene = random_scene(rng, least=5)
    picture = np.asarray(render(scene)).astype(float)
    noisy = np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)
    assert read_picture(Image.fromarray(noisy)).scene == scene
    rubble = Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))
    assert read_picture(rubble).scene is None
    assert read_picture(rubble).problem


def test_other_sizes_are_brought_to_the_worlds() -> None:
    scene = random_scene(np.random.default_rng(3))
    assert read_picture(render(scene).resize((192, 192), Image.Resampling.NEAREST)).scene == scene


@pytest.mark.parametrize(
    ("target", "good", "bad"),
    [
        ({"things": {"red ring": 2}}, ["red ring"] * 2, ["red ring"] * 3),
        ({"things": {"red ring": 1, "blue cross": 1}}, ["blue cross", "red ring"], ["red ring"]),
        ({"colour": "red"}, ["red ring", "red cross"], ["red ring", "blue ring"]),
        ({"shape": "ring"}, ["red ring"], ["red cross"]),
        ({"shape": "ring"}, ["blue ring"], []),
        ({"count": 2}, ["red ring", "blue cross"], ["red ring"]),
    ],
)
def test_targets(target: dict[str, object], good: list[str], bad: list[str]) -> None:
    def scene(names: list[str]) -> Scene:
        return Scene.of({3 * i % CELLS: Thing(*name.split()) for i, name in enumerate(names)})

    assert shows(scene(good), target)
    assert not shows(scene(bad), target)


def test_an_unknown_kind_of_target_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        shows(Scene.of({}), {"size": 3})


def test_the_kinds_of_targets_are_those_that_are_read() -> None:
    values = {"grid": [None] * CELLS, "things": {}, "colour": "red", "shape": "ring", "count": 0}
    assert set(values) == TARGETS
    for kind, value in values.items():
        shows(Scene.of({}), {kind: value})


@pytest.mark.parametrize("target", [{}, {"text": "a red ring"}, {"text": "red", "question": "Which?"}])
@pytest.mark.parametrize("readable", [True, False])
def test_a_picture_with_another_kind_of_target_is_not_scored(target: dict[str, str], readable: bool) -> None:
    image = render(Scene.of({0: Thing("red", "ring")})) if readable else Image.new("RGB", (48, 48), "red")
    item = Item("i", "c", "s", Prompt("?"), Prompt("!"), ("x",), target)
    (verdict,) = Exact()([(item, Response("i", Direction.GENERATION, picture=image))])
    assert verdict.correct is None
    assert "reads no such target" in verdict.reason


def test_texts_are_compared_by_words_alone() -> None:
    assert normalise("The Red, square.") == "red square"
    item = Item("i", "c", "s", Prompt("?"), Prompt("!"), ("two red squares", "two squares that are red"))

    def verdict(text: str | None) -> bool | None:
        return Exact()([(item, Response("i", Direction.UNDERSTANDING, text=text))])[0].correct

    assert verdict("Two red squares") and verdict("two squares that are red.")
    assert verdict("three red squares") is False
    assert verdict("two red squares and more") is False
    assert verdict(None) is None


def test_an_error_is_not_scored() -> None:
    item = Item("i", "c", "s", Prompt("?"), Prompt("!"), ("x",), {"count": 1})
    failed = Response("i", Direction.GENERATION, error="out of memory")
    assert Exact()([(item, failed)])[0].correct is None
