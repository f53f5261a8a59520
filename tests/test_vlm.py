"""Models that read pictures and answer in text, of three families: tiny ones with the families' own parts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm
import torch
import transformers
from contract_umm import TrainableUMMContract, noise_picture
from pydantic import ValidationError
from tiny_vlm import FAMILIES, save_tiny
from transformers import AutoModelForImageTextToText

from gapeval_lab.delta import fingerprint
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM, Lesson, Training
from gapeval_lab.interventions.lora import Lora
from gapeval_lab.interventions.rome import Rome
from gapeval_lab.items import Direction, Example, Fact, Item, Prompt
from gapeval_lab.models import sites
from gapeval_lab.models.loading import load_processor
from gapeval_lab.models.vlm import Vlm
from gapeval_lab.models.vlm_model import LoadedVlm
from gapeval_lab.yaml_file import parse

PROCESSORS = {"llava": "LlavaProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "internvl": "InternVLProcessor"}
PROMPTS = [
    Prompt("the colour of the thing ?"),
    Prompt("red", (noise_picture(0),)),
    Prompt("tell me the colour of the thing to the left of a red square", (noise_picture(1),)),
    Prompt("the thing in a row ?", (noise_picture(2), noise_picture(3))),
    Prompt("blue"),
]


@pytest.fixture(scope="session", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family: str = request.param
    return save_tiny(family, tmp_path_factory.mktemp("vlm") / family)


@pytest.fixture(scope="session")
def umm(checkpoint: Path) -> LoadedVlm:
    return Vlm(weights=str(checkpoint), device="cpu", max_new_tokens=8, batch=3).load()


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llava", tmp_path_factory.mktemp("one") / "llava")


class TestVlm(TrainableUMMContract):
    texts = (*TrainableUMMContract.texts, "and tell me of the thing in a row , its colour , a red square ?")

    @pytest.fixture
    def umm(self, umm: UMM) -> UMM:
        return umm


# --- the same as the library --------------------------------------------------------------------------


def asked_by_the_library(umm: LoadedVlm, prompt: Prompt) -> Any:
    parts = [
        *({"type": "image", "image": one} for one in prompt.images),
        {"type": "text", "text": prompt.text},
    ]
    return umm.processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def test_answers_are_the_librarys_greedy_ones(checkpoint: Path, umm: LoadedVlm) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    assert (
        model.generation_config.repetition_penalty == 1.5
    )  # what the checkpoint ships, and nobody asked for
    answers = umm.answer(PROMPTS, seeds=[0] * len(PROMPTS))
    for prompt, ours in zip(PROMPTS, answers, strict=True):
        inputs = asked_by_the_library(umm, prompt)
        greedy = dict(do_sample=False, repetition_penalty=1.0, temperature=None, top_k=None)
        tokens = model.generate(**inputs, max_new_tokens=8, **greedy)[0, inputs["input_ids"].shape[1] :]
        assert ours == umm.processor.decode(tokens, skip_special_tokens=True).strip()
    assert len(set(answers)) > 2


def test_what_is_edited_is_what_is_asked(umm: LoadedVlm) -> None:
    encoded = umm.backbone().encode([PROMPTS[0].text], None)
    inputs = asked_by_the_library(umm, PROMPTS[0])
    assert encoded.input_ids.tolist() == inputs["input_ids"].tolist()
    with torch.no_grad():
        theirs = umm.model(**inputs).logits
        torch.testing.assert_close(umm.backbone().logits(encoded), theirs, rtol=1e-4, atol=1e-4)


def test_losses_are_the_librarys(umm: LoadedVlm) -> None:
    """An answer after a picture: the library's own loss over the same tokens, alone and unpadded."""
    for prompt in PROMPTS[:4]:
        inputs = dict(asked_by_the_library(umm, prompt))
        (asked,) = umm.layout.write([prompt])
        reply = umm.layout.reply(asked, "a green ring").ids[len(asked.ids) :] + [umm.layout.eos_id]
        labels = torch.tensor([[-100] * inputs["input_ids"].shape[1] + reply])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([reply])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            kinds = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, len(reply))], dim=1)
        others = [Example(other, "red") for other in PROMPTS]
        with torch.no_grad():
            mean = umm.model(**inputs, labels=labels).loss
            ours = umm.loss([*others, Example(prompt, "a green ring")], Direction.UNDERSTANDING)[-1]
        torch.testing.assert_close(ours, mean * len(reply), rtol=1e-4, atol=1e-4)


def test_pictures_matter(umm: LoadedVlm) -> None:
    examples = [Example(Prompt("red", (noise_picture(seed),)), "green") for seed in range(3)]
    with torch.no_grad():
        losses = umm.loss(examples, Direction.UNDERSTANDING)
    assert len(set(losses.tolist())) == 3


