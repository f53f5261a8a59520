"""Methods that spread values over layers: their formulas, their batches, and what they resume from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_lm import TEXTS, TinyUMM, fact, tiny_umm, weights

from gapeval_lab.delta import LowRank, WeightDelta
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Training
from gapeval_lab.interventions import value_rows
from gapeval_lab.interventions.alphaedit import AlphaEdit
from gapeval_lab.interventions.editing import Written, requests_of, value_settings, write
from gapeval_lab.interventions.emmet import Emmet
from gapeval_lab.interventions.memit import Memit
from gapeval_lab.interventions.moments import SecondMoment
from gapeval_lab.interventions.pmet import Pmet
from gapeval_lab.interventions.spread import SpreadSettings, _Prompts
from gapeval_lab.interventions.trace import left_as_found
from gapeval_lab.interventions.values import optimise_values

FACTS = [fact(number) for number in range(4)]
QUICK: dict[str, Any] = {
    "steps": 25,
    "ridge": 1e-3,
    "contexts": 0,
    "weight_decay": 1.5e-3,
    "clamp_norm_factor": 6.0,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPEVAL_LAB_CACHE", str(tmp_path / "cache"))


def fit(method: Any, umm: TinyUMM, training: Training | None = None, seed: int = 0) -> WeightDelta:
    delta: WeightDelta = method.fit(
        umm, FACTS, seed=seed, texts=TEXTS, log=lambda *point: None, training=training
    )
    return delta


def keys_of(umm: TinyUMM, method: SpreadSettings, layer: int, goal: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and goal states of the facts, as the model is now."""
    backbone = umm.backbone()
    requests = requests_of(method, FACTS, texts=TEXTS, seed=0, training=None)
    prompts = _Prompts(backbone, requests, token=method.fact_token, pictures=False)
    return prompts.look(backbone.sites.path(method.site, layer), backbone.sites.path(goal, method.layers[-1]))


def told(umm: TinyUMM) -> list[bool]:
    answers = umm.answer([one.edit.understand for one in FACTS], seeds=[0] * len(FACTS))
    return [answer == one.target_new for answer, one in zip(answers, FACTS, strict=True)]


# The toy reads its facts through the lowest MLP alone.
METHODS = {
    "memit": Memit(layers=(0,), moment_weight=0.1, **QUICK),
    "emmet": Emmet(layers=(0,), **QUICK),
    "pmet": Pmet(layers=(0,), moment_weight=0.1, **QUICK),
    "alphaedit": AlphaEdit(layers=(0,), null_threshold=0.1, l2=1e-4, **QUICK),
}


@pytest.mark.parametrize(
    ("name", "kept"), [("memit", 0.8), ("emmet", 0.8), ("pmet", 0.8), ("alphaedit", 0.0)]
)
def test_facts_are_told_afterwards_and_neighbours_mostly_stay(name: str, kept: float) -> None:
    """AlphaEdit needs more room than the toy has between what is used and what is not: no locality there."""
    umm = tiny_umm("llama", steps=80)
    edited = [one.subject for one in FACTS]
    neighbours = [
        item.understand
        for item in FACTS[0].neighbours
        if not any(subject in item.understand.text for subject in edited)
    ]
    before = umm.answer(neighbours, seeds=[0] * len(neighbours))
    with fit(METHODS[name], umm).applied(umm.backbone().root):
        assert all(told(umm))
        after = umm.answer(neighbours, seeds=[0] * len(neighbours))
    same = sum(one == two for one, two in zip(before, after, strict=True))
    assert same >= kept * len(neighbours)


def test_emmet_gives_every_key_its_value_exactly() -> None:
    """With one layer and no ridge on the keys, the stream after the layer is what was sought."""
    umm, method = tiny_umm("llama"), Emmet(layers=(1,), key_ridge=0.0, **QUICK)
    _, before = keys_of(umm, method, 1, "block")
    with left_as_found(umm.model):
        values = optimise_values(
            umm.backbone(),
            requests_of(method, FACTS, texts=TEXTS, seed=0, training=None),
            sites=["block"],
            layer=1,
            settings=value_settings(method),
        )
    wanted = before + torch.stack([value.delta for value in values]).double()
    with fit(method, umm).applied(umm.backbone().root):
        _, after = keys_of(umm, method, 1, "block")
    torch.testing.assert_close(after, wanted, rtol=1e-3, atol=1e-3)
    assert float((after - before).norm()) > 1.0


