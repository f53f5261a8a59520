import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from contract_umm import TrainableUMMContract, noise_picture
from contracts import (
    Case,
    Snapshot,
    gives_a_delta_that_fits,
    leaves_the_model_as_it_was,
    makes_the_new_answers_likelier,
)
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny_lm import ANSWERS, TEXTS, fact

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM, Lesson, Savable, Training
from gapeval_lab.interventions.lora import Lora
from gapeval_lab.interventions.memit import Memit
from gapeval_lab.interventions.rome import Rome
from gapeval_lab.items import Direction, Example, Prompt
from gapeval_lab.models.decode import Stepper, draw_codes
from gapeval_lab.models.emu3 import Emu3
from gapeval_lab.models.emu3_layout import SYSTEM
from gapeval_lab.models.emu3_model import LoadedEmu3
from gapeval_lab.models.sequences import Asked
from gapeval_lab.models.tiny_emu3 import Emu3Shape, build_emu3

WORDS = [
    *("a", "the", "thing", "colour", "of", "to", "left", "and", "in", "row", "tell", "me", "cross"),
    *sorted({word for text in TEXTS for word in text.split()} | {w for v in ANSWERS.values() for w in v}),
    *("square", ".", ",", "draw", ":"),
]
# The picture tokenizer as published ones are, frames and batch norms included.
SHAPE = Emu3Shape(layers=2, hidden=48, mlp=96, codes=40, image_size=24, vq_blocks=1, frames=2)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-emu3"
    torch.manual_seed(3)
    model, processor = build_emu3(WORDS, SHAPE)
    with torch.no_grad():
        for parameter in model.model.text_model.layers.parameters():
            if parameter.ndim == 2:  # wide enough for prompts and pictures to matter
                parameter.mul_(8.0)
        # Random latents lie close together: codes near them, so that pictures differ in theirs.
        model.model.vqmodel.quantize.embedding.weight.mul_(0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def load(checkpoint: Path, **settings: Any) -> LoadedEmu3:
    return Emu3(weights=str(checkpoint), device="cpu", **{"max_new_tokens": 8, **settings}).load()


@pytest.fixture(scope="session")
def greedy(checkpoint: Path) -> LoadedEmu3:
    return load(checkpoint)


@pytest.fixture(scope="session")
def sampling(checkpoint: Path) -> LoadedEmu3:
    drawing = {"temperature": 1.0, "top_k": 20, "guidance": 2.0, "negative_prompt": "a blue thing"}
    return load(checkpoint, answer_temperature=0.7, batch=3, **drawing)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


class TestGreedyEmu3(TrainableUMMContract):
    @pytest.fixture
    def umm(self, greedy: LoadedEmu3) -> UMM:
        return greedy


class TestSamplingEmu3(TrainableUMMContract):
    @pytest.fixture
    def umm(self, sampling: LoadedEmu3) -> UMM:
        return sampling


def drawn(umm: LoadedEmu3, prompts: list[Prompt], seeds: list[int]) -> list[list[int]]:
    return umm.draw_codes(prompts, seeds=seeds).tolist()


def conversation(prompt: Prompt) -> list[dict[str, Any]]:
    parts = [*({"type": "image"} for _ in prompt.images), {"type": "text", "text": prompt.text}]
    return [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": parts},
    ]


def library_inputs(umm: LoadedEmu3, prompt: Prompt) -> Any:
    rendered = umm.processor.apply_chat_template(conversation(prompt), add_generation_prompt=True)
    return umm.processor(text=[rendered], images=list(prompt.images) or None, return_tensors="pt")


# --- the same tokens as the library -------------------------------------------------------------------


def test_questions_are_the_processors_own(greedy: LoadedEmu3) -> None:
    # Not square, and another number of pixels than the model sees.
    pictures = tuple(noise_picture(seed, size=40).crop((0, 0, 40, 25)) for seed in (1, 2))
    for prompt in (Prompt("the thing ?"), Prompt("the thing to the left ?", pictures)):
        theirs = library_inputs(greedy, prompt)
        ids = theirs["input_ids"][0]
        if prompt.images:
            tokens = greedy.model.model.get_image_tokens(theirs["pixel_values"], theirs["image_sizes"])
            ids = ids.masked_scatter(ids == greedy.layout.image_id, tokens.to(ids.dtype))
        (ours,) = greedy.layout.ask([prompt], Direction.UNDERSTANDING)
        assert ours.ids == ids.tolist()
        assert greedy.layout.image_id not in ours.ids


def test_drawing_prompts_are_the_processors_own(checkpoint: Path) -> None:
    umm = load(checkpoint, size=(16, 32))
    (ours,) = umm.layout.ask([Prompt("a red square")], Direction.GENERATION)
    theirs = umm.processor(
        text="a red square", return_for_image_generation=True, ratio="2:1", image_area=16 * 32
    )
    assert theirs["image_sizes"] == [[2, 4]]
    assert ours.ids == theirs["input_ids"][0]
    assert ours.text == "<s>a red square<|image start|>2*4<|image token|>"


def test_a_template_in_the_style_of_published_ones_is_followed(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '' if m.role == 'system' else m.role.upper() + ': ' }}"
        "{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text + ' ' }}{% endfor %}"
        "{% endfor %}{{ 'ASSISTANT:' if add_generation_prompt }}"
    )
    umm = load(folder)
    prompt = Prompt("the thing ?", (noise_picture(0, size=24),))
    (ours,) = umm.layout.ask([prompt], Direction.UNDERSTANDING)
    assert ours.text.startswith("<s>You are a helpful assistant. USER: <|image start|>3*3<|image token|>")
    assert ours.text.endswith("<|extra_201|><|image end|>the thing ? ASSISTANT:")
    assert len(ours.ids) == library_inputs(umm, prompt)["input_ids"].shape[1]
    assert umm.layout.reply(ours, "red").text.endswith("ASSISTANT: red")
    assert umm.settings()["layout"] != load(checkpoint).settings()["layout"]


