"""Values sought for text and pictures at once, on the shipped model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engines import embedded, world
from tiny_lm import second_moment

from gapeval_lab.benchmarks.tinyworld import TinyWorld
from gapeval_lab.errors import UserError
from gapeval_lab.facts import read_facts
from gapeval_lab.interfaces import Training
from gapeval_lab.interventions.editing import requests_of, value_settings
from gapeval_lab.interventions.memit import Memit
from gapeval_lab.interventions.rome import Rome
from gapeval_lab.interventions.rows import places
from gapeval_lab.interventions.trace import left_as_found
from gapeval_lab.interventions.value_rows import drawing_rows
from gapeval_lab.interventions.values import optimise_values
from gapeval_lab.items import Direction, Example, Fact
from gapeval_lab.lessons import lessons_of, replay_of

GEN = Direction.GENERATION
QUICK: dict[str, Any] = {"steps": 12, "lr": 0.3, "contexts": 0, "clamp_norm_factor": 8.0, "moment_texts": 100}
JOINT = Memit(layers=(0, 1), moment_weight=1.0, picture_factor=0.1, **QUICK)


@pytest.fixture(scope="module")
def umm() -> Any:
    return embedded()


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return world()[0][:2]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return world()[1]


@pytest.fixture(scope="module")
def training(facts: list[Fact]) -> Training:
    known = [lesson for lesson in replay_of(TinyWorld(), facts) if lesson.direction is GEN]
    return Training(lessons=lessons_of(facts, TinyWorld()), replay=known[:60])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPEVAL_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "joint-cache"))


def wanted(facts: list[Fact], training: Training) -> list[Example]:
    """The edit wording's drawing of each fact."""
    return [
        next(one.example for one in training.lessons if one.about == f.id and one.direction is GEN)
        for f in facts
    ]


def test_the_backbones_loss_of_a_drawing_is_the_models(
    umm: Any, facts: list[Fact], training: Training
) -> None:
    examples, backbone = wanted(facts, training), umm.backbone()
    drawing = backbone.encode_drawings([e.prompt.text for e in examples], [e.answer for e in examples])
    with torch.no_grad():
        torch.testing.assert_close(backbone.drawing_loss(drawing), umm.loss(examples, GEN))


def test_what_the_search_sees_everywhere_is_what_the_edited_model_draws(
    umm: Any, facts: list[Fact], texts: list[str], training: Training
) -> None:
    """ROME's last loss in pictures is the edited model's own; sought at one token it is not."""
    losses = {}
    for value_at in ("everywhere", "token"):
        method = Rome(
            layer=0,
            value_at=value_at,
            text_factor=0.0,
            picture_factor=1.0,
            kl_factor=0.0,
            weight_decay=0.0,
            **QUICK,
        )
        curve: list[float] = []
        delta = method.fit(
            umm,
            facts[:1],
            seed=0,
            texts=texts,
            log=lambda name, value, step, curve=curve: curve.append(value) if name == "train/loss" else None,
            training=training,
        )
        with torch.no_grad(), delta.applied(umm.backbone().root):
            now = float(umm.loss(wanted(facts[:1], training), GEN))
        losses[value_at] = (curve[-1], now)
        assert curve[-1] < 0.5 * curve[0]
    sought, edited = losses["everywhere"]
    assert edited == pytest.approx(sought, rel=1e-3, abs=1e-3)
    sought, edited = losses["token"]
    assert edited != pytest.approx(sought, rel=1e-3, abs=1e-3)


def test_a_joint_edit_draws_better_than_one_in_text_alone(umm: Any, texts: list[str]) -> None:
    """Facts about inhabitants that the model was told of and never shown; what is left of the loss."""
    facts = list(read_facts("facts/world_knowledge.jsonl", split="dev")[-8:])
    training = Training(lessons=lessons_of(facts, TinyWorld()), replay=replay_of(TinyWorld(), facts)[:200])
    found = {}
    for factor in (0.0, 0.1):
        longer = {"steps": 40, "lr": 0.2, "weight_decay": 1.5e-3, "early_stop": 0.005}
        method = JOINT.model_copy(update={"picture_factor": factor, **longer})
        assert method.direction == ("both" if factor else "text")
        delta = method.fit(umm, facts, seed=0, texts=texts, log=lambda *point: None, training=training)
        with torch.no_grad(), delta.applied(umm.backbone().root):
            found[factor] = umm.loss(wanted(facts, training), GEN)
    assert float(found[0.1].mean()) < 0.5 * float(found[0.0].mean())


