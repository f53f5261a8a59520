"""Training: batches, schedules, checkpoints, divergence; LoRA's and fine-tuning's own promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import Case, Snapshot
from PIL import Image
from pydantic import ValidationError
from tiny_lm import TEXTS, fact, tiny_umm

from gapeval_lab.delta import Dense, LowRank, WeightDelta
from gapeval_lab.errors import UserError
from gapeval_lab.fitting import rounding
from gapeval_lab.interfaces import Lesson, Training
from gapeval_lab.interventions.finetune import FineTune
from gapeval_lab.interventions.lora import Lora
from gapeval_lab.interventions.training import Pools, TrainingSettings, pools, rate, text_share
from gapeval_lab.items import Direction, Example, Prompt

TEXT, IMAGE = Direction.UNDERSTANDING, Direction.GENERATION
FACTS = tuple(fact(number) for number in (0, 5, 7))
CASE = Case(lambda: tiny_umm("llama", steps=80), FACTS, TEXTS)
LORA = Lora(direction="text", steps=8, batch=4, lr=5e-3, sites=("mlp_down",), checkpoint_every=2)


def lessons(direction: Direction, number: int) -> list[Lesson]:
    return [Lesson(f"{direction}-{i}", direction, Example(Prompt(f"{i}"), "red")) for i in range(number)]


def fit(
    intervention: Any, training: Training | None = None, *, umm: Any = None, log: Any = None
) -> WeightDelta:
    delta: WeightDelta = intervention.fit(
        umm or CASE.make_umm(),
        FACTS,
        seed=0,
        texts=TEXTS,
        log=log or (lambda *point: None),
        training=training or CASE.training,
    )
    return delta


@pytest.mark.parametrize(
    ("direction", "text"), [("text", 40), ("image", 0), ("both", 20), ("mixed(0.25)", 10)]
)
def test_a_batch_holds_each_side_in_its_share(direction: str, text: int) -> None:
    settings = TrainingSettings(direction=direction, batch=4)
    made = Pools({d: lessons(d, 3) for d in (TEXT, IMAGE)}, {TEXT: [], IMAGE: []})
    counts: Counter[Direction] = Counter()
    for update in range(10):
        batch = made.batch(settings, update, seed=1)
        assert sum(len(examples) for _, examples in batch) in (3, 4, 5)
        counts.update({side: len(examples) for side, examples in batch})
    assert (counts[TEXT], counts[IMAGE]) == (text, 40 - text)


def test_every_lesson_comes_up_before_any_comes_up_again() -> None:
    settings = TrainingSettings(direction="text", batch=4)
    made = Pools({TEXT: lessons(TEXT, 6), IMAGE: []}, {TEXT: [], IMAGE: []})
    seen = [
        e.prompt.text for update in range(3) for _, part in made.batch(settings, update, seed=0) for e in part
    ]
    assert sorted(seen[:6]) == sorted(seen[6:]) == [str(i) for i in range(6)]
    assert seen[:6] != seen[6:]


def test_replay_is_added_on_the_taught_side() -> None:
    settings = TrainingSettings(direction="text", batch=4, replay=0.5)
    made = pools(settings, Training(lessons=lessons(TEXT, 4), replay=lessons(TEXT, 9)))
    ((side, examples),) = made.batch(settings, 0, seed=0)
    assert side is TEXT
    assert len(examples) == 6


def test_sides_without_lessons_are_refused() -> None:
    with pytest.raises(UserError, match=r"direction: 'both' needs lessons for generation.*facts.pictures"):
        fit(LORA.model_copy(update={"direction": "both"}))
    with pytest.raises(UserError, match=r"replay: the benchmark has nothing for understanding"):
        fit(LORA.model_copy(update={"replay": 1.0}))


@pytest.mark.parametrize("direction", ["texts", "mixed(1.5)", "mixed(half)", "mixed(0.)"])
def test_unknown_directions_are_refused(direction: str) -> None:
    with pytest.raises(ValidationError):
        TrainingSettings(direction=direction)


def test_shares_of_text() -> None:
    assert [text_share(d) for d in ("text", "image", "both", "mixed(0.1)")] == [1.0, 0.0, 0.5, 0.1]


def test_schedules() -> None:
    def curve(**fields: Any) -> list[float]:
        settings = TrainingSettings(steps=4, **fields)
        return [rate(settings, update) for update in range(4)]

    assert curve() == [1.0] * 4
    assert curve(schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert curve(schedule="cosine") == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert curve(warmup=2) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


def test_accumulation_changes_nothing_but_rounding() -> None:
    whole, parts = fit(LORA), fit(LORA.model_copy(update={"accumulate": 2}))
    for name, term in whole.terms.items():
        assert torch.allclose(term.dense(), parts.terms[name].dense(), atol=1e-5)


def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Killed at update 5 of 8 with a checkpoint after 4: the resumed one gives the same delta and curve."""

    def run(folder: Path, *, stop: int | None) -> tuple[WeightDelta, list[Any], list[int]]:
        points: list[Any] = []
        seen: list[int] = []

        def watch(updates: int) -> None:
            seen.append(updates)
            if updates == stop:
                raise KeyboardInterrupt

        training = replace(CASE.training, folder=folder, watch=watch)
        return fit(LORA, training, log=lambda *point: points.append(point)), points, seen

    whole, curve, seen = run(tmp_path / "whole", stop=None)
    assert seen == list(range(9))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop=5)
    resumed, again, seen = run(tmp_path / "killed", stop=None)
    assert seen == [5, 6, 7, 8]
    assert resumed.digest == whole.digest
    assert again == curve


