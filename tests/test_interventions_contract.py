"""The intervention contract, over every built-in one; and that the contract can be broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from contracts import (
    INTERVENTION_CHECKS,
    Case,
    gives_the_same_delta_for_the_same_seed,
    leaves_global_random_state_alone,
    leaves_the_model_as_it_was,
)
from engines import NEEDS_EASYEDIT
from pydantic import BaseModel, ConfigDict
from tiny_lm import TEXTS, fact, tiny_umm

from gapeval_lab.delta import LowRank, WeightDelta, fingerprint
from gapeval_lab.delta_file import Origin
from gapeval_lab.interventions.alphaedit import AlphaEdit
from gapeval_lab.interventions.easyedit import EasyEdit
from gapeval_lab.interventions.emmet import Emmet
from gapeval_lab.interventions.finetune import FineTune
from gapeval_lab.interventions.lora import Lora
from gapeval_lab.interventions.memit import Memit
from gapeval_lab.interventions.pmet import Pmet
from gapeval_lab.interventions.r_rome import RRome
from gapeval_lab.interventions.rome import Rome
from gapeval_lab.interventions.saved import Saved

FACTS = (fact(0), fact(5))
LLAMA = Case(lambda: tiny_umm("llama", steps=80), FACTS, TEXTS)
GPT2 = Case(lambda: tiny_umm("gpt2", steps=80), FACTS, TEXTS)

BUILT_IN = {
    "rome": (Rome(layer=0, steps=6, contexts=2), LLAMA),
    "rome-attention-last": (
        Rome(layer=1, site="attn_out", fact_token="last", steps=6, lr=0.1, contexts=0),
        LLAMA,
    ),
    "rome-transposed": (Rome(layer=0, steps=6, contexts=0), GPT2),
    "r-rome": (RRome(layer=0, steps=6, contexts=2), LLAMA),
    "rome-compat": (Rome(layer=0, steps=6, contexts=2, compat="easyedit"), LLAMA),
    "memit": (Memit(layers=(0, 1), steps=6, contexts=2, moment_weight=1.0), LLAMA),
    "memit-batches": (Memit(layers=(0, 1), steps=6, contexts=0, moment_weight=1.0, batch=1), GPT2),
    "emmet": (Emmet(layers=(1,), steps=6, contexts=1), LLAMA),
    "alphaedit": (AlphaEdit(layers=(0, 1), steps=6, contexts=0, null_threshold=0.5, batch=2), LLAMA),
    "pmet": (Pmet(layers=(0, 1), steps=6, contexts=0, moment_weight=1.0), LLAMA),
    "lora": (Lora(direction="text", steps=6, lr=5e-3, sites=("mlp_down", "attn_out"), dropout=0.1), LLAMA),
    "lora-dora": (
        Lora(direction="text", steps=6, lr=5e-3, sites=("mlp_down",), layers=(0,), dora=True, rslora=True),
        LLAMA,
    ),
    "lora-transposed": (Lora(direction="text", steps=6, lr=5e-3, sites=("mlp_down",)), GPT2),
    "lora-anchored": (
        Lora(direction="text", steps=6, lr=5e-3, sites=("mlp_down",), kl_factor=0.1, kl_texts=8),
        LLAMA,
    ),
    "ft-l": (
        FineTune(method="ft_l", direction="text", layer=1, lr=1e-3, steps=6, norm_constraint=4e-3),
        LLAMA,
    ),
    "ft-m": (FineTune(direction="text", layer=1, lr=1e-3, steps=6, optimiser="adam"), GPT2),
}

ENGINE = {
    "easyedit-rome": (EasyEdit(method="ROME", layer=0, v_num_grad_steps=7, contexts=2), LLAMA),
    "easyedit-rome-transposed": (EasyEdit(method="ROME", layer=0, v_num_grad_steps=7, contexts=0), GPT2),
    "easyedit-memit": (
        EasyEdit(
            method="MEMIT", layers=(0, 1), v_num_grad_steps=7, contexts=2, mom2_update_weight=1e-2, v_lr=0.2
        ),
        LLAMA,
    ),
    "easyedit-memit-transposed": (
        EasyEdit(method="MEMIT", layers=(0, 1), v_num_grad_steps=7, contexts=0, mom2_update_weight=1e-2),
        GPT2,
    ),
    "easyedit-ft": (EasyEdit(method="FT", layer=1, num_steps=6, lr=1e-3, norm_constraint=4e-3), LLAMA),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "contract-cache"
    monkeypatch.setenv("GAPEVAL_LAB_CACHE", str(folder))


@pytest.mark.parametrize("check", INTERVENTION_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", BUILT_IN)
def test_contract(name: str, check: Callable[[Any, Case], None]) -> None:
    intervention, case = BUILT_IN[name]
    check(intervention, case)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta that writes the facts, made for the model of the case."""
    folder = tmp_path_factory.mktemp("stored")
    umm = LLAMA.make_umm()
    delta = Rome(layer=0, steps=6, contexts=0).fit(
        umm, FACTS, seed=0, texts=TEXTS, log=lambda *point: None, cache=folder
    )
    return delta.save(folder / "delta", origin=Origin(fingerprint(umm.backbone().root), "text"))


@pytest.mark.parametrize("check", INTERVENTION_CHECKS, ids=lambda check: check.__name__)
def test_contract_of_a_stored_delta(check: Callable[[Any, Case], None], stored: Path) -> None:
    check(Saved(delta=str(stored), direction="text"), LLAMA)


@NEEDS_EASYEDIT
@pytest.mark.parametrize("check", INTERVENTION_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ENGINE)
def test_contract_of_the_engine(name: str, check: Callable[[Any, Case], None]) -> None:
    intervention, case = ENGINE[name]
    check(intervention, case)


class Careless(BaseModel):
    """Breaks one promise at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    direction: ClassVar[str] = "text"
    sin: str

    def fit(self, umm: Any, facts: Any, *, seed: int, texts: Any, log: Any, training: Any) -> WeightDelta:
        root = umm.backbone().root
        name, parameter = next(iter(root.named_parameters()))
        if self.sin == "weights":
            with torch.no_grad():
                parameter[0, 0] += 1e-3
        if self.sin == "flag":
            parameter.requires_grad_(not parameter.requires_grad)
        if self.sin == "mode":
            root.training = not root.training
        if self.sin == "hook":
            root.register_forward_hook(lambda *seen: None)
        if self.sin == "gradient":
            parameter.grad = torch.zeros_like(parameter)
        up = torch.randn(parameter.shape[0], 1)
        return WeightDelta({name: LowRank(up, torch.ones(1, parameter.shape[1]))})


@pytest.mark.parametrize("sin", ["weights", "flag", "mode", "hook", "gradient"])
def test_the_contract_sees_a_changed_model(sin: str) -> None:
    with pytest.raises(AssertionError):
        leaves_the_model_as_it_was(Careless(sin=sin), LLAMA)


@pytest.mark.parametrize("check", [leaves_global_random_state_alone, gives_the_same_delta_for_the_same_seed])
def test_the_contract_sees_global_randomness(check: Callable[[Any, Case], None]) -> None:
    with pytest.raises(AssertionError):
        check(Careless(sin="none"), LLAMA)
