"""The tail gives what the model's own blocks give, and steps aside where it would not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_lm import HIDDEN, LAYERS, TEXTS, TinyUMM, fact, tiny_umm, word_tokenizer
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from gapeval_lab.interfaces import Backbone, Sites
from gapeval_lab.interventions import tail as tails
from gapeval_lab.interventions.compat import Compat
from gapeval_lab.interventions.request import ValueRequest, value_request
from gapeval_lab.interventions.rows import places
from gapeval_lab.interventions.tail_block import _norm, _norm_slope
from gapeval_lab.interventions.trace import left_as_found
from gapeval_lab.interventions.value_rows import TextRows, text_rows
from gapeval_lab.interventions.values import ValueSettings, optimise_values

SITES = Sites({"block": "model.layers.{}", "mlp_down": "model.layers.{}.mlp.down_proj"}, layers=LAYERS)
SETTINGS = ValueSettings(
    steps=4,
    lr=0.1,
    weight_decay=1e-3,
    kl_factor=0.1,
    clamp_norm_factor=4.0,
    early_stop=None,
    fact_token="subject_last",
    kl_order="edited_original",
)
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}


def model_of(kind: str, **changes: Any) -> TinyUMM:
    """An untrained model of some family, with a vocabulary of the tiny world."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    sizes = {**SIZES, "vocab_size": len(tokenizer), **changes}
    made: Any = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes)),
        "grouped": lambda: LlamaForCausalLM(LlamaConfig(**{**sizes, "num_key_value_heads": 2})),
        "biased": lambda: LlamaForCausalLM(LlamaConfig(**sizes, attention_bias=True, mlp_bias=True)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=2)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2)),
    }[kind]()
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1 or "bias" in name:
            nn.init.normal_(parameter, std=0.4)
        else:
            nn.init.uniform_(parameter, 0.3, 2.0)
    return TinyUMM(made.eval(), SITES, tokenizer)


def requests(*numbers: int) -> list[ValueRequest]:
    return [
        value_request(fact(n), TEXTS, seed=0, contexts=2, context_words=5, essence=("{subject} is",))
        for n in numbers
    ]


def rows_of(umm: TinyUMM, asked: list[ValueRequest], *, site: str = "mlp_down", layer: int = 0) -> TextRows:
    backbone = umm.backbone()
    return text_rows(
        backbone,
        asked,
        places(backbone, [site], layer),
        token="subject_last",
        essence=True,
        reach=None,
        compat=Compat(),
    )


def loss_and_slope(rows: TextRows, delta: Tensor) -> tuple[Tensor, Tensor]:
    delta = delta.clone().requires_grad_()
    loss = rows.loss(delta, text=1.0, kl=0.3, order="edited_original")
    return loss.detach(), torch.autograd.grad(loss.sum(), delta)[0]


@pytest.mark.parametrize("kind", ["llama", "grouped", "biased", "mistral", "qwen2"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("site", "layer"), [("mlp_down", 0), ("block", 1)])
def test_losses_and_slopes_are_the_models_own(
    kind: str, fused: bool, site: str, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "FUSED", 10**9 if fused else 0)
    umm = model_of(kind)
    delta = 100 * torch.randn(2, 1, HIDDEN, generator=torch.Generator().manual_seed(1))
    with left_as_found(umm.model):
        rows = rows_of(umm, requests(0, 3), site=site, layer=layer)
        assert rows.tail is not None
        assert len(rows.tail.blocks[0].taken) == (1 if fused else 3)
        quick, plain = loss_and_slope(rows, delta), loss_and_slope(rows.as_it_is(), delta)
    assert (plain[0] - rows.plain).abs().max() > 0.05  # the delta does something
    torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-5)


def test_sixteen_bits_differ_by_their_rounding() -> None:
    umm = model_of("grouped")
    umm.model.to(torch.bfloat16)
    delta = 10 * torch.randn(2, 1, HIDDEN, generator=torch.Generator().manual_seed(1))
    with left_as_found(umm.model):
        rows = rows_of(umm, requests(0, 3))
        assert rows.tail is not None
        quick, plain = loss_and_slope(rows, delta), loss_and_slope(rows.as_it_is(), delta)
    torch.testing.assert_close(quick[0], plain[0], rtol=3e-2, atol=3e-2)
    assert torch.cosine_similarity(quick[1].flatten(), plain[1].flatten(), dim=0) > 0.98


def test_only_what_changes_and_is_looked_at_is_computed() -> None:
    umm = model_of("llama")
    with left_as_found(umm.model):
        rows = rows_of(umm, requests(0))
    assert rows.tail is not None
    cells, length = rows.tail.frame, rows.encoded.input_ids.shape[1]
    for row, position in enumerate(rows.position.tolist()):
        columns = cells.column[cells.row == row].tolist()
        labels = (rows.encoded.labels[row] != -100).nonzero().flatten().tolist()
        last = length - 1 if rows.essence[row] else max(labels) - 1
        assert columns == list(range(position, last + 1))
        seen = cells.column[cells.end][cells.row[cells.end] == row].tolist()
        assert seen == ([last] if rows.essence[row] else [label - 1 for label in labels])


