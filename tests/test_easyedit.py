"""EasyEdit's own code on our models: the right tokens, the native numbers, and nothing left behind."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import FT, MEMIT, NEEDS_EASYEDIT, ROME, STEPS, checkout, embedded, fit, read, relative, world
from pydantic import ValidationError
from tiny_lm import fact, tiny_umm, weights

from gapeval_lab.delta import Dense, LowRank, WeightDelta
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM, Training
from gapeval_lab.interventions import easyedit
from gapeval_lab.interventions.compat import EASYEDIT
from gapeval_lab.interventions.easyedit import EasyEdit
from gapeval_lab.interventions.easyedit_source import find_source, opened
from gapeval_lab.interventions.memit import Memit
from gapeval_lab.interventions.rome import Rome
from gapeval_lab.items import Direction, Example, Fact, Prompt
from gapeval_lab.recipe import resolve

pytestmark = NEEDS_EASYEDIT

ROME_FILE = """
alg_name: "ROME"
model_name: "./hugging_cache/llama-2-7b"
stats_dir: "./data/stats"
device: 1
layers: [0]
fact_token: "subject_last"
v_num_grad_steps: 6
v_lr: 5e-1
v_loss_layer: 31
v_weight_decay: 1e-3
clamp_norm_factor: 4
kl_factor: 0.0625
mom2_adjustment: false
context_template_length_params: [[5, 10], [10, 10]]
rewrite_module_tmp: "model.layers.{}.mlp.down_proj"
layer_module_tmp: "model.layers.{}"
mlp_module_tmp: "model.layers.{}.mlp"
attn_module_tmp: "model.layers.{}.self_attn"
ln_f_module: "model.norm"
lm_head_module: "lm_head"
mom2_dataset: "wikipedia"
mom2_n_samples: 100000
mom2_dtype: "float32"
"""
MEMIT_FILE = (
    ROME_FILE.replace('"ROME"', '"MEMIT"')
    .replace("layers: [0]", "layers: [0, 1]")
    .replace("context_template_length_params: [[5, 10], [10, 10]]", 'layer_selection: "all"')
    .replace("mom2_adjustment: false", "mom2_adjustment: true\nmom2_update_weight: 1e-2")
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPEVAL_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "easyedit-cache"))
    monkeypatch.delenv("GAPEVAL_EASYEDIT", raising=False)


@pytest.fixture(scope="module", name="janus")
def _janus() -> Any:
    return embedded()


@pytest.fixture(scope="module", name="tinyworld")
def _tinyworld() -> tuple[list[Fact], list[str]]:
    return world()


# --- the native method's numbers ---------------------------------------------------------------


def native(method: EasyEdit, **others: Any) -> Rome:
    """The native ROME with EasyEdit's ways."""
    settings = {
        **{"layer": method.layer, "contexts": method.contexts, "ridge": method.ridge},
        **{"steps": (method.v_num_grad_steps or 25) - 1, "lr": 0.5, "weight_decay": 1e-3},
        **{"clamp_norm_factor": 4.0, "kl_factor": 0.0625, "early_stop": 0.05, "essence": ("{subject} is a",)},
        "compat": EASYEDIT,
    }
    return Rome(**{**settings, **others})


def two(kind: str) -> tuple[UMM, list[Fact]]:
    """A model and two facts to write."""
    return tiny_umm(kind, steps=STEPS), [fact(0), fact(5)]


def of_the_engine(engine: EasyEdit, kind: str) -> WeightDelta:
    """What EasyEdit itself makes of `two`: made once for all that is held against it."""
    return _of_the_engine(engine.model_dump_json(), kind)


@functools.cache
def _of_the_engine(engine: str, kind: str) -> WeightDelta:
    return fit(EasyEdit.model_validate_json(engine), *two(kind))