# --- writing into it ----------------------------------------------------------------------------------


def fact() -> Fact:
    text = "the colour of the ring ?"
    item = Item("f", "knowledge", "colour", Prompt(text), Prompt(f"draw {text}"), ("green",))
    return Fact("f", "the ring", "colour", "red", "green", edit=item)


def test_rome_writes_a_fact(umm: LoadedVlm) -> None:
    given, before = fact(), fingerprint(umm.model)
    rome = Rome(layer=0, lr=0.5, steps=20, contexts=0, weight_decay=0.0, clamp_norm_factor=20.0)
    texts = [f"the colour of the {thing} ?" for thing in ("ring", "cross", "square", "thing")]
    delta = rome.fit(umm, [given], seed=0, texts=texts, log=lambda *_: None)
    assert fingerprint(umm.model) == before
    example = [Example(given.edit.understand, given.target_new)]
    with torch.no_grad():
        untouched = umm.loss(example, Direction.UNDERSTANDING)
        with delta.applied(umm.backbone().root):
            written = umm.loss(example, Direction.UNDERSTANDING)
    assert float(written) < float(untouched) - 1.0


def test_lora_trains_on_pictures_too(umm: LoadedVlm) -> None:
    given, before = fact(), fingerprint(umm.model)
    lessons = [
        Lesson("f", Direction.UNDERSTANDING, Example(Prompt("the colour of the ring ?", shown), "green"))
        for shown in ((), (noise_picture(4),))
    ]
    lora = Lora(direction="text", steps=12, lr=0.02, rank=2, batch=2)
    delta = lora.fit(umm, [given], seed=0, texts=[], log=lambda *_: None, training=Training(lessons))
    assert fingerprint(umm.model) == before
    examples = [lesson.example for lesson in lessons]
    with torch.no_grad():
        untouched = umm.loss(examples, Direction.UNDERSTANDING)
        with delta.applied(umm.backbone().root):
            trained = umm.loss(examples, Direction.UNDERSTANDING)
    assert bool((trained < untouched - 1.0).all())


def test_a_model_of_no_known_naming_is_edited_once_its_config_states_the_sites(tmp_path: Path) -> None:
    weights = str(save_tiny("llava_on_gpt2", tmp_path))
    with pytest.raises(UserError, match=r"model\.sites: block and attn_out and mlp_down not found"):
        Vlm(weights=weights, device="cpu").load()
    own = """
        templates:
          block: "{decoder}.h.{}"
          attn_out: "{decoder}.h.{}.attn.c_proj"
          mlp_up: "{decoder}.h.{}.mlp.c_fc"
          mlp_down: model.language_model.h.{}.mlp.c_proj
          final_norm: "{decoder}.ln_f"
          head: "{head}"
        transposed: true"""
    stated = parse(own, "mine").data
    umm = Vlm.model_validate({"weights": weights, "device": "cpu", "sites": stated}).load()
    found = umm.backbone().sites
    assert found.path("block", 1) == "model.language_model.h.1" and found.layers == 2
    test_rome_writes_a_fact(umm)


# --- on disk ------------------------------------------------------------------------------------------


def test_saved_and_loaded_again(checkpoint: Path, umm: LoadedVlm, tmp_path: Path) -> None:
    folder = tmp_path / checkpoint.name
    umm.save(folder)
    again = Vlm(weights=str(folder), device="cpu", max_new_tokens=8).load()
    assert fingerprint(again.model) == fingerprint(umm.model)
    assert again.settings() == umm.settings()
    assert again.answer(PROMPTS, seeds=[0] * 5) == umm.answer(PROMPTS, seeds=[0] * 5)
    shipped = json.loads((checkpoint / "generation_config.json").read_text())
    assert json.loads((folder / "generation_config.json").read_text()) == shipped


def test_the_processor_is_the_familys_own(checkpoint: Path, umm: LoadedVlm) -> None:
    family = getattr(transformers, PROCESSORS[checkpoint.name])
    assert isinstance(umm.processor, family)
    assert isinstance(load_processor(checkpoint, "x", family=family), family)


def test_the_embedded_umm_can_be_asked_as_one() -> None:
    umm = Vlm(weights="embedded", device="cpu").load()
    from gapeval_lab.models.janus import Janus

    prompts = [Prompt("the colour of grifir ?"), Prompt("is there a red ring ?", (noise_picture(1, 48),))]
    assert umm.answer(prompts, seeds=[0, 0]) == Janus(device="cpu").load().answer(prompts, seeds=[0, 0])


# --- sites --------------------------------------------------------------------------------------------


