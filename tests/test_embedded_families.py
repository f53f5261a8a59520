"""What the embedded UMMs are trained on is what their adapters ask and score."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from gapeval_lab.benchmarks.tinyworld_tasks import draw_target
from gapeval_lab.items import Direction, Example, Prompt
from gapeval_lab.scene import Scene, render

FAMILIES = [("janus", 8), ("emu3", 8), ("emu3", 4)]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda case: f"{case[0]}-{case[1]}")
def family(request: pytest.FixtureRequest) -> Iterator[Any]:
    scripts = str(Path(__file__).parents[1] / "scripts")
    sys.path.insert(0, scripts)
    try:
        from embedded_families import build

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield build(*request.param)
    finally:
        sys.path.remove(scripts)


@pytest.fixture
def exact(family: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The family as if its picture tokenizer had learnt every patch's code."""
    layout, known = family.umm.layout, {}

    def scene_of(image: Any) -> Scene:
        return known[image.tobytes()]

    def shown(scene: Scene) -> Any:
        image = render(scene)
        known[image.tobytes()] = scene
        return image

    def codes(images: Any) -> torch.Tensor:
        return torch.tensor([family.codes.of(scene_of(image)) for image in images])

    monkeypatch.setattr(layout, "codes", codes)
    if hasattr(layout, "_seen"):
        from gapeval_lab.items import image_digest

        side = family.codes.grid
        monkeypatch.setattr(
            layout,
            "_seen",
            lambda images: {image_digest(one): codes([one]).view(side, side) for one in images},
        )
    family.shown = shown
    return family


def _losses(family: Any, batch: Any) -> torch.Tensor:
    """Negative log-likelihood of each row's targets, whatever they count in training."""
    targets = batch.drawn if batch.draws else batch.words
    where = targets != -100
    terms = functional.cross_entropy(family.logits(batch, where), targets[where], reduction="none")
    return torch.zeros(len(targets)).index_add(0, where.nonzero()[:, 0], terms)


@pytest.mark.parametrize("picture", [False, True], ids=["plain", "picture"])
def test_training_scores_what_the_adapter_scores(exact: Any, picture: bool) -> None:
    from embedded_data import Data

    rows, rng = exact.rows(), np.random.default_rng(1)
    data = Data(rows, seed=0, drop=0.0)
    told = [data.sample("text", picture, rng) for _ in range(3)]
    drawn = [data.sample("image", picture, rng) for _ in range(3)]
    heard = [
        Example(Prompt(q.understand, (exact.shown(q.shown),) if picture else ()), q.answers[0]) for q in told
    ]
    seen = [
        Example(
            Prompt(q.generate, (exact.shown(q.edited),) if picture else ()),
            exact.shown(draw_target(q.target)),
        )
        for q in drawn
    ]
    with torch.no_grad():
        for examples, batch, direction in (
            (heard, rows.text(told, picture), Direction.UNDERSTANDING),
            (seen, rows.drawing(drawn, picture, np.zeros(3, dtype=bool)), Direction.GENERATION),
        ):
            torch.testing.assert_close(_losses(exact, batch), exact.umm.loss(examples, direction))
            assert bool((batch.weights[(batch.drawn if batch.draws else batch.words) != -100] > 0).all())


def test_rows_without_condition_are_the_branch_of_guidance(exact: Any) -> None:
    from embedded_data import Data

    rows, rng = exact.rows(), np.random.default_rng(2)
    question = Data(rows, seed=0, drop=0.0).sample("image", True, rng)
    batch = rows.drawing([question], True, np.ones(1, dtype=bool))
    layout = exact.umm.layout
    if hasattr(layout, "unconditional"):
        (asked,) = layout.ask(
            [Prompt(question.generate, (exact.shown(question.edited),))], Direction.GENERATION
        )
        expected = layout.unconditional(torch.tensor(asked.ids)).tolist()
    else:
        expected = layout.ask([Prompt("")], Direction.GENERATION)[0].ids
    assert batch.ids[0, : len(expected)].tolist() == expected


def test_every_patch_has_a_code_and_every_code_fits(family: Any) -> None:
    codes = family.codes
    assert sorted(codes.table.values()) == list(range(len(codes.table)))
    assert len(codes.table) <= family.count
    assert codes.of(Scene.of({})) == [0] * codes.grid**2
    assert family.model.model.vqmodel.quantize.embedding.num_embeddings == family.count


def test_the_picture_tokenizer_is_taught_in_the_adapters_words(family: Any) -> None:
    layout = family.umm.layout
    images = [render(Scene.of({}))] * 2
    codes = layout.codes(images)
    from embedded_data import to_pixels

    vq = family.model.model.vqmodel
    with torch.no_grad():
        latents = family.latents(to_pixels([Scene.of({})] * 2))
        decoded = family.decode(codes)
        if hasattr(layout, "unconditional"):  # a Janus
            nearest = vq.quantize(latents.permute(0, 3, 1, 2))[2].view(2, -1)
        else:
            nearest = vq.quantize(latents.permute(0, 3, 1, 2)[:, None]).view(2, -1)
    assert nearest.tolist() == codes.tolist()
    assert decoded.shape == (2, 3, 48, 48)
    for value, picture in zip(decoded, layout.pictures(codes), strict=True):
        levels = ((value.permute(1, 2, 0) * 0.5 + 0.5) * 255).round().clamp(0, 255)
        off = (levels - torch.tensor(np.array(picture), dtype=torch.float32)).abs()
        assert float(off.max()) <= 1