PARITY = 1e-5
MEMITS_OWN = ("target_loss", "decay_power", "initial", "kl_at")
"""The differences that its MEMIT has as well; the others are ROME's."""
"""Relative difference of the deltas; measured: 3e-6 at most, float32 rounding."""


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("contexts", [0, 3])
def test_native_rome_gives_the_same_delta(kind: str, layer: int, contexts: int) -> None:
    umm, facts = tiny_umm(kind, steps=STEPS), [fact(0), fact(5)]
    engine = EasyEdit(method="ROME", layer=layer, contexts=contexts)
    assert relative(fit(native(engine), umm, facts), fit(engine, umm, facts)) < PARITY


def test_native_rome_gives_the_same_delta_on_a_umm(janus: Any, tinyworld: Any) -> None:
    facts, texts = tinyworld
    engine = EasyEdit(method="ROME", layer=0, contexts=2, ridge=0.05)
    one, other = (fit(method, janus, facts, texts=texts) for method in (native(engine), engine))
    assert relative(one, other) < PARITY


def native_memit(method: EasyEdit, **others: Any) -> Memit:
    """The native MEMIT with EasyEdit's defaults and ways."""
    settings: dict[str, Any] = {
        "layers": method.layers,
        "steps": (method.v_num_grad_steps or 25) - 1,
        "lr": method.v_lr or 0.5,
        "weight_decay": 0.5 if method.v_weight_decay is None else method.v_weight_decay,
        "clamp_norm_factor": method.clamp_norm_factor or 0.75,
        "essence": ("{subject} is a",),
        "moment_weight": method.mom2_update_weight,
        "contexts": method.contexts,
        "key_mean": "kinds",
        "shared_contexts": True,
        "compat": "easyedit",
    }
    return Memit(**{**settings, **others})


def memit_engine(contexts: int) -> EasyEdit:
    """Few contexts or many, with every hyperparameter stated."""
    return EasyEdit(
        method="MEMIT",
        layers=(0, 1),
        contexts=contexts,
        v_num_grad_steps=8,
        v_lr=0.3,
        v_weight_decay=0.2,
        clamp_norm_factor=2.0,
        mom2_update_weight=0.05,
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("contexts", "count"), [(0, 1), (3, 10)])
def test_native_memit_gives_the_same_delta(kind: str, contexts: int, count: int) -> None:
    umm, facts = tiny_umm(kind, steps=STEPS), [fact(number) for number in range(count)]
    engine = memit_engine(contexts)
    assert relative(fit(native_memit(engine), umm, facts), fit(engine, umm, facts)) < PARITY


def test_native_memit_gives_the_same_delta_on_a_umm(janus: Any, tinyworld: Any) -> None:
    facts, texts = tinyworld
    engine = memit_engine(2)
    one, other = (fit(method, janus, facts, texts=texts) for method in (native_memit(engine), engine))
    assert relative(one, other) < PARITY


@pytest.mark.parametrize(
    "other",
    [
        *({"compat": {key: value for key, value in EASYEDIT.items() if key != name}} for name in MEMITS_OWN),
        {"steps": 8},
        {"early_stop": None},
        {"essence": ("the shape of {subject} is",)},
        {"kl_order": "original_edited"},
        {"key_mean": "contexts"},
        {"shared_contexts": False},
        {"moment_weight": 0.06},
    ],
    ids=[
        *MEMITS_OWN,
        "steps",
        "early_stop",
        "essence",
        "kl_order",
        "key_mean",
        "shared_contexts",
        "moment_weight",
    ],
)
def test_each_difference_breaks_memits_parity(other: dict[str, Any]) -> None:

    def apart(kind: str, contexts: int, updates: int) -> float:
        engine = memit_engine(contexts).model_copy(
            update={"v_num_grad_steps": updates, "clamp_norm_factor": 8}
        )
        return relative(fit(native_memit(engine, **other), *two(kind)), of_the_engine(engine, kind))

    assert apart("gpt2", 3, 8) > PARITY or apart("llama", 0, 25) > PARITY  # the second stops early