def test_rows_of_some_facts_lose_what_they_lost_among_all() -> None:
    umm = model_of("grouped")
    delta = torch.randn(3, 1, HIDDEN, generator=torch.Generator().manual_seed(1))
    with left_as_found(umm.model):
        rows = rows_of(umm, requests(0, 3, 5))
        whole, _ = loss_and_slope(rows, delta)
        some, slope = loss_and_slope(rows.of(torch.tensor([True, False, True])), delta)
    torch.testing.assert_close(some[[0, 2]], whole[[0, 2]])
    assert float(slope[1].abs().max()) == 0.0


@pytest.mark.parametrize("everywhere", [False, True])
def test_values_are_those_found_without_it(everywhere: bool) -> None:
    umm = tiny_umm(steps=60)
    backbone, asked = umm.backbone(), requests(0, 3, 5)
    width = umm.model.get_submodule("model.layers.0.mlp.down_proj").weight.shape[1]
    reach = [torch.randn(width, generator=torch.Generator().manual_seed(n)) for n in range(3)]

    def found(plain: bool) -> list[Tensor]:
        templates = {k: v for k, v in backbone.sites.templates.items() if not plain or k != "block"}
        given = replace(backbone, sites=replace(backbone.sites, templates=templates))
        with left_as_found(backbone.root):
            values = optimise_values(
                given,
                asked,
                sites=["mlp_down"],
                layer=0,
                settings=SETTINGS,
                reach=reach if everywhere else None,
            )
        return [value.delta for value in values]

    assert min(float(delta.norm()) for delta in found(True)) > 0.1
    torch.testing.assert_close(found(False), found(True), rtol=1e-3, atol=1e-4)


class Odd(nn.Module):
    """An activation that is not Llama's."""

    def forward(self, states: Tensor) -> Tensor:
        return torch.tanh(states)


def without_tail(umm: TinyUMM) -> TextRows:
    with left_as_found(umm.model):
        rows = rows_of(umm, requests(0))
    assert rows.tail is None
    delta = torch.zeros(1, 1, HIDDEN)
    loss = rows.loss(delta, text=1.0, kl=0.0, order="edited_original")
    torch.testing.assert_close(loss, rows.plain)
    return rows


def test_another_activation_is_noticed_by_its_answers() -> None:
    umm = model_of("llama")
    umm.model.get_submodule("model.layers.2.mlp").act_fn = Odd()
    without_tail(umm)


def test_a_wrapped_or_hooked_or_replaced_part_is_left_alone() -> None:
    wrapped = model_of("llama")
    part = wrapped.model.get_submodule("model.layers.2.self_attn")
    part.o_proj = nn.Sequential(part.o_proj)
    without_tail(wrapped)
    below = model_of("llama")
    below.model.get_submodule("model.layers.0.mlp").register_forward_hook(
        lambda module, given, output: output / 2
    )
    without_tail(below)
    hooked = model_of("llama")
    hooked.model.get_submodule("model.layers.1.mlp.up_proj").register_forward_hook(lambda *given: None)
    without_tail(hooked)
    replaced = model_of("llama")
    inner = replaced.model.get_submodule("model.layers.1.mlp")
    inner.__dict__["forward"] = inner.forward
    without_tail(replaced)


def test_blocks_of_another_kind_are_left_alone() -> None:
    umm = tiny_umm(steps=1, kind="gpt2")
    backbone: Backbone = umm.backbone()
    with left_as_found(backbone.root):
        rows = text_rows(
            backbone,
            requests(0),
            places(backbone, ["mlp_down"], 0),
            token="subject_last",
            essence=True,
            reach=None,
            compat=Compat(),
        )
    assert rows.tail is None


def test_a_value_in_attention_gets_no_tail() -> None:
    umm = model_of("llama")
    umm.sites = replace(SITES, templates={**SITES.templates, "attn_out": "model.layers.{}.self_attn.o_proj"})
    with left_as_found(umm.model):
        assert rows_of(umm, requests(0), site="attn_out").tail is None
        assert rows_of(umm, requests(0)).tail is not None


def test_a_head_that_is_more_than_norm_and_weights_is_noticed_at_the_first_loss() -> None:
    umm = tiny_umm(steps=60)
    backbone, asked = umm.backbone(), requests(0, 3)

    def found(*, plain: bool, halved: bool) -> list[Tensor]:
        templates = {k: v for k, v in backbone.sites.templates.items() if not plain or k != "block"}
        given = replace(backbone, sites=replace(backbone.sites, templates=templates))
        if halved:
            given = replace(given, logits=lambda encoded: 0.5 * backbone.logits(encoded))
        with left_as_found(backbone.root):
            values = optimise_values(given, asked, sites=["mlp_down"], layer=0, settings=SETTINGS)
        return [value.delta for value in values]

    whole = found(plain=True, halved=True)
    torch.testing.assert_close(found(plain=False, halved=True), whole, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(whole[0], found(plain=True, halved=False)[0], rtol=1e-2)


def test_one_large_number_does_not_overflow_sixteen_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    x, slope = (torch.randn(3, 64, generator=generator).half() for _ in range(2))
    x[:, 0], slope[:, 0] = 2000.0, 40.0
    wide = x.double().requires_grad_()
    exact = torch.autograd.grad(_norm(wide, None, 1e-6)[0], wide, slope.double())[0]
    found = _norm_slope(slope, x, _norm(x, None, 1e-6)[1], None)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-6)