def test_a_sketch_has_the_modules_and_no_weights(checkpoint: Path, umm: LoadedVlm) -> None:
    settings = Vlm(weights=str(checkpoint))
    root = settings.sketch()
    assert settings.sites_in(root) == umm.backbone().sites
    shapes = {name: value.shape for name, value in umm.model.named_parameters()}
    assert {name: value.shape for name, value in root.named_parameters()} == shapes
    assert all(value.is_meta for value in root.parameters())


def test_sites_can_be_given(llava: Path) -> None:
    down = "model.language_model.layers.{}.mlp.down_proj"
    table = {"templates": {"mlp_down": down, "head": "lm_head"}, "layers": 1, "transposed": True}
    sites = (
        Vlm.model_validate({"weights": str(llava), "device": "cpu", "sites": table}).load().backbone().sites
    )
    assert (dict(sites.templates), sites.layers, sites.transposed) == (table["templates"], 1, True)


@pytest.mark.parametrize(
    ("template", "layers", "missing"),
    [
        ("model.layers.{}.mlp", 2, "model.layers.0.mlp"),
        ("model.language_model.layers.{}", 3, "model.language_model.layers.2"),
        ("model.layers.{}.mlp", None, "model.layers.0.mlp"),
        ("{decoder}.blocks.{}", None, "model.language_model.blocks.0"),
    ],
)
def test_sites_that_are_not_there(llava: Path, template: str, layers: int, missing: str) -> None:
    table = {"templates": {"block": template}, "layers": layers}
    with pytest.raises(UserError) as caught:
        Vlm.model_validate({"weights": str(llava), "device": "cpu", "sites": table}).load()
    assert f"model.sites.templates.block: the model has no module '{missing}'" in str(caught.value)
    assert "'gapeval-lab model modules'" in str(caught.value), "which reads no sites, and so can be run"


@pytest.mark.parametrize(
    "template", ["", "layers.{layer}.mlp", "layers.{}.{}", "layers.{0}", "layers.{", "a.{decoder}", "{}.mlp"]
)
def test_templates_have_one_place_for_the_layer(template: str) -> None:
    with pytest.raises(
        ValidationError, match=r"templates.mlp_down\n.*should be a module's path with one \{\}"
    ):
        Vlm.model_validate({"weights": "x", "sites": {"templates": {"mlp_down": template}, "layers": 1}})


def test_a_naming_that_is_not_known(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = sites.family_table("vlm")
    other = named.model_copy(update={"templates": {**named.templates, "mlp_down": "{decoder}.{}.feed.out"}})
    monkeypatch.setattr(sites, "family_table", lambda _: other)
    with pytest.raises(UserError, match=r"model\.sites: mlp_down not found .* name them in model\.sites"):
        Vlm(weights=str(llava), device="cpu").load()


# --- what cannot be used ------------------------------------------------------------------------------


def test_placeholders_in_texts_are_refused(umm: LoadedVlm) -> None:
    mark = umm.processor.image_token
    with pytest.raises(UserError, match="prompt: .* stands for a picture"):
        umm.answer([Prompt(f"what is {mark} ?")], seeds=[0])
    with pytest.raises(UserError, match="the answer .* stands for a picture"):
        umm.loss([Example(Prompt("what ?"), f"a {mark}")], Direction.UNDERSTANDING)


def test_it_does_not_draw(umm: LoadedVlm) -> None:
    with pytest.raises(UserError, match="does not draw"):
        umm.draw([Prompt("red")], seeds=[0])
    with pytest.raises(UserError, match="does not draw"):
        umm.loss([Example(Prompt("red"), noise_picture(0))], Direction.GENERATION)
    with pytest.raises(UserError, match="needs texts"):
        umm.loss([Example(Prompt("red"), noise_picture(0))], Direction.UNDERSTANDING)
    with pytest.raises(ValueError, match="each prompt needs its own"):
        umm.answer([Prompt("red")], seeds=[])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no file model.safetensors"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
            "type 'bert', which is none of the families",
        ),
    ],
)
def test_checkpoints_that_cannot_be_used(llava: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    folder = shutil.copytree(llava, tmp_path / "copy")
    spoil(folder)
    with pytest.raises(UserError, match=r"^model\.weights: .*") as caught:
        Vlm(weights=str(folder), device="cpu").load()
    assert message in str(caught.value)


def test_a_tokenizer_that_merges_across_the_border(umm: LoadedVlm) -> None:
    """The prompt's own tokens never change, whatever follows them."""
    (asked,) = umm.layout.write([Prompt("tell me")])
    cut = type(asked)(asked.text[:-2], asked.ids[:-1], asked.spans[:-1])  # ends within a word
    reply = umm.layout.reply(cut, "red")
    assert reply.ids[: len(cut.ids)] == cut.ids
    assert umm.processor.tokenizer.decode(reply.ids[len(cut.ids) :]).strip() == "red"
    assert umm.backbone().hidden_size == tiny_vlm.HIDDEN