def test_parity_in_the_other_precision() -> None:
    umm = tiny_umm("gpt2", steps=STEPS)
    engine = EasyEdit(method="ROME", layer=1, contexts=2, mom2_dtype="float64")
    exact = native(engine, compat={**EASYEDIT, "inverse": "float64"})
    assert relative(fit(exact, umm, [fact(0)]), fit(engine, umm, [fact(0)])) < PARITY


@pytest.mark.parametrize(
    "other",
    [
        *({"compat": {key: value for key, value in EASYEDIT.items() if key != name}} for name in EASYEDIT),
        {"steps": 25},
        {"early_stop": None},
        {"essence": ("the shape of {subject} is",)},
        {"kl_order": "original_edited"},
        {"ridge": 2e-2},
    ],
    ids=[*EASYEDIT, "steps", "early_stop", "essence", "kl_order", "ridge"],
)
def test_each_difference_breaks_the_parity(other: dict[str, Any]) -> None:
    """What the parity tests would see: any one of EasyEdit's ways left out."""

    def apart(kind: str, contexts: int) -> float:
        engine = EasyEdit(method="ROME", layer=0, contexts=contexts)
        return relative(fit(native(engine, **other), *two(kind)), of_the_engine(engine, kind))

    # The first has keys that differ between contexts, the second stops before its last step.
    assert apart("gpt2", 3) > PARITY or apart("llama", 0) > PARITY


def test_the_loss_layer_is_read_and_changes_nothing() -> None:
    umm = tiny_umm(steps=STEPS)
    deltas = [
        fit(ROME.model_copy(update={"hparams": {"v_loss_layer": layer}}), umm, [fact(0)]) for layer in (1, 2)
    ]
    assert deltas[0].digest == deltas[1].digest


# --- what comes back ---------------------------------------------------------------------------


def test_factors_stay_factors_and_matrices_matrices() -> None:
    umm = tiny_umm(steps=STEPS)
    facts = [fact(0), fact(5), fact(10)]
    (rome,) = fit(ROME, umm, facts).terms.values()
    assert isinstance(rome, LowRank) and rome.up.shape[1] == 3
    memit = fit(MEMIT, umm, facts).terms
    assert len(memit) == 2
    assert all(isinstance(term, LowRank) and term.up.shape[1] == 3 for term in memit.values())
    (tuned,) = fit(FT, umm, facts).terms.values()
    assert isinstance(tuned, Dense)
    many = [fact(number, relation) for number in range(20) for relation in ("colour", "shape")]
    spread = fit(MEMIT.model_copy(update={"contexts": 0, "hparams": {"v_num_grad_steps": 2}}), umm, many)
    assert all(isinstance(term, Dense) for term in spread.terms.values())  # 40 ranks of 48 are not few


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_later_layers_see_earlier_ones_as_they_will_be(kind: str) -> None:
    """Inside EasyEdit a square matrix goes into the weights, too: it must lie there as in the delta."""
    umm, one = tiny_umm(kind, steps=STEPS), fact(0)
    # Without C, which would be another one on the edited model.
    both, first, second = (
        EasyEdit(method="ROME", layers=layers, v_num_grad_steps=4, contexts=0, mom2_adjustment=False)
        for layers in ((0, 1), (0,), (1,))
    )
    below = fit(first, umm, [one])
    with below.applied(umm.model):
        above = fit(second, umm, [one])
    assert relative(below.then(above), fit(both, umm, [one])) < PARITY