def test_answers_are_the_librarys_greedy_ones(greedy: LoadedEmu3) -> None:
    prompts = [
        Prompt("the colour of the thing ?"),
        Prompt("red", (noise_picture(0),)),
        Prompt("tell me the colour of the thing to the left of a red square", (noise_picture(1),)),
    ]
    ours = [tokens for tokens, _ in _answers_and_tokens(greedy, prompts)]
    theirs = [_library_answer(greedy, prompt) for prompt in prompts]
    assert ours == theirs
    assert len({str(tokens) for tokens in ours}) == 3


def _answers_and_tokens(umm: LoadedEmu3, prompts: list[Prompt]) -> list[tuple[list[int], str]]:
    seen: list[list[int]] = []
    decode = umm.layout.decode
    umm.layout.decode = lambda ids: seen.append(list(ids)) or decode(ids)  # type: ignore[assignment]
    try:
        answers = [umm.answer([prompt], seeds=[0])[0] for prompt in prompts]
    finally:
        del umm.layout.decode
    assert answers == umm.answer(prompts, seeds=[0] * len(prompts))
    return list(zip(seen, answers, strict=True))


def _library_answer(umm: LoadedEmu3, prompt: Prompt) -> list[int]:
    inputs = library_inputs(umm, prompt)
    tokens = umm.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
    answer = tokens[inputs["input_ids"].shape[1] :].tolist()
    return answer[: answer.index(umm.layout.eos_id)] if umm.layout.eos_id in answer else answer