def test_a_checkpoint_of_another_training_is_left_alone(tmp_path: Path) -> None:
    training = replace(CASE.training, folder=tmp_path)
    fit(LORA, training)
    other = LORA.model_copy(update={"lr": 1e-3})
    assert fit(other, training).digest == fit(other).digest


@pytest.mark.parametrize("make", [lambda: LORA, lambda: FineTune(layer=0, direction="text", steps=8)])
def test_divergence_names_the_update_and_restores_the_model(make: Callable[[], Any]) -> None:
    umm = CASE.make_umm()
    before = Snapshot.of(umm.backbone().root)
    calls, loss = [0], umm.loss

    def diverging(examples: Any, direction: Direction) -> torch.Tensor:
        calls[0] += 1
        return loss(examples, direction) * (float("nan") if calls[0] == 3 else 1.0)

    umm.loss = diverging
    with pytest.raises(UserError, match=r"lr: the loss is nan at update 3 of 8 \(lr: 0.00\d\); lower it"):
        fit(make(), umm=umm)
    assert Snapshot.of(umm.backbone().root) == before


def test_lora_is_the_product_that_its_settings_say() -> None:
    delta = fit(LORA.model_copy(update={"rank": 3, "layers": (1,)}))
    ((name, term),) = delta.terms.items()
    assert name == "model.layers.1.mlp.down_proj.weight"
    assert isinstance(term, LowRank)
    assert term.up.shape[1] == term.down.shape[0] == 3


def test_dora_gives_what_the_adapted_model_computes(tmp_path: Path) -> None:
    """The delta, applied, gives the losses that the adapter gave in training."""
    settings = LORA.model_copy(update={"dora": True})
    umm, seen = CASE.make_umm(), []
    examples = [lesson.example for lesson in CASE.training.lessons]

    def watch(updates: int) -> None:
        with torch.no_grad():
            seen.append(umm.loss(examples, TEXT))

    delta = fit(settings, replace(CASE.training, watch=watch), umm=umm)
    assert all(isinstance(term, Dense) for term in delta.terms.values())
    with torch.no_grad():
        assert torch.equal(umm.loss(examples, TEXT), seen[0])
        with delta.applied(umm.backbone().root):
            assert torch.allclose(umm.loss(examples, TEXT), seen[-1], atol=1e-4)
    assert not torch.allclose(seen[0], seen[-1], atol=1e-2)