def test_several_facts_are_written_one_after_the_other() -> None:
    umm, facts = tiny_umm(steps=STEPS), [fact(0), fact(0, "shape")]
    method = ROME.model_copy(update={"mom2_adjustment": False})
    together, first = fit(method, umm, facts), fit(method, umm, facts[:1])
    with first.applied(umm.model):
        second = fit(method, umm, facts[1:])
    assert relative(first.then(second), together) < 1e-6


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_memit_writes_facts(kind: str) -> None:
    umm, facts = tiny_umm(kind, steps=STEPS), [fact(0), fact(5)]
    method = EasyEdit(method="MEMIT", layers=(0,), contexts=0, mom2_update_weight=1e-3)
    with fit(method, umm, facts).applied(umm.model):
        answers = umm.answer([one.edit.understand for one in facts], seeds=[0, 0])
    assert answers == [one.target_new for one in facts]


@pytest.mark.parametrize(
    "method",
    [
        EasyEdit(method="ROME", layer=0, contexts=0, ridge=0.05),
        EasyEdit(method="MEMIT", layers=(0, 1), contexts=0, ridge=0.05, mom2_update_weight=0.1),
        EasyEdit(method="FT", layer=0, lr=5e-3),
    ],
    ids=lambda method: method.method,
)
def test_a_umm_is_edited_and_as_it_was(method: EasyEdit, janus: Any, tinyworld: Any) -> None:
    facts, texts = tinyworld
    root = janus.backbone().root
    before, examples = weights(root), [Example(one.edit.understand, one.target_new) for one in facts]
    delta = fit(method, janus, facts, texts=texts)
    assert all(torch.equal(tensor, before[name]) for name, tensor in root.state_dict().items())
    with torch.no_grad():
        plain = janus.loss(examples, Direction.UNDERSTANDING)
        with delta.applied(root):
            edited = janus.loss(examples, Direction.UNDERSTANDING)
    assert bool((edited < plain).all()) and float(edited.median()) < 0.1


def test_a_batch_of_unequal_prompts_is_refused_where_sides_disagree() -> None:
    umm = tiny_umm(steps=1)
    asked = dataclasses.replace(fact(5).edit, understand=Prompt(f"the colour of {fact(5).subject}"))
    facts = [fact(0), dataclasses.replace(fact(5), edit=asked)]
    with pytest.raises(UserError, match=r"batch_size.*set it to 1"):
        fit(FT.model_copy(update={"hparams": {"batch_size": 2}}), umm, facts)
    assert not fit(FT, umm, facts).is_zero


# --- hyperparameters ---------------------------------------------------------------------------


def filled(method: EasyEdit, umm: UMM) -> Any:
    with opened(find_source(method.root), lambda text: None) as engine:
        return method._hyperparameters(engine, umm.backbone())


@pytest.mark.parametrize(("name", "text"), [("ROME", ROME_FILE), ("MEMIT", MEMIT_FILE)])
def test_a_file_of_easyedits_for_another_model(name: Any, text: str, tmp_path: Path, janus: Any) -> None:
    file = tmp_path / "llama-7b.yaml"
    file.write_text(text)
    method = EasyEdit(method=name, hparams=str(file))
    found = filled(method, janus)
    prefix = "model.language_model"
    assert found.rewrite_module_tmp == prefix + ".layers.{}.mlp.down_proj"
    assert found.layer_module_tmp == prefix + ".layers.{}"
    assert found.mlp_module_tmp == prefix + ".layers.{}.mlp.down_proj"
    assert (found.ln_f_module, found.lm_head_module) == (prefix + ".norm", "lm_head")
    assert (found.v_lr, found.v_weight_decay, found.v_num_grad_steps) == (0.5, 1e-3, 6)
    assert (found.device, found.v_loss_layer) == ("cpu", janus.backbone().sites.layers - 1)
    assert found.mom2_dataset == "gapeval_lab" and found.stats_dir == ""
    # On a plain Llama the templates are there and stay.
    plain = filled(method, tiny_umm())
    assert plain.mlp_module_tmp == "model.layers.{}.mlp"
    assert plain.attn_module_tmp == "model.layers.{}.self_attn"


