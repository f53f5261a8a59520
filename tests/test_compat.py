"""Each way of EasyEdit's that the native ROME can take: what it computes, and that it makes a difference."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_lm import TEXTS, TinyUMM, fact, second_moment, tiny_umm

from gapeval_lab.delta import WeightDelta
from gapeval_lab.interventions.compat import EASYEDIT, Compat
from gapeval_lab.interventions.lookup import token_positions
from gapeval_lab.interventions.moments import SecondMoment
from gapeval_lab.interventions.r_rome import RRome
from gapeval_lab.interventions.request import ValueRequest, value_request
from gapeval_lab.interventions.rome import Rome, subject_key, update_direction
from gapeval_lab.interventions.trace import changing, left_as_found
from gapeval_lab.interventions.values import Value, ValueSettings, optimise_values
from gapeval_lab.registry import build

STEPS = 80
# In GPT-2 a key moves with its position, so that contexts differ from the question alone.
METHOD = Rome(layer=1, contexts=3, steps=5, lr=0.2, early_stop=None, kl_factor=0.5, weight_decay=0.3)
PATH = "transformer.h.1.mlp.c_proj"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPEVAL_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "compat-cache"))


def changed(**differences: Any) -> Rome:
    return METHOD.model_copy(update={"compat": Compat(**differences)})


def fit(method: Rome, umm: TinyUMM) -> WeightDelta:
    return method.fit(umm, [fact(0)], seed=0, texts=TEXTS, log=lambda *point: None)


def request(method: Rome) -> ValueRequest:
    return value_request(
        fact(0),
        TEXTS,
        seed=0,
        contexts=method.contexts,
        context_words=method.context_words,
        essence=method.essence,
    )


def value_of(method: Rome, umm: TinyUMM) -> Value:
    names = [field.name for field in dataclasses.fields(ValueSettings)]
    settings = ValueSettings(**{name: getattr(method, name) for name in names if hasattr(method, name)})
    with left_as_found(umm.model):
        (found,) = optimise_values(
            umm.backbone(), [request(method)], sites=[method.site], layer=method.layer, settings=settings
        )
    return found


def relative(one: WeightDelta, other: WeightDelta) -> float:
    (first,), (second,) = one.terms.values(), other.terms.values()
    return float((first.dense() - second.dense()).norm() / second.dense().norm())


@pytest.mark.parametrize("name", [name for name in EASYEDIT if name != "inverse"])
def test_each_difference_changes_the_edit(name: str) -> None:
    umm = tiny_umm("gpt2", steps=STEPS)
    plain, other = fit(METHOD, umm), fit(changed(**{name: EASYEDIT[name]}), umm)
    assert relative(other, plain) > 1e-3


def test_precision_changes_the_last_digits() -> None:
    umm = tiny_umm("gpt2", steps=STEPS)
    plain, other = fit(METHOD, umm), fit(changed(inverse="float32"), umm)
    assert 1e-9 < relative(other, plain) < 1e-2
    # A moment that float32 can hardly invert.
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator)).Q
    moment = SecondMoment(turn @ torch.logspace(0, -6, 6, dtype=torch.float64).diag() @ turn.T, 100)
    key = torch.ones(6, dtype=torch.float64)
    exact = update_direction(key, moment.solver(0.0))
    found = update_direction(key, moment.coarse_solver(0.0))
    rough = torch.inverse(moment.matrix.float()) @ key.float()
    torch.testing.assert_close(found.float(), rough / rough.norm())
    assert 1e-5 < float((found - exact).norm()) < 0.1


def naive_loss(umm: TinyUMM, method: Rome, delta: torch.Tensor, initial: torch.Tensor) -> float:
    """L(delta) as compat.py describes it, one prompt at a time."""
    backbone, compat, one = umm.backbone(), method.compat, request(method)

    def asked(question: str, target: str | None, added: torch.Tensor | None) -> tuple[Any, int, torch.Tensor]:
        encoded = backbone.encode([question], None if target is None else [target])
        (column,) = token_positions(encoded, [one.subject], token="subject_last", facts=[one.fact_id])

        def add(output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[0, column] += 0 if added is None else added
            return output

        with torch.no_grad(), changing(umm.model, PATH, add):
            return encoded, column, backbone.logits(encoded)[0].double().log_softmax(-1)

    total = 0.0
    for context in one.contexts:
        encoded, _, logprobs = asked(context, one.target, delta)
        columns = (encoded.labels[0] != -100).nonzero().flatten().tolist()
        told = [-float(logprobs[column - 1, int(encoded.labels[0, column])]) for column in columns]
        total += sum(told) / (len(told) if compat.target_loss == "mean" else 1) / len(one.contexts)
    for prompt in one.essence:
        (_, column, before), (_, _, after) = asked(prompt, None, None), asked(prompt, None, delta)
        place = column if compat.kl_at == "token" else -1
        p, q = after[place], before[place]
        total += method.kl_factor * float((p.exp() * (p - q)).sum()) / len(one.essence)
    return total + method.weight_decay * float(delta.norm() ** compat.decay_power / initial.norm() ** 2)


@pytest.mark.parametrize(
    "differences",
    [{}, {"target_loss": "mean"}, {"decay_power": 1}, {"initial": "question"}, {"kl_at": "token"}, EASYEDIT],
    ids=lambda given: "-".join(given) or "none",
)
def test_the_loss_is_the_one_described(differences: dict[str, Any]) -> None:
    umm = tiny_umm("gpt2", steps=STEPS)
    umm.model.eval()
    method = changed(**differences)
    value = value_of(method, umm)
    for delta, loss in ((torch.zeros_like(value.delta), value.losses[0]), (value.delta, value.losses[-1])):
        assert naive_loss(umm, method, delta, value.initial) == pytest.approx(loss, rel=1e-4)
    assert value.losses[-1] < value.losses[0]


def test_where_the_initial_value_comes_from() -> None:
    umm = tiny_umm("gpt2", steps=STEPS)
    alone = value_of(METHOD.model_copy(update={"contexts": 0}), umm).initial
    assert torch.allclose(value_of(changed(initial="question"), umm).initial, alone, atol=1e-6)
    assert not torch.allclose(value_of(METHOD, umm).initial, alone, atol=1e-3)


def test_the_clamp_uses_that_initial_value() -> None:
    umm = tiny_umm("gpt2", steps=STEPS)
    tight = {"clamp_norm_factor": 0.1, "contexts": 3}
    value = value_of(changed(initial="question").model_copy(update=tight), umm)
    assert float(value.delta.norm()) == pytest.approx(0.1 * float(value.initial.norm()), rel=1e-5)


def test_which_key_divides(tmp_path: Path) -> None:
    umm = tiny_umm("gpt2", steps=STEPS)
    mean, alone = fit(METHOD, umm), fit(changed(divisor="question"), umm)
    backbone, one = umm.backbone(), request(METHOD)
    bare = dataclasses.replace(one, contexts=one.contexts[:1])
    with left_as_found(umm.model):
        moment = second_moment(backbone, PATH, TEXTS, limit=1000, seed=0, cache=tmp_path)
        keys = [subject_key(backbone, PATH, which, token="subject_last") for which in (one, bare)]
    right = update_direction(keys[0], moment.solver(METHOD.ridge))
    ratio = float((right @ keys[0]) / (right @ keys[1]))
    assert abs(ratio - 1) > 1e-3
    (first,), (second,) = mean.terms.values(), alone.terms.values()
    torch.testing.assert_close(second.dense(), ratio * first.dense(), rtol=1e-4, atol=1e-6)


def test_decay_of_power_one_starts_without_a_gradient() -> None:
    """|delta| has none at 0; the first update must come from the other terms alone."""
    umm = tiny_umm("gpt2", steps=STEPS)
    value = value_of(changed(decay_power=1).model_copy(update={"steps": 1}), umm)
    assert bool(value.delta.isfinite().all()) and float(value.delta.norm()) > 0


def test_the_word_stands_for_all_of_them() -> None:
    by_name = build("interventions", "rome", settings={"layer": 0, "compat": "easyedit"})
    assert by_name.compat == Compat(**EASYEDIT)
    assert all(getattr(Compat(), name) != value for name, value in EASYEDIT.items())
    assert set(EASYEDIT) == set(Compat.model_fields)
    single = build("interventions", "rome", settings={"layer": 0, "compat": {"decay_power": 1}})
    assert single.compat == Compat(decay_power=1)
    with pytest.raises(ValidationError, match="easyedit"):
        Rome(layer=0, compat="easyedits")
    with pytest.raises(ValidationError):
        Rome(layer=0, compat={"decay_power": 3})


def test_r_rome_has_one_key_and_refuses_the_other() -> None:
    """In GPT-2 keys move with their position: the published code's divisor makes another edit."""
    umm, given = tiny_umm("gpt2", steps=STEPS), METHOD.model_dump()
    own, theirs = RRome(**given), changed(divisor="question")
    assert fit(own, umm).digest == fit(METHOD, umm).digest
    assert fit(own, umm).digest != fit(theirs, umm).digest
    with pytest.raises(ValidationError, match="divisor 'question' is what R-ROME mends"):
        RRome(**{**given, "compat": "easyedit"})