def test_joint_values_of_a_batch_are_those_of_one_at_a_time(
    umm: Any, facts: list[Fact], texts: list[str], training: Training
) -> None:
    requests = requests_of(JOINT, facts, texts=texts, seed=0, training=training)
    with left_as_found(umm.backbone().root):
        one, both = (
            optimise_values(
                umm.backbone(),
                requests,
                sites=["block"],
                layer=1,
                settings=value_settings(JOINT),
                batch_facts=size,
            )
            for size in (1, 2)
        )
    for alone, together in zip(one, both, strict=True):
        torch.testing.assert_close(alone.delta, together.delta, rtol=1e-3, atol=1e-3)


def test_pictures_count_in_the_second_moment(umm: Any, texts: list[str], training: Training) -> None:
    """Half of it is what the layer sees while it draws, codes and all."""
    backbone, drawn = umm.backbone(), [lesson.example for lesson in training.replay]
    path = backbone.sites.path("mlp_down", 0)
    told = second_moment(backbone, path, texts, limit=50, seed=0)
    both = second_moment(backbone, path, texts, limit=50, seed=0, drawn=drawn)
    shown = 2 * both.matrix - told.matrix
    assert torch.linalg.eigvalsh(shown).min() > -1e-9
    codes = umm.layout.picture_tokens
    assert both.tokens - told.tokens > 50 * (codes - 1)
    assert not torch.allclose(shown, told.matrix, rtol=0.1)


def test_a_fact_without_a_picture_is_named(umm: Any, facts: list[Fact], texts: list[str]) -> None:
    with pytest.raises(UserError, match=f"fact '{facts[0].id}' has no picture of its target"):
        JOINT.fit(umm, facts, seed=0, texts=texts, log=lambda *point: None, training=Training())


def test_rows_of_some_facts_lose_what_they_lost_among_all(
    umm: Any, facts: list[Fact], texts: list[str], training: Training, tmp_path: Path
) -> None:
    requests, backbone = requests_of(JOINT, facts, texts=texts, seed=0, training=training), umm.backbone()
    with left_as_found(backbone.root), torch.no_grad():
        rows = drawing_rows(
            backbone, requests, places(backbone, ["block"], 1), token="subject_last", reach=None
        )
        delta = 0.1 * torch.randn(2, 1, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
        whole = rows.loss(delta)
        second = rows.of(torch.tensor([False, True])).loss(delta)
    assert float(second[0]) == 0.0
    torch.testing.assert_close(second[1], whole[1])


def test_a_picture_layer_is_written_after_the_text(
    umm: Any, facts: list[Fact], texts: list[str], training: Training
) -> None:
    method = Rome(layer=0, picture_layer=2, picture_factor=0.1, **QUICK)
    delta = method.fit(umm, facts[:1], seed=0, texts=texts, log=lambda *point: None, training=training)
    paths = [umm.backbone().sites.path("mlp_down", layer) for layer in (0, 2)]
    assert sorted(delta.terms) == [f"{path}.weight" for path in paths]
    many = JOINT.model_copy(update={"picture_layers": (2,)})
    spread = many.fit(umm, facts, seed=0, texts=texts, log=lambda *point: None, training=training)
    alone = JOINT.model_copy(update={"picture_factor": 0.0}).fit(
        umm, facts, seed=0, texts=texts, log=lambda *point: None, training=training
    )
    assert len(spread.terms) == 3 and set(alone.terms) < set(spread.terms)
    with pytest.raises(ValueError, match="picture_layer: needs text_factor and picture_factor"):
        Rome(layer=0, picture_layer=2)
    with pytest.raises(ValueError, match="picture_layers: needs text_factor and picture_factor"):
        Memit(layers=(0,), picture_layers=(2,))