def test_a_file_and_its_values_by_hand_give_the_same(tmp_path: Path) -> None:
    file = tmp_path / "llama-7b.yaml"
    file.write_text(ROME_FILE)
    umm = tiny_umm(steps=STEPS)
    by_file = fit(EasyEdit(method="ROME", hparams=str(file), contexts=2), umm, [fact(0)])
    by_hand = fit(ROME.model_copy(update={"mom2_adjustment": False}), umm, [fact(0)])
    assert by_file.digest == by_hand.digest


def test_the_content_of_a_file_is_part_of_the_recipe(tmp_path: Path) -> None:
    recipes = Path(__file__).parent.parent / "recipes"
    file, text = tmp_path / "llama-7b.yaml", recipes / "easyedit_rome_world_knowledge.yaml"
    file.write_text(ROME_FILE)
    override = f"intervention.hparams={file}"
    one = resolve(text.read_text(), source="test", overrides=[override])
    assert one.resolved["intervention"]["hparams"]["v_lr"] == 0.5
    file.write_text(ROME_FILE.replace("5e-1", "4e-1"))
    other = resolve(text.read_text(), source="test", overrides=[override])
    assert one.hash != other.hash
    json.dumps(one.resolved)


def test_settings_go_before_files_and_files_before_defaults() -> None:
    umm = tiny_umm()
    found = filled(EasyEdit(method="ROME", layer=1, v_lr=0.3, hparams={"v_lr": 0.1, "kl_factor": 0}), umm)
    assert (found.layers, found.v_lr, found.kl_factor, found.clamp_norm_factor) == ([1], 0.3, 0, 4)
    assert filled(EasyEdit(method="FT", layer=0), umm).norm_constraint is False
    bound = filled(EasyEdit(method="FT", layer=0, norm_constraint=1e-3), umm)
    assert type(bound.norm_constraint) is float  # another type would not count
    assert bound.rewrite_module_tmp == "model.layers.{}.mlp.down_proj.weight"


def test_another_site(tmp_path: Path) -> None:
    umm = tiny_umm(steps=STEPS)
    method = EasyEdit(method="ROME", layer=1, site="attn_out", v_num_grad_steps=4, contexts=0)
    assert filled(method, umm).mlp_module_tmp == "model.layers.{}.self_attn.o_proj"
    assert list(fit(method, umm, [fact(0)]).terms) == ["model.layers.1.self_attn.o_proj.weight"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 3}, "layer: 3 is out of range"),
        ({}, "layers: .* set layer or layers"),
        ({"hparams": {"layers": "all"}}, "layers: .*'all'"),
        ({"layer": 0, "site": "mlp_dwn"}, "site: 'mlp_dwn' is unknown"),
        ({"layer": 0, "site": "block"}, "not a linear layer"),
        ({"layer": 0, "hparams": {"v_lrr": 1}}, r"hparams\.v_lrr: .*did you mean 'v_lr'"),
        ({"layer": 0, "lr": 0.1}, "^lr: ROME .* no such hyperparameter"),
        ({"layer": 0, "hparams": {"alg_name": "MEMIT"}}, "alg_name.*MEMIT"),
        ({"layer": 0, "hparams": {"fact_token": "subject_first"}}, "fact_token.*subject_last"),
        ({"layer": 0, "hparams": {"mom2_dtype": "float16"}}, "mom2_dtype"),
        ({"layer": 0, "hparams": {"rewrite_module_tmp": "h.{}.mlp.c_proj"}}, "rewrite_module_tmp.*set site"),
        ({"layer": 0, "hparams": {"rewrite_module_tmp": "{}.{}"}}, "rewrite_module_tmp.*set site"),
        ({"layer": 0, "root": "/nowhere"}, "root: '/nowhere' is no checkout"),
        ({"method": "AlphaEdit", "layer": 0}, r"has no AlphaEdit \(.*ROME, MEMIT, FT\)"),
    ],
)
def test_mistakes_are_named_before_anything_runs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EasyEdit(**{"method": "ROME", **settings}).check(tiny_umm())
    EasyEdit(method="ROME", layer=0).check(tiny_umm())