def moment(width: int = 12) -> SecondMoment:
    keys = torch.randn(300, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    keys[:, width // 2 :] *= 0.01  # nearly never used
    return SecondMoment(keys.T @ keys / 300, 300)


KEYS = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_memit_solves_eq_14() -> None:
    method = Memit(layers=(0,), moment_weight=7.0, ridge=0.0)
    c = moment()
    direct = torch.linalg.solve(7.0 * c.matrix + KEYS @ KEYS.T, KEYS)
    torch.testing.assert_close(method._solve(c, KEYS, "path", {}), direct, rtol=1e-8, atol=1e-10)


def test_alphaedit_moves_nothing_of_what_is_often_used_and_solves_the_papers_equation() -> None:
    method, c = AlphaEdit(layers=(0,), null_threshold=0.1, l2=0.5), moment()
    found = method._solve(c, KEYS, "path", {})
    values, vectors = torch.linalg.eigh(c.matrix)
    used = vectors[:, values >= 0.1 * values.mean()]
    assert used.shape[1] == 6
    torch.testing.assert_close(found.T @ used, torch.zeros(3, 6, dtype=torch.float64), rtol=0, atol=1e-12)
    null = vectors[:, values < 0.1 * values.mean()]
    p = null @ null.T
    alpha = 0.5 * float(KEYS.square().sum(0).mean())
    paper = torch.linalg.solve(
        (KEYS @ KEYS.T @ p + alpha * torch.eye(12, dtype=torch.float64)).T, p @ KEYS
    )  # X^T = K^T P (K K^T P + alpha I)^-1, transposed
    torch.testing.assert_close(found, paper, rtol=1e-8, atol=1e-10)


def test_alphaedit_remembers_earlier_batches() -> None:
    """What the second batch does to the first one's keys is less with the memory than without."""
    method, c = AlphaEdit(layers=(0,), null_threshold=0.1, l2=1e-3), moment()
    near = KEYS + 0.1 * torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    memory: dict[str, torch.Tensor] = {}
    method._solve(c, KEYS, "path", memory)
    kept, forgot = method._solve(c, near, "path", memory), method._solve(c, near, "path", {})
    assert float((kept.T @ KEYS).norm()) < 0.7 * float((forgot.T @ KEYS).norm())


def test_alphaedit_says_where_nothing_is_null() -> None:
    flat = SecondMoment(torch.eye(12, dtype=torch.float64), 99)
    with pytest.raises(UserError, match="null_threshold: no eigenvalue of path is under 0.02"):
        AlphaEdit(layers=(0,))._solve(flat, KEYS, "path", {})


def test_pmet_divides_by_the_root_of_the_layers_left_and_writes_the_mlp_alone() -> None:
    method = Pmet(layers=(0, 1), steps=3, contexts=0, moment_weight=1.0)
    shape = method._shape()
    assert (shape.divide(4), shape.goals) == (math.sqrt(4), ("mlp_down", "attn_out"))
    delta = fit(method, tiny_umm("llama"))
    assert all("mlp" in name for name in delta.terms) and len(delta.terms) == 2


def test_values_of_a_batch_are_those_of_one_at_a_time() -> None:
    """At the stream and at two sites; each fact has its own stop, clamp and decay."""
    umm = tiny_umm("llama")
    for sites in (["block"], ["mlp_down", "attn_out"]):
        method = Memit(layers=(1,), **QUICK)
        requests = requests_of(method, FACTS, texts=TEXTS, seed=0, training=None)
        with left_as_found(umm.model):
            found = [
                optimise_values(
                    umm.backbone(),
                    requests,
                    sites=sites,
                    layer=1,
                    settings=value_settings(method),
                    batch_facts=size,
                )
                for size in (1, 4)
            ]
        for one, many in zip(*found, strict=True):
            assert len(one.losses) == len(many.losses)
            torch.testing.assert_close(one.delta, many.delta, rtol=1e-4, atol=1e-4)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("method", [METHODS["memit"], METHODS["alphaedit"]], ids=["memit", "alphaedit"])
def test_an_edit_that_was_killed_goes_on_and_ends_with_the_same_delta(
    method: SpreadSettings, tmp_path: Path
) -> None:
    method = method.model_copy(update={"batch": 1})
    umm, seen = tiny_umm("llama"), []

    def killed(written: int) -> None:
        if written == 3:
            raise Stopped

    with pytest.raises(Stopped):
        fit(method, umm, Training(folder=tmp_path, watch=killed))
    resumed = fit(method, umm, Training(folder=tmp_path, watch=seen.append))
    assert seen == [3, 4]
    whole = fit(method, umm)
    assert resumed.digest == whole.digest
    # A sibling that shows that the comparison can fail: another seed is another edit.
    other = method.model_copy(update={"contexts": 2})
    assert fit(other, umm, Training(folder=tmp_path)).digest != whole.digest


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"should rise from one to the next; got \[2, 1\]"):
        Memit(layers=(2, 1))
    with pytest.raises(ValidationError, match="text_factor"):
        Memit(layers=(0,), text_factor=0.0)
    umm = tiny_umm("llama")
    with pytest.raises(UserError, match="layer: 9 is out of range"):
        Memit(layers=(0, 9)).check(umm)
    with pytest.raises(UserError, match="draws nothing; set it to 0"):
        Memit(layers=(0,), picture_factor=0.1).check(umm)
    with pytest.raises(UserError, match=r"facts 'fact-0-colour', 'fact-1-colour', 'fact-2-colour', \.\.\."):
        fit(Memit(layers=(0,), max_relative_norm=1e-9, moment_weight=0.1, **QUICK), umm)


def test_an_overflow_of_16_bit_weights_names_the_facts() -> None:
    umm = tiny_umm("llama", steps=80)
    umm.model.get_submodule("model.layers.0.mlp.down_proj").to(torch.float16)
    huge = WeightDelta({"model.layers.0.mlp.down_proj.weight": LowRank(torch.full((48, 1), 1e3), KEYS_16)})

    def batch(chunk: Any, memory: Any) -> Written:
        return Written(huge, [(0.0,)] * len(chunk))

    before = weights(umm.model)
    with pytest.raises(UserError, match=r"facts 'fact-0-colour', 'fact-1-colour': delta: .* overflows"):
        write(
            umm,
            FACTS[:2],
            settings=METHODS["memit"],
            size=2,
            seed=0,
            log=lambda *point: None,
            training=None,
            fit=batch,
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in umm.model.state_dict().items())


KEYS_16 = torch.full((1, 48), 1e3)


@pytest.mark.parametrize("contexts", [0, 2])
def test_values_are_the_same_where_the_head_is_spared(contexts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a wide vocabulary only the positions that count go through the head."""
    umm, method = tiny_umm("llama", steps=80), METHODS["memit"].model_copy(update={"contexts": contexts})
    requests = requests_of(method, FACTS, texts=TEXTS, seed=0, training=None)
    given: list[int] = []
    umm.model.lm_head.register_forward_hook(lambda module, args, out: given.append(out[..., 0].numel()))
    found, most = [], []
    for wide in (10**6, 1):
        monkeypatch.setattr(value_rows, "WIDE", wide)
        given.clear()
        with left_as_found(umm.model):
            found.append(
                optimise_values(
                    umm.backbone(), requests, sites=["block"], layer=0, settings=value_settings(method)
                )
            )
        most.append(max(given))
    assert most[1] < 0.5 * most[0]
    for whole, part in zip(*found, strict=True):
        assert len(whole.losses) == len(part.losses)
        torch.testing.assert_close(whole.delta, part.delta, rtol=1e-3, atol=1e-3)