def _library_drawing(umm: LoadedEmu3, text: str, *, guidance: float, negative: str) -> torch.Tensor:
    """The library's greedy drawing: token ids (h * (w + 1) + 3,), allowed token by token."""
    rows, columns = umm.layout.height, umm.layout.width
    settings = {
        "return_for_image_generation": True,
        "ratio": f"{columns}:{rows}",
        "image_area": 64 * rows * columns,
        "return_tensors": "pt",
    }
    inputs, untold = (umm.processor(text=one, **settings) for one in (text, negative))
    assert inputs.pop("image_sizes") == [[rows, columns]]
    tokenizer, mapping = umm.processor.tokenizer, umm.model.vocabulary_mapping
    past = rows * (columns + 1)
    ending = [tokenizer.eof_token_id, tokenizer.eoi_token_id, tokenizer.eos_token_id]
    start = inputs["input_ids"].shape[1]

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        done = len(ids) - start
        if done >= past:
            return [ending[done - past]]
        return [mapping.eol_token_id] if done % (columns + 1) == columns else mapping.image_tokens

    tokens = umm.model.generate(
        **inputs,
        max_new_tokens=past + 3,
        do_sample=False,
        guidance_scale=guidance,
        negative_prompt_ids=untold["input_ids"],
        negative_prompt_attention_mask=untold["attention_mask"],
        prefix_allowed_tokens_fn=allowed,
    )
    return tokens[0, start:]


DRAWN = ("a red square", "the thing to the left of the green ring and a blue cross", "a")


@pytest.fixture(scope="module")
def guided(checkpoint: Path) -> LoadedEmu3:
    return load(checkpoint, guidance=3.0, negative_prompt="blue , green", size=(24, 32))


def _same_drawings(umm: LoadedEmu3, *, guidance: float, negative: str) -> list[bool]:
    codes = umm.draw_codes([Prompt(text) for text in DRAWN], seeds=[0] * 3)
    ours = umm.layout.rows(codes.view(-1, 3, 4))
    theirs = torch.stack(
        [_library_drawing(umm, text, guidance=guidance, negative=negative) for text in DRAWN]
    )
    same: list[bool] = (ours == theirs[:, :-3]).all(1).tolist()
    if all(same):
        values = umm.model.decode_image_tokens(image_tokens=theirs, height=3, width=4)
        decoded = umm.processor.postprocess(list(values.float()), return_tensors="PIL.Image.Image")
        for mine, picture in zip(umm.layout.pictures(codes), decoded["pixel_values"], strict=True):
            assert mine.size == picture.size == (32, 24)
            # Theirs truncates.
            off = (torch.tensor(list(mine.tobytes())) - torch.tensor(list(picture.tobytes()))).abs()
            assert int(off.max()) <= 1
    return same


def test_drawings_are_the_librarys_with_guidance(guided: LoadedEmu3) -> None:
    assert all(_same_drawings(guided, guidance=3.0, negative="blue , green"))
    first, second, third = drawn(guided, [Prompt(text) for text in DRAWN], [0] * 3)
    assert first != second != third


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, "blue , green"), (3.0, "the row")])
def test_the_comparison_with_the_library_can_fail(guided: LoadedEmu3, guidance: float, negative: str) -> None:
    assert not all(_same_drawings(guided, guidance=guidance, negative=negative))


# --- decoding -----------------------------------------------------------------------------------------


def test_seeds_decide_samples_and_nothing_else_does(sampling: LoadedEmu3) -> None:
    prompt, other = Prompt("a red square"), Prompt("the ring", (noise_picture(0),))
    one, two, again = drawn(sampling, [prompt, prompt, prompt], [1, 2, 1])
    assert one == again
    assert one != two
    assert drawn(sampling, [other, prompt, other, other], [5, 2, 6, 7])[1] == two


def test_samples_follow_the_distribution_of_the_likeliest() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 1.5])
    codes = draw_codes(
        lambda embeddings: logits.expand(500, -1),  # type: ignore[arg-type]
        torch.zeros(500, 1, 1),
        head=lambda states: states,
        embed=lambda codes, step: codes[:, None],
        seeds=range(500),
        count=20,
        temperature=0.5,
        guidance=1.0,
        top_k=3,
    )
    shares = torch.bincount(codes.flatten(), minlength=5) / codes.numel()
    kept = torch.tensor([1, 2, 4])
    expected = torch.zeros(5).index_copy(0, kept, (logits[kept] / 0.5).softmax(-1))
    # Five standard deviations of a share of 10,000 draws.
    assert bool(((shares - expected).abs() <= 5 * (expected * (1 - expected) / codes.numel()).sqrt()).all())