def test_a_table_without_head_names_it() -> None:
    umm = tiny_umm()
    templates = {name: path for name, path in umm.sites.templates.items() if name != "head"}
    umm.sites = dataclasses.replace(umm.sites, templates=templates)
    EasyEdit(method="ROME", layer=0).check(umm)
    with pytest.raises(UserError, match="lm_head_module: MEMIT needs"):
        EasyEdit(method="MEMIT", layer=0).check(umm)
    EasyEdit(method="MEMIT", layer=0, hparams={"lm_head_module": "lm_head"}).check(umm)


def test_half_precision_is_refused() -> None:
    umm = tiny_umm()
    umm.model.to(torch.bfloat16)
    with pytest.raises(UserError, match=r"model\.dtype.*bfloat16.*float32"):
        EasyEdit(method="ROME", layer=0).check(umm)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "GRACE"},
        {"method": "ROME", "layer": 0, "layers": [0]},
        {"method": "ROME", "hparams": "nowhere.yaml"},
        {"method": "ROME", "hparams": "README.md"},
        {"method": "ROME", "v_lr": 0.0},
        {"method": "ROME", "layers": []},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(ValidationError):
        EasyEdit(**wrong)


# --- facts that do not fit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": "aunt mary"}, "fact-0-colour.*aunt mary"),
        ({"target_new": " "}, "fact-0-colour.*target_new"),
    ],
)
@pytest.mark.parametrize("method", [ROME, FT], ids=lambda method: method.method)
def test_facts_that_do_not_fit_are_named(method: EasyEdit, change: dict[str, str], message: str) -> None:
    umm = tiny_umm(steps=1)
    before = weights(umm.model)
    with pytest.raises(UserError, match=message):
        fit(method, umm, [dataclasses.replace(fact(0), **change)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in umm.model.state_dict().items())


def test_no_facts_and_braces() -> None:
    umm = tiny_umm(steps=1)
    with pytest.raises(UserError, match="facts: none"):
        fit(ROME, umm, [])
    asked = dataclasses.replace(fact(0).edit, understand=Prompt(f"what {{}} is {fact(0).subject} ?"))
    with pytest.raises(UserError, match="fact-0-colour.*braces"):
        fit(ROME, umm, [dataclasses.replace(fact(0), edit=asked)])


# --- nothing stays -----------------------------------------------------------------------------


def test_printing_goes_to_the_run_and_losses_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    umm, points = tiny_umm(steps=STEPS), []
    training, facts = Training(folder=tmp_path / "stages" / "1"), [fact(0), fact(5)]
    for method in (ROME, MEMIT):
        points.clear()
        fit(method, umm, facts, training=training, log=lambda *point: points.append(point))
        text = read(tmp_path / "stages" / "1")
        assert text.startswith("the package easyeditor 0.0.1.dev0") and f"{method.method} " in text
        for one in facts:
            curve = [(step, value) for name, value, step in points if name == f"loss/{one.id}"]
            assert [step for step, _ in curve] == list(range(len(curve))) and 2 <= len(curve) <= 6
            assert curve[-1][1] < curve[0][1]
        said = [float(line.split()[1]) for line in text.splitlines() if line.startswith("loss ")]
        assert [value for name, value, _ in points if name == "train/loss"] == said
    fit(FT, umm, facts, training=training, log=lambda *point: points.append(point))
    assert "Batch loss" in read(tmp_path / "stages" / "1")
    fit(ROME, umm, facts)  # without a folder
    assert capfd.readouterr() == ("", "")


def test_the_process_is_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Even where its modules set up logging, warn, reseed and change defaults while they are imported."""
    root = checkout(tmp_path)
    main = root / "easyeditor" / "models" / "rome" / "rome_main.py"
    careless = (
        "import logging, random, sys, warnings\nimport numpy, torch\n"
        "logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, force=True)\n"
        "logging.getLogger(__name__).error('said by a logger')\n"
        "warnings.warn('said by a warning')\nwarnings.simplefilter('ignore')\n"
        "torch.set_default_dtype(torch.float32)\nrandom.seed(1); numpy.random.seed(1); torch.manual_seed(1)\n"
        "logging.disable(logging.ERROR)\n"
    )
    main.write_text(careless + main.read_text())
    umm = tiny_umm(steps=1)

    def borrowed() -> set[str]:
        """Modules under the names that EasyEdit takes; another test may have imported such a library."""
        return {name for name in sys.modules if name.partition(".")[0] in ("easyeditor", "hydra", "datasets")}

    before, top = borrowed(), logging.getLogger()
    handlers, level, filters = list(top.handlers), top.level, list(warnings.filters)
    torch.set_default_dtype(torch.float64)
    try:
        state = torch.get_rng_state()
        fit(ROME.model_copy(update={"root": str(root)}), umm, [fact(0)], training=Training(folder=tmp_path))
        assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert (top.handlers, top.level, warnings.filters) == (handlers, level, filters)
    assert logging.root.manager.disable == logging.NOTSET
    engine = logging.getLogger("easyeditor")
    assert engine.propagate and not engine.handlers
    assert "said by a logger" in read(tmp_path) and "said by a warning" in read(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert borrowed() == before


def test_runs_do_not_leak_into_each_other() -> None:
    """Contexts, statistics and inverses of one model and one set of facts are not the next one's."""

    def alone() -> str:
        return fit(ROME, tiny_umm(steps=STEPS), [fact(5)], seed=1).digest

    first = alone()
    fit(ROME, tiny_umm("gpt2", steps=STEPS), [fact(0)], seed=2)
    fit(ROME.model_copy(update={"ridge": 0.5}), tiny_umm(steps=STEPS), [fact(0)], seed=3)
    fit(MEMIT, tiny_umm(steps=STEPS), [fact(0)], seed=3)
    assert alone() == first


def test_a_failure_inside_is_told_and_leaves_no_trace(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    main = root / "easyeditor" / "models" / "rome" / "rome_main.py"
    anchor = "    # Restore state of original model\n"
    text = main.read_text()
    assert text.count(anchor) == 1
    main.write_text(text.replace(anchor, f"    raise AssertionError('halfway')\n{anchor}"))
    umm = tiny_umm(steps=1)
    before = weights(umm.model)
    with pytest.raises(UserError, match=r"EasyEdit failed \(AssertionError: halfway\).*engine\.txt"):
        fit(ROME.model_copy(update={"root": str(root)}), umm, [fact(0)], training=Training(folder=tmp_path))
    assert "Traceback" in read(tmp_path) and "halfway" in read(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in umm.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in umm.model.parameters())


def test_a_loss_that_is_no_number_names_the_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    umm = tiny_umm(steps=1)
    with torch.no_grad():
        umm.model.get_parameter("model.layers.2.mlp.up_proj.weight").fill_(torch.inf)
    # The look at padding would be the first to stumble over such a model.
    monkeypatch.setattr(easyedit, "vocabulary_of", lambda backbone, questions: 40)
    with pytest.raises(UserError, match="the loss of fact 'fact-0-colour' became nan"):
        fit(ROME.model_copy(update={"mom2_adjustment": False}), umm, [fact(0)])


def test_gradients_of_others_stay() -> None:
    umm = tiny_umm(steps=1)
    parameter = umm.model.get_parameter("model.layers.1.mlp.down_proj.weight")
    mine = torch.ones_like(parameter)
    parameter.grad = mine
    fit(FT, umm, [fact(0)])
    assert parameter.grad is mine and bool((mine == 1).all())