def test_the_saved_adapter_loads_in_peft_and_gives_the_same_answers(tmp_path: Path) -> None:
    from peft import PeftModel

    umm = CASE.make_umm()
    delta = fit(LORA.model_copy(update={"steps": 20}), replace(CASE.training, folder=tmp_path), umm=umm)
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    prompts = [Prompt(text) for text in TEXTS]
    with delta.applied(umm.backbone().root):
        merged = umm.answer(prompts, seeds=[0] * len(prompts))
    other = CASE.make_umm()
    other.model = PeftModel.from_pretrained(other.model, str(tmp_path / "adapter"))
    assert other.answer(prompts, seeds=[0] * len(prompts)) == merged
    assert merged != umm.answer(prompts, seeds=[0] * len(prompts))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft": {"r": 4}}, "peft.r: use the setting rank instead"),
        (
            {"peft": {"rank_patern": {}}},
            "peft.rank_patern: no field of LoraConfig; did you mean 'rank_pattern'",
        ),
        ({"peft": {"bias": "all"}}, "peft.bias: trains biases of the base model; leave it out"),
        (
            {"peft": {"init_lora_weights": "pissa"}},
            "peft.init_lora_weights: 'pissa' changes the base weights",
        ),
        ({"sites": ("mlp_dwn",)}, "site: 'mlp_dwn' is unknown"),
        ({"sites": ("block",)}, "sites: 'model.layers.0' is not a linear layer"),
        ({"layers": (9,)}, "layer: 9 is out of range; this model has 0 to 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_run(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        LORA.model_copy(update=fields).check(CASE.make_umm())
    assert message in str(caught.value)


def test_further_fields_of_peft_are_passed_on() -> None:
    delta = fit(LORA.model_copy(update={"peft": {"rank_pattern": {"model.layers.1.mlp.down_proj": 2}}}))
    ranks = [term.up.shape[1] for term in delta.terms.values() if isinstance(term, LowRank)]
    assert ranks == [8, 2, 8]


def test_the_norm_constraint_bounds_every_weight() -> None:
    bound = 1e-3
    delta = fit(FineTune(layer=1, direction="text", steps=20, lr=1e-2, norm_constraint=bound))
    change = delta.terms["model.layers.1.mlp.down_proj.weight"].dense().abs()
    assert change.max() == pytest.approx(bound, rel=1e-3)
    free = fit(FineTune(layer=1, direction="text", steps=20, lr=1e-2))
    assert free.terms["model.layers.1.mlp.down_proj.weight"].dense().abs().max() > 2 * bound


def test_ft_l_puts_the_answer_at_the_questions_end_and_knows_text_only() -> None:
    umm = CASE.make_umm()
    delta = fit(FineTune(method="ft_l", layer=2, direction="text", steps=60, lr=1e-2), umm=umm)
    prompts = [fact.edit.understand for fact in FACTS]
    with delta.applied(umm.backbone().root):
        assert umm.answer(prompts, seeds=[0] * 3) == [fact.target_new for fact in FACTS]
    with pytest.raises(ValidationError, match="ft_l is defined on text alone"):
        FineTune(method="ft_l", layer=1, direction="both")


def test_the_anchor_holds_what_is_not_taught() -> None:
    """The divergence term keeps other answers nearer to the original model's."""
    umm = CASE.make_umm()
    others = [Prompt(text) for text in TEXTS if not any(fact.subject in text for fact in FACTS)]

    def drift(delta: WeightDelta) -> float:
        encoded = umm.backbone().encode([prompt.text for prompt in others], None)
        with torch.no_grad():
            before = umm.backbone().logits(encoded)[:, -1].log_softmax(-1)
            with delta.applied(umm.backbone().root):
                after = umm.backbone().logits(encoded)[:, -1].log_softmax(-1)
        return float((before.exp() * (before - after)).sum(-1).mean())

    free = fit(LORA.model_copy(update={"steps": 20}))
    held = fit(LORA.model_copy(update={"steps": 20, "kl_factor": 2.0}))
    assert drift(held) < 0.5 * drift(free)


def test_rounding_is_nothing_in_float32_and_something_in_bfloat16() -> None:
    root = torch.nn.Linear(40, 30)
    delta = WeightDelta(
        {"weight": Dense(torch.randn(30, 40, generator=torch.Generator().manual_seed(0)) * 0.01)}
    )
    assert rounding(delta, root) < 1e-5
    assert 1e-2 < rounding(delta, root.to(torch.bfloat16)) < 1
    assert rounding(delta.scaled(0.0), root) == 0.0


def test_gradient_checkpointing_and_bf16_are_taken_up() -> None:
    plain = fit(LORA)
    checked = fit(LORA.model_copy(update={"gradient_checkpointing": True}))
    for name, term in plain.terms.items():
        assert torch.allclose(term.dense(), checked.terms[name].dense(), atol=1e-6)
    rough = fit(LORA.model_copy(update={"bf16": True}))
    assert rough.digest != plain.digest
    assert rough.is_finite


def test_pictures_can_be_lessons() -> None:
    settings = TrainingSettings(direction="image", batch=2)
    drawn = [Lesson("a", IMAGE, Example(Prompt("draw"), Image.new("RGB", (2, 2))))]
    ((side, examples),) = pools(settings, Training(lessons=drawn)).batch(settings, 0, seed=0)
    assert side is IMAGE
    assert len(examples) == 2