def test_the_negative_prompt_and_the_size_count(checkpoint: Path, guided: LoadedEmu3) -> None:
    prompt = [Prompt("a red square")]
    other = load(checkpoint, guidance=3.0, negative_prompt="the ring", size=(24, 32))
    assert drawn(other, prompt, [0]) != drawn(guided, prompt, [0])
    (picture,) = guided.draw(prompt, seeds=[0])
    assert picture.size == (32, 24)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree(checkpoint: Path, greedy: LoadedEmu3, attention: str) -> None:
    umm = load(checkpoint, attention=attention)
    assert umm.model.model.text_model.config._attn_implementation == attention
    assert umm.settings().get("attention", "sdpa") == attention
    prompts = [Prompt("a red square", (noise_picture(0),)), Prompt("the")]
    examples = [Example(prompt, noise_picture(3)) for prompt in prompts]
    with torch.no_grad():
        torch.testing.assert_close(
            umm.loss(examples, Direction.GENERATION), greedy.loss(examples, Direction.GENERATION)
        )
    assert umm.answer(prompts, seeds=[0, 1]) == greedy.answer(prompts, seeds=[0, 1])
    assert drawn(umm, prompts, [0, 1]) == drawn(greedy, prompts, [0, 1])


@pytest.mark.parametrize(("attention", "dimensions"), [("flash_attention_2", 2), ("sdpa", 4)])
def test_flash_attention_is_given_a_plain_mask(attention: str, dimensions: int) -> None:
    masks: list[torch.Tensor] = []

    class Trunk:
        dtype = torch.float32
        config = SimpleNamespace(num_hidden_layers=1, _attn_implementation=attention)

        def __call__(self, *, inputs_embeds: Any, attention_mask: Any, **others: Any) -> Any:
            masks.append(attention_mask)
            return SimpleNamespace(last_hidden_state=inputs_embeds)

    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    stepper = Stepper(Trunk(), mask, room=2)
    stepper(torch.zeros(2, 3, 4))
    stepper(torch.zeros(2, 2, 4))
    assert [one.ndim for one in masks] == [dimensions] * 2
    assert [one.shape[-1] for one in masks] == [3, 5]
    if dimensions == 2:
        assert masks[1].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    else:  # the second of two new positions sees the first, and not the other way round
        assert (masks[1][0, 0] == 0).tolist() == [[False, True, True, True, False], [False, *[True] * 4]]


def test_visual_tokens_need_not_stand_in_a_row(greedy: LoadedEmu3, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 5, len(greedy.processor.tokenizer), generator=torch.Generator().manual_seed(0))
    ran = greedy.layout.visual(logits)
    monkeypatch.setattr(greedy.layout, "_columns", greedy.layout._tokens)
    assert torch.equal(greedy.layout.visual(logits), ran)
    monkeypatch.setattr(greedy.layout, "_columns", greedy.layout._tokens.flip(0))
    assert torch.equal(greedy.layout.visual(logits), ran.flip(-1))


# --- pictures -----------------------------------------------------------------------------------------


def test_input_pictures_reach_both_directions(greedy: LoadedEmu3) -> None:
    shown = [Prompt("the thing ?", (noise_picture(seed),)) for seed in range(4)]
    bare = Prompt("the thing ?")
    first, *others = drawn(greedy, [*shown, bare], [0] * 5)
    assert any(other != first for other in others)
    losses = greedy.loss([Example(prompt, "red") for prompt in [*shown, bare]], Direction.UNDERSTANDING)
    assert len({round(loss, 5) for loss in losses.tolist()}) == 5


def test_each_distinct_picture_is_seen_once(greedy: LoadedEmu3, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    quantized = greedy.layout._quantized
    monkeypatch.setattr(
        greedy.layout, "_quantized", lambda pixels: seen.append(len(pixels)) or quantized(pixels)
    )
    prompts = [Prompt(text, (noise_picture(seed % 11),)) for seed, text in enumerate(WORDS[:20])]
    greedy.answer(prompts, seeds=range(20))
    assert seen == [8, 3]


def test_pictures_of_other_sizes_do_not_change_each_other(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    file = folder / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"] |= {"min_pixels": 64, "max_pixels": 64 * 64}
    file.write_text(json.dumps(config))
    umm = load(folder)
    assert (umm.layout.height, umm.layout.width) == (8, 8)  # 720 x 720 is more than is allowed
    sizes = ((16, 16), (32, 16), (16, 40))
    prompts = [Prompt("the", (noise_picture(1, size=40).crop((0, 0, *size)),)) for size in sizes]
    prompts.append(Prompt("the", tuple(image for prompt in prompts for image in prompt.images)))
    *alone, joint = [umm.layout.ask([prompt], Direction.UNDERSTANDING)[0].ids for prompt in prompts]
    assert [one.ids for one in umm.layout.ask(prompts, Direction.UNDERSTANDING)] == [*alone, joint]
    assert [len(ids) for ids in alone] == [len(alone[0]), len(alone[0]) + 4, len(alone[0]) + 9]
    assert len(joint) == sum(map(len, alone)) - 2 * (len(alone[0]) - 2 * 3 - 7)


def test_a_picture_that_is_a_line_is_refused(greedy: LoadedEmu3) -> None:
    with pytest.raises(UserError, match="900 x 1 pixels cannot be shown .*aspect ratio"):
        greedy.answer([Prompt("the", (Image.new("RGB", (900, 1)),))], seeds=[0])


def test_pictures_are_rounded_rgb_of_the_models_size(greedy: LoadedEmu3) -> None:
    codes = torch.randint(0, SHAPE.codes, (11, 9), generator=torch.Generator().manual_seed(0))
    pictures = greedy.layout.pictures(codes)
    with torch.no_grad():
        values = greedy.model.model.vqmodel.decode(codes.view(-1, 3, 3))
    for picture, value in zip(pictures, values, strict=True):
        assert (picture.mode, picture.size) == ("RGB", (24, 24))
        for x, y in ((0, 0), (5, 9), (23, 3)):
            expected = [min(255, max(0, round((float(v) * 0.5 + 0.5) * 255))) for v in value[:, y, x]]
            assert list(picture.getpixel((x, y))) == expected  # type: ignore[arg-type]
    alone = [greedy.layout.pictures(code[None])[0] for code in codes]
    assert [one.tobytes() for one in pictures] == [one.tobytes() for one in alone]
    assert greedy.layout.pictures(codes[:0]) == []


def test_training_mode_does_not_reach_the_picture_tokenizer(checkpoint: Path) -> None:
    umm = load(checkpoint)
    example = Example(Prompt("a", (noise_picture(1),)), noise_picture(2))
    with torch.no_grad():
        expected = umm.loss([example], Direction.GENERATION)
        umm.model.train()
        before = Snapshot.of(umm.model)
        found = umm.loss([example], Direction.GENERATION)
    assert torch.equal(found, expected)
    assert Snapshot.of(umm.model) == before
    # What it is kept from.
    umm.model.model.vqmodel.encode(torch.zeros(1, 3, 24, 24), torch.tensor([[24, 24]]))
    assert Snapshot.of(umm.model) != before


# --- losses -------------------------------------------------------------------------------------------


def test_greedy_codes_are_likeliest_at_each_position(
    guided: LoadedEmu3, greedy: LoadedEmu3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for umm in (greedy, load_unguided(guided)):
        prompts = [Prompt("a red square", (noise_picture(0),)), Prompt("the ring")]
        seen: list[torch.Tensor] = []
        handle = umm.model.lm_head.register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(output.clone())
        )
        try:
            codes = umm.draw_codes(prompts[:1], seeds=[0])
            stepwise = umm.layout.visual(torch.cat(seen))
            monkeypatch.setattr(umm.layout, "codes", lambda images, codes=codes: codes)
            loss = umm.loss([Example(prompts[0], Image.new("RGB", (16, 16)))], Direction.GENERATION)
        finally:
            handle.remove()
        assert stepwise.argmax(-1).tolist() == codes[0].tolist()
        expected = -stepwise.log_softmax(-1).max(-1).values.sum()
        torch.testing.assert_close(loss[0], expected, rtol=1e-4, atol=1e-4)


def load_unguided(umm: LoadedEmu3) -> LoadedEmu3:
    """The same weights, drawing without guidance."""
    return LoadedEmu3(umm.model, umm.processor, Emu3(size=(24, 32)))


def test_greedy_text_is_likeliest_at_each_position(
    greedy: LoadedEmu3, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Prompt("tell me the colour", (noise_picture(0),))
    ((tokens, _),) = _answers_and_tokens(greedy, [prompt])
    # The answer's own tokens: what is decoded and read again may be cut into others.
    monkeypatch.setattr(
        greedy.layout,
        "reply",
        lambda asked, answer: Asked(asked.text, asked.ids + tokens, asked.spans, asked.pictures),
    )
    (asked,) = greedy.layout.ask([prompt], Direction.UNDERSTANDING)
    whole = torch.tensor([[*asked.ids, *tokens, greedy.layout.eos_id]])
    with torch.no_grad():
        logits = greedy.model(input_ids=whole).logits[0, len(asked.ids) - 1 : -1]
        loss = greedy.loss([Example(prompt, "")], Direction.UNDERSTANDING)
    assert logits.argmax(-1).tolist()[: len(tokens)] == tokens
    answer = whole[0, len(asked.ids) :]
    expected = -logits.log_softmax(-1).gather(1, answer[:, None]).sum()
    torch.testing.assert_close(loss[0], expected, rtol=1e-4, atol=1e-4)


def test_the_backbones_drawing_loss_is_the_loss(greedy: LoadedEmu3) -> None:
    texts, pictures = ["a red square", "the"], [noise_picture(1), noise_picture(2)]
    backbone = greedy.backbone()
    assert backbone.encode_drawings is not None and backbone.drawing_loss is not None
    drawing = backbone.encode_drawings(texts, pictures)
    assert drawing.codes.shape == (2, 9)
    examples = [Example(Prompt(text), picture) for text, picture in zip(texts, pictures, strict=True)]
    with torch.no_grad():
        expected = greedy.loss(examples, Direction.GENERATION)
        torch.testing.assert_close(backbone.drawing_loss(drawing), expected)


def test_pictures_are_brought_to_the_size_of_drawings(guided: LoadedEmu3) -> None:
    big = noise_picture(3, size=64)
    fitting = big.resize((32, 24), Image.Resampling.BICUBIC)
    assert guided.layout.codes([big]).tolist() == guided.layout.codes([fitting]).tolist()
    pixels = guided.processor.image_processor([fitting], do_resize=False, return_tensors="pt")
    (theirs,) = guided.model.model.vqmodel.encode(
        pixels["pixel_values"], pixels["image_sizes"], return_dict=True
    ).image_tokens
    assert guided.layout.codes([big]).tolist() == [theirs.flatten().tolist()]


def test_an_answer_of_the_other_kind_is_refused(greedy: LoadedEmu3) -> None:
    with pytest.raises(UserError, match="generation direction needs pictures"):
        greedy.loss([Example(Prompt("a ring"), "red")], Direction.GENERATION)
    with pytest.raises(UserError, match="understanding direction needs texts"):
        greedy.loss([Example(Prompt("a ring"), noise_picture(0))], Direction.UNDERSTANDING)


def test_a_placeholder_in_a_text_is_refused(greedy: LoadedEmu3) -> None:
    for respond in (greedy.answer, greedy.draw):
        with pytest.raises(UserError, match="stands for a picture"):
            respond([Prompt("what is <image> ?")], seeds=[0])
    with pytest.raises(UserError, match="stands for a picture"):
        greedy.loss([Example(Prompt("a"), "<image>")], Direction.UNDERSTANDING)


# --- interventions ------------------------------------------------------------------------------------

FACTS = (fact(0), fact(5))
EDITS = {
    "rome": Rome(layer=0, steps=6, contexts=1),
    "memit": Memit(layers=(0,), steps=6, contexts=0, moment_weight=1.0),
    "lora": Lora(direction="text", steps=6, lr=5e-3, sites=("mlp_down", "attn_out")),
}


@pytest.fixture
def case(
    greedy: LoadedEmu3, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Case:
    """Second moments of the same weights are kept from one check to the next."""
    monkeypatch.setenv("GAPEVAL_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "emu3-cache"))
    return Case(lambda: copy.deepcopy(greedy), FACTS, TEXTS)


@pytest.mark.parametrize(
    "check",
    [leaves_the_model_as_it_was, gives_a_delta_that_fits, makes_the_new_answers_likelier],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize("name", EDITS)
def test_interventions_run(name: str, check: Callable[[Any, Case], None], case: Case) -> None:
    check(EDITS[name], case)


def test_lora_teaches_by_pictures(checkpoint: Path) -> None:
    umm = load(checkpoint)
    before = Snapshot.of(umm.model)
    examples = [Example(one.edit.generate, noise_picture(n)) for n, one in enumerate(FACTS)]
    lessons = [Lesson(one.id, Direction.GENERATION, e) for one, e in zip(FACTS, examples, strict=True)]
    delta = Lora(direction="image", steps=8, lr=5e-3, sites=("mlp_down", "attn_out")).fit(
        umm, FACTS, seed=0, texts=TEXTS, log=lambda *point: None, training=Training(lessons=lessons)
    )
    assert Snapshot.of(umm.model) == before
    with torch.no_grad():
        untaught = umm.loss(examples, Direction.GENERATION)
        with delta.applied(umm.model):
            taught = umm.loss(examples, Direction.GENERATION)
    assert bool((taught < untaught).all())


def test_rome_writes_text_and_pictures_at_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAPEVAL_LAB_CACHE", str(tmp_path))
    umm = load(checkpoint)
    before = Snapshot.of(umm.model)
    told = [Example(one.edit.understand, one.target_new) for one in FACTS]
    shown = [Example(one.edit.generate, noise_picture(n)) for n, one in enumerate(FACTS)]
    lessons = [Lesson(one.id, Direction.GENERATION, e) for one, e in zip(FACTS, shown, strict=True)]
    delta = Rome(layer=0, steps=12, lr=0.3, contexts=0, picture_factor=0.5).fit(
        umm, FACTS, seed=0, texts=TEXTS, log=lambda *point: None, training=Training(lessons=lessons)
    )
    assert Snapshot.of(umm.model) == before
    with torch.no_grad():
        untaught = [umm.loss(told, Direction.UNDERSTANDING), umm.loss(shown, Direction.GENERATION)]
        with delta.applied(umm.model):
            taught = [umm.loss(told, Direction.UNDERSTANDING), umm.loss(shown, Direction.GENERATION)]
    assert bool((taught[0] < untaught[0]).all())
    assert bool((taught[1] < untaught[1]).all())


# --- loading ------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(greedy: LoadedEmu3, tmp_path: Path) -> None:
    assert isinstance(greedy, Savable)
    greedy.save(tmp_path)
    again = load(tmp_path)
    assert Snapshot.of(again.model).tensors == Snapshot.of(greedy.model).tensors
    assert again.settings() == greedy.settings()


def test_answers_are_drawn_where_a_temperature_is_set(greedy: LoadedEmu3, sampling: LoadedEmu3) -> None:
    prompts = [Prompt("the colour of the thing ?")] * 6
    assert len(set(sampling.answer(prompts, seeds=range(6)))) > 1
    assert len(set(greedy.answer(prompts, seeds=range(6)))) == 1
    assert "answer_temperature" not in greedy.settings(), "stored answers of the default stay found"


def test_settings_hold_what_answers_depend_on(checkpoint: Path, greedy: LoadedEmu3) -> None:
    assert load(checkpoint, batch=1).settings() == greedy.settings()
    changes: list[dict[str, Any]] = [
        {"temperature": 0.5},
        {"answer_temperature": 0.5},
        {"temperature": 0.5, "top_k": 3},
        {"guidance": 3.0},
        {"guidance": 3.0, "negative_prompt": "blue"},
        {"max_new_tokens": 9},
        {"dtype": "bfloat16"},
        {"size": (8, 8)},
    ]
    found = [
        LoadedEmu3(greedy.model, greedy.processor, Emu3(**{"max_new_tokens": 8, **change})).settings()
        for change in changes
    ]
    assert len({json.dumps(one) for one in [*found, greedy.settings()]}) == len(changes) + 1


def test_bfloat16_loads_and_answers(checkpoint: Path) -> None:
    umm = load(checkpoint, dtype="bfloat16", max_new_tokens=3, guidance=2.0)
    prompts = [Prompt("a red square", (noise_picture(0),)), Prompt("the")]
    assert umm.model.dtype == torch.bfloat16
    assert len(umm.answer(prompts, seeds=[0, 1])) == len(umm.draw(prompts, seeds=[0, 1])) == 2
    assert umm.loss([Example(prompts[0], noise_picture(2))], Direction.GENERATION).dtype == torch.float32


def _config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def _change_weights(folder: Path, name: str, value: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights[name]
    if value is not None:
        weights[name] = value
    save_file(weights, path, metadata={"format": "pt"})


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no file config.json"),
    "another family": (
        lambda f: (f / "config.json").write_text('{"model_type": "janus"}'),
        "of type 'janus', not 'emu3'",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no file model.safetensors"),
    "no vocabulary map": (
        lambda f: _config(f, lambda c: c.pop("vocabulary_map")),
        "lacks 42 tokens in the vocabulary_map",
    ),
    "a visual token is missing": (
        lambda f: _config(f, lambda c: c["vocabulary_map"].pop("<|visual token 000007|>")),
        "lacks 1 tokens in the vocabulary_map .*visual token 000007",
    ),
    "a weight is missing": (
        lambda f: _change_weights(f, "text_model.model.norm.weight", None),
        "lacks 1 weights .*text_model.norm.weight",
    ),
    "a weight has another shape": (
        lambda f: _change_weights(f, "text_model.model.norm.weight", torch.ones(3)),
        "lacks 1 weights .*text_model.norm.weight",
    ),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "no usable tokenizer"),
    "tokens without names": (
        lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}'),
        "no usable tokenizer",
    ),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
}


@pytest.mark.parametrize("case_name", DAMAGE)
def test_damaged_weights_give_one_message(checkpoint: Path, tmp_path: Path, case_name: str) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    damage, message = DAMAGE[case_name]
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith(f"model.weights: '{folder}' ")
    assert "\n" not in text
    assert ";" in text  # the fix


def test_a_size_that_does_not_fit_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"model.size: \[24, 20\] are no multiples of 8"):
        load(checkpoint, size=(24, 20))


def test_flash_attention_without_a_gpu_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"model.attention: .* needs a CUDA device; use 'sdpa'"):
        load(checkpoint, attention="flash_attention_2", dtype="bfloat16")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"wieghts": "x"}, "wieghts"),
        ({"dtype": "int8"}, "dtype"),
        ({"guidance": 0.5}, "guidance"),
        ({"size": [48]}, "size"),
        ({"size": [0, 48]}, "size"),
        ({"temperature": 1.0, "top_k": 0}, "top_k"),
        ({"top_k": 5}, "top_k: has no effect at temperature 0"),
        ({"negative_prompt": "x"}, "negative_prompt: has no effect at guidance 1"),
        ({"attention": "flash_attention_2"}, "has no float32"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Emu3.model_validate(wrong)


def test_settings_need_no_heavy_import() -> None:
    code = "import sys, gapeval_lab.models.emu3; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_loading_is_quiet(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(checkpoint)
    assert capfd.readouterr() == ("", "")
