import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from contract_umm import TrainableUMMContract, noise_picture
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, JanusForConditionalGeneration

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM
from gapeval_lab.items import Direction, Example, Prompt
from gapeval_lab.models.decode import Stepper, continue_text, pieces
from gapeval_lab.models.janus import Janus
from gapeval_lab.models.janus_decode import draw_codes
from gapeval_lab.models.janus_layout import Layout
from gapeval_lab.models.janus_model import LoadedJanus
from gapeval_lab.models.sequences import Asked
from gapeval_lab.models.tiny import JanusShape, build_janus

WORDS = [
    *("a", "the", "thing", "colour", "of", "to", "left", "and", "in", "row", "tell", "me"),
    *("red", "green", "blue", "square", "ring", "cross", ".", "?", ","),
]
SHAPE = JanusShape(layers=2, hidden=48, mlp=96, codes=40, image_size=16)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    torch.manual_seed(3)
    model, processor = build_janus(WORDS, SHAPE)
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            if parameter.ndim == 2:  # wide enough for prompts and pictures to matter
                parameter.mul_(8.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def greedy(checkpoint: Path) -> LoadedJanus:
    return Janus(weights=str(checkpoint), device="cpu", max_new_tokens=8).load()


@pytest.fixture(scope="session")
def sampling(checkpoint: Path) -> LoadedJanus:
    settings = Janus(
        weights=str(checkpoint),
        device="cpu",
        max_new_tokens=8,
        temperature=1.0,
        answer_temperature=0.7,
        guidance=2.0,
        batch=3,
    )
    return settings.load()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


class TestGreedyJanus(TrainableUMMContract):
    @pytest.fixture
    def umm(self, greedy: LoadedJanus) -> UMM:
        return greedy


class TestSamplingJanus(TrainableUMMContract):
    @pytest.fixture
    def umm(self, sampling: LoadedJanus) -> UMM:
        return sampling


def drawn(umm: LoadedJanus, prompts: list[Prompt], seeds: list[int]) -> list[list[int]]:
    return umm.draw_codes(prompts, seeds=seeds).tolist()


# --- the same tokens as the library -------------------------------------------------------------------


@pytest.mark.parametrize("direction", list(Direction))
def test_prompts_are_the_processors_own(greedy: LoadedJanus, direction: Direction) -> None:
    mode = "text" if direction is Direction.UNDERSTANDING else "image"
    picture = noise_picture(1, size=16)
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the thing to the left ?"}]}
    ]
    rendered = greedy.processor.apply_chat_template(conversation, add_generation_prompt=True)
    theirs = greedy.processor(text=[rendered], images=[picture], generation_mode=mode, return_tensors="pt")
    (ours,) = greedy.layout.ask([Prompt("the thing to the left ?", (picture,))], direction)
    assert ours.ids == theirs["input_ids"][0].tolist()
    tower = greedy.model.model.get_image_features(theirs["pixel_values"], return_dict=True).pooler_output[0]
    (features,) = greedy.layout.features([picture]).values()
    torch.testing.assert_close(features, tower)


def test_a_default_system_prompt_is_put_before_text_questions_only(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((folder / "processor_config.json").read_text())
    config["use_default_system_prompt"] = True
    (folder / "processor_config.json").write_text(json.dumps(config))
    umm = Janus(weights=str(folder), device="cpu").load()
    rendered = umm.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "red ?"}]}], add_generation_prompt=True
    )
    for direction, mode in ((Direction.UNDERSTANDING, "text"), (Direction.GENERATION, "image")):
        (ours,) = umm.layout.ask([Prompt("red ?")], direction)
        assert ours.ids == umm.processor(text=[rendered], generation_mode=mode)["input_ids"][0].tolist()


def test_answers_are_the_librarys_greedy_ones(greedy: LoadedJanus) -> None:
    prompts = [
        Prompt("the colour of the thing ?"),
        Prompt("red", (noise_picture(0),)),
        Prompt("tell me the colour of the thing to the left of a red square", (noise_picture(1),)),
    ]
    for prompt, ours in zip(prompts, greedy.answer(prompts, seeds=[0] * 3), strict=True):
        conversation = [
            {
                "role": "user",
                "content": [
                    *({"type": "image"} for _ in prompt.images),
                    {"type": "text", "text": prompt.text},
                ],
            }
        ]
        rendered = greedy.processor.apply_chat_template(conversation, add_generation_prompt=True)
        inputs = greedy.processor(text=[rendered], images=list(prompt.images) or None, return_tensors="pt")
        inputs = {
            key: inputs[key] for key in ("input_ids", "attention_mask", "pixel_values") if key in inputs
        }
        tokens = greedy.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
        theirs = greedy.processor.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert ours == theirs.strip()
        assert ours


def test_drawings_are_the_librarys_with_guidance(checkpoint: Path) -> None:
    umm = Janus(weights=str(checkpoint), device="cpu", guidance=1.5).load()
    prompts = [
        Prompt("a red square"),
        Prompt("the thing to the left of the green ring and a blue cross"),
        Prompt("a"),
    ]
    ours = drawn(umm, prompts, [0, 0, 0])
    for prompt, codes in zip(prompts, ours, strict=True):
        conversation = [{"role": "user", "content": [{"type": "text", "text": prompt.text}]}]
        rendered = umm.processor.apply_chat_template(conversation, add_generation_prompt=True)
        inputs = umm.processor(text=[rendered], generation_mode="image", return_tensors="pt")
        theirs = umm.model.generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_mode="image",
            do_sample=False,
            guidance_scale=1.5,
        )
        assert codes == theirs[0].tolist()
    assert ours[0] != ours[1]


# --- decoding -----------------------------------------------------------------------------------------


def test_rows_that_end_leave_the_others_as_they_were(greedy: LoadedJanus) -> None:
    texts = ["a red square", "the", "blue ring and a green cross", "tell me", "colour of the thing ?", "left"]
    asked = greedy.layout.ask([Prompt(text) for text in texts], Direction.UNDERSTANDING)
    ids, mask = greedy.layout.padded([one.ids for one in asked])

    def run(stops: set[int]) -> list[list[int]]:
        with torch.inference_mode():
            stepper = Stepper(greedy.model.model.language_model, mask, room=11)
            embeddings = greedy.layout.embed(ids, [])
            return continue_text(stepper, embeddings, model=greedy.model, stops=stops, limit=12)

    whole = run(set())
    assert {len(row) for row in whole} == {12}
    lengths = set()
    for stops in (
        {row[3] for row in whole[:4]},
        {whole[5][0], whole[0][6]},
        {token for row in whole for token in row},
    ):
        cut = run(stops)
        for full, short in zip(whole, cut, strict=True):
            end = next((place for place, token in enumerate(full) if token in stops), len(full))
            assert short == full[:end]
        lengths |= {len(row) for row in cut}
    assert len(lengths) > 2  # rows really ended at different steps


def test_an_answer_ends_at_eos_and_holds_no_special_tokens(greedy: LoadedJanus) -> None:
    tokenizer = greedy.processor.tokenizer
    ids = tokenizer("red square", add_special_tokens=False)["input_ids"]
    assert greedy.layout.decode([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id]) == "red square"
    assert tokenizer.eos_token_id in greedy.layout.stop_ids


@pytest.mark.parametrize("stops", [7, [7], None])
def test_answers_end_where_the_checkpoint_says_too(
    greedy: LoadedJanus, stops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(greedy.model.generation_config, "eos_token_id", stops)
    found = Layout(greedy.model, greedy.processor).stop_ids
    assert found == {greedy.processor.tokenizer.eos_token_id} | ({7} if stops else set())


def test_seeds_decide_samples_and_nothing_else_does(sampling: LoadedJanus) -> None:
    prompt, other = Prompt("a red square"), Prompt("the ring", (noise_picture(0),))
    one, two, again = drawn(sampling, [prompt, prompt, prompt], [1, 2, 1])
    assert one == again
    assert one != two
    assert drawn(sampling, [other, prompt, other, other], [5, 2, 6, 7])[1] == two


class _Constant:
    """A trunk that gives the same logits whatever it is fed."""

    def __init__(self, logits: torch.Tensor, rows: int) -> None:
        self.output, self.model = logits.expand(rows, -1), self

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        return self.output

    def generation_head(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def prepare_embeddings_for_image_generation(self, codes: torch.Tensor) -> torch.Tensor:
        return codes


def _sampled(logits: torch.Tensor, rows: int, temperature: float, guidance: float = 1.0) -> torch.Tensor:
    fake = _Constant(logits, rows)
    return draw_codes(
        fake,  # type: ignore[arg-type]
        torch.zeros(rows, 1, 1),
        model=fake,
        seeds=range(rows),
        count=20,
        temperature=temperature,
        guidance=guidance,
    )


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    for temperature in (1.0, 0.5):
        codes = _sampled(logits, 500, temperature)
        shares = torch.bincount(codes.flatten(), minlength=4) / codes.numel()
        expected = (logits / temperature).softmax(-1)
        # Five standard deviations of a share of 10,000 draws.
        assert bool(
            ((shares - expected).abs() < 5 * (expected * (1 - expected) / codes.numel()).sqrt()).all()
        )


class _Told:
    """A trunk, head and table of embeddings in one: what it says next depends on the last token alone."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.lm_head, self.fed = torch.nn.Identity(), 0
        self._logits = logits

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        self.fed += len(embeddings)
        return self._logits[embeddings[:, -1]]

    def get_input_embeddings(self) -> Any:
        return lambda tokens: tokens

    def keep(self, rows: torch.Tensor) -> None:
        pass


def _told(logits: torch.Tensor, seeds: Sequence[int], temperature: float, limit: int = 12) -> Any:
    fake = _Told(logits)
    start = torch.zeros(len(seeds), 1, dtype=torch.long)
    how: dict[str, Any] = {"stops": {3}, "limit": limit, "seeds": seeds, "temperature": temperature}
    return continue_text(fake, start, model=fake, **how), fake.fed  # type: ignore[arg-type]


def test_drawn_answers_are_their_seeds_own_whatever_leaves_the_batch() -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    seeds = list(range(40))
    together, fed = _told(logits, seeds, 1.0)
    assert together == [_told(logits, [seed], 1.0)[0][0] for seed in seeds]
    assert len({len(answer) for answer in together}) > 4 and fed < 40 * 12, "rows ended and left"
    assert together != _told(logits, seeds[::-1], 1.0)[0]
    assert len({tuple(answer) for answer in _told(logits, seeds, 0.0)[0]}) == 1


def test_drawn_answers_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(4, 4)
    for temperature in (1.0, 0.5):
        answers, _ = _told(logits, range(4000), temperature, limit=1)
        shares = torch.bincount(torch.tensor([(*answer, 3)[0] for answer in answers]), minlength=4) / 4000
        expected = (logits[0] / temperature).softmax(-1)
        assert bool(((shares - expected).abs() < 5 * (expected * (1 - expected) / 4000).sqrt()).all())


def test_answers_are_drawn_where_a_temperature_is_set(greedy: LoadedJanus, sampling: LoadedJanus) -> None:
    prompts = [Prompt("the colour of the thing ?")] * 6
    assert len(set(sampling.answer(prompts, seeds=range(6)))) > 1
    assert sampling.answer(prompts[:1], seeds=[4]) == sampling.answer(prompts[:1], seeds=[4])
    assert len(set(greedy.answer(prompts, seeds=range(6)))) == 1
    assert "answer_temperature" not in greedy.settings(), "stored answers of the default stay found"


def test_a_slightly_changed_model_draws_almost_the_same() -> None:
    logits = torch.linspace(0, 3, 50)
    nudged = logits.clone()
    nudged[0] += 0.5  # an unlikely code gets likelier
    before, after = _sampled(logits, 100, 1.0), _sampled(nudged, 100, 1.0)
    moved = (before != after).float().mean()
    distance = (logits.softmax(-1) - nudged.softmax(-1)).abs().sum() / 2
    assert float(moved) <= 3 * float(distance) + 0.002
    assert bool((after[before != after] == 0).all())  # what moved, moved to the likelier code


# --- pictures -----------------------------------------------------------------------------------------


def test_input_pictures_reach_both_directions(greedy: LoadedJanus) -> None:
    shown = [Prompt("the thing ?", (noise_picture(seed),)) for seed in range(4)]
    bare = Prompt("the thing ?")
    first, *others = drawn(greedy, [*shown, bare], [0] * 5)
    assert any(other != first for other in others)
    losses = greedy.loss([Example(prompt, "red") for prompt in [*shown, bare]], Direction.UNDERSTANDING)
    assert len({round(loss, 5) for loss in losses.tolist()}) == 5


def test_each_distinct_picture_is_seen_once(greedy: LoadedJanus) -> None:
    sizes: list[int] = []
    tower = greedy.model.model.vision_model
    handle = tower.register_forward_hook(lambda module, args, output: sizes.append(len(output[0])))
    prompts = [Prompt(text, (noise_picture(seed % 2),)) for seed, text in enumerate(WORDS[:7])]
    try:
        greedy.answer(prompts, seeds=range(7))
        greedy.draw(prompts, seeds=range(7))
    finally:
        handle.remove()
    assert sizes == [2, 2]


def test_the_branch_without_condition_keeps_bos_and_boi_only(sampling: LoadedJanus) -> None:
    prompts = [Prompt("a red square", (noise_picture(0),)), Prompt("a")]
    asked = sampling.layout.ask(prompts, Direction.GENERATION)
    ids, _ = sampling.layout.padded([one.ids for one in asked])
    untold = sampling.layout.unconditional(ids)
    kept = {sampling.layout.bos_id, sampling.layout.boi_id}
    assert set(untold.flatten().tolist()) == kept | {sampling.layout.pad_id}
    assert bool(((untold == ids) | (untold == sampling.layout.pad_id)).all())
    assert all((untold == token).sum() == (ids == token).sum() for token in kept)


def test_pictures_are_rounded_rgb_of_the_models_size(greedy: LoadedJanus) -> None:
    codes = torch.randint(0, SHAPE.codes, (3, 16), generator=torch.Generator().manual_seed(0))
    pictures = greedy.layout.pictures(codes)
    with torch.no_grad():
        values = greedy.model.model.vqmodel.decode(codes)
    for picture, value in zip(pictures, values, strict=True):
        assert (picture.mode, picture.size) == ("RGB", (16, 16))
        for x, y in ((0, 0), (5, 9), (15, 3)):
            expected = [min(255, max(0, round((float(v) * 0.5 + 0.5) * 255))) for v in value[:, y, x]]
            assert list(picture.getpixel((x, y))) == expected  # type: ignore[arg-type]


def test_pictures_are_always_decoded_in_full_batches(greedy: LoadedJanus) -> None:
    # Another batch size may take another kernel, and its last digits another side of a rounding.
    sizes: list[int] = []
    decoder = greedy.model.model.vqmodel.decoder
    handle = decoder.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    codes = torch.randint(0, SHAPE.codes, (11, 16), generator=torch.Generator().manual_seed(0))
    try:
        together = greedy.layout.pictures(codes)
        alone = [greedy.layout.pictures(code[None])[0] for code in codes]
    finally:
        handle.remove()
    assert [one.tobytes() for one in together] == [one.tobytes() for one in alone]
    assert len(sizes) == 13
    assert len(set(sizes)) == 1


# --- losses -------------------------------------------------------------------------------------------


def test_greedy_text_is_likeliest_at_each_position(
    greedy: LoadedJanus, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Prompt("tell me the colour", (noise_picture(0),))
    seen: list[torch.Tensor] = []
    handle = greedy.model.lm_head.register_forward_hook(
        lambda module, args, output: seen.append(output.clone())
    )
    try:
        greedy.answer([prompt], seeds=[0])
        stepwise = torch.cat(seen)
        tokens = stepwise.argmax(-1).tolist()
        seen.clear()
        # The answer's own tokens: what is decoded and read again may be cut into others.
        monkeypatch.setattr(
            greedy.layout,
            "reply",
            lambda asked, answer: Asked(asked.text, asked.ids + tokens, asked.spans, asked.pictures),
        )
        loss = greedy.loss([Example(prompt, "")], Direction.UNDERSTANDING)
    finally:
        handle.remove()
    forced = seen[0]
    torch.testing.assert_close(forced[:-1], stepwise, rtol=1e-4, atol=1e-4)
    assert forced[:-1].argmax(-1).tolist() == tokens
    answer = [*tokens, greedy.layout.eos_id]
    expected = -forced.log_softmax(-1)[range(len(answer)), answer].sum()
    torch.testing.assert_close(loss[0], expected)


def test_greedy_codes_are_likeliest_at_each_position(
    greedy: LoadedJanus, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [Prompt("a red square", (noise_picture(0),)), Prompt("the ring")]
    seen: list[torch.Tensor] = []
    head = greedy.model.model.generation_head
    handle = head.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    try:
        codes = greedy.draw_codes(prompts[:1], seeds=[0])
        stepwise = torch.cat(seen)
        monkeypatch.setattr(greedy.layout, "codes", lambda images: codes)
        seen.clear()
        loss = greedy.loss([Example(prompts[0], Image.new("RGB", (16, 16)))], Direction.GENERATION)
    finally:
        handle.remove()
    torch.testing.assert_close(seen[0][0], stepwise, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss[0], -stepwise.log_softmax(-1).max(-1).values.sum(), rtol=1e-4, atol=1e-4)


def test_codes_are_the_image_tokenizers(greedy: LoadedJanus) -> None:
    picture = noise_picture(4, size=16)
    pixels = greedy.processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    theirs = greedy.model.model.vqmodel.encode(pixels, return_dict=True).image_tokens
    assert greedy.layout.codes([picture, picture]).tolist() == [theirs.tolist()] * 2


def test_an_answer_of_the_other_kind_is_refused(greedy: LoadedJanus) -> None:
    with pytest.raises(UserError, match="generation direction needs pictures"):
        greedy.loss([Example(Prompt("a ring"), "red")], Direction.GENERATION)
    with pytest.raises(UserError, match="understanding direction needs texts"):
        greedy.loss([Example(Prompt("a ring"), noise_picture(0))], Direction.UNDERSTANDING)


def test_a_placeholder_in_a_text_is_refused(greedy: LoadedJanus) -> None:
    with pytest.raises(UserError, match="stands for a picture"):
        greedy.answer([Prompt("what is <image_placeholder> ?")], seeds=[0])
    with pytest.raises(UserError, match="stands for a picture"):
        greedy.loss([Example(Prompt("a"), "<image_placeholder>")], Direction.UNDERSTANDING)


def test_each_prompt_needs_a_seed(greedy: LoadedJanus) -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        greedy.answer([Prompt("a"), Prompt("the")], seeds=[1])


@pytest.mark.parametrize(("most", "spread"), [(1, 32), (3, 0), (4, 10), (100, 1000)])
def test_pieces_hold_every_prompt_once(most: int, spread: int) -> None:
    lengths = [5, 90, 6, 91, 5, 40, 95, 7, 5, 5, 41]
    groups = pieces(lengths, most=most, spread=spread)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        inside = [lengths[index] for index in group]
        assert len(group) <= most
        assert max(inside) - min(inside) <= spread
    assert pieces([], most=most) == []


# --- loading ------------------------------------------------------------------------------------------


def test_settings_hold_what_answers_depend_on(checkpoint: Path, greedy: LoadedJanus, tmp_path: Path) -> None:
    same = Janus(weights=str(checkpoint), device="cpu", max_new_tokens=8, batch=1).load()
    assert same.settings() == greedy.settings()
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(f"{template} ")
    other = Janus(weights=str(folder), device="cpu", max_new_tokens=8).load()
    assert other.settings()["layout"] != greedy.settings()["layout"]
    assert other.settings() | {"layout": ""} == greedy.settings() | {"layout": ""}
    for field, value in (
        ("temperature", 0.5),
        ("answer_temperature", 0.5),
        ("guidance", 3.0),
        ("max_new_tokens", 9),
        ("dtype", "bfloat16"),
    ):
        changed = Janus(weights=str(checkpoint), device="cpu").model_copy(update={field: value}).load()
        assert changed.settings()[field] == value


def test_bfloat16_loads_and_answers(checkpoint: Path) -> None:
    umm = Janus(
        weights=str(checkpoint), device="cpu", dtype="bfloat16", max_new_tokens=3, guidance=2.0
    ).load()
    prompts = [Prompt("a red square", (noise_picture(0),)), Prompt("the")]
    assert umm.model.dtype == torch.bfloat16
    assert len(umm.answer(prompts, seeds=[0, 1])) == len(umm.draw(prompts, seeds=[0, 1])) == 2
    assert umm.loss([Example(prompts[0], noise_picture(2))], Direction.GENERATION).dtype == torch.float32


def test_a_sharded_checkpoint_is_read_whole_or_not_at_all(checkpoint: Path, tmp_path: Path) -> None:
    model = JanusForConditionalGeneration.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    settings = Janus(weights=str(tmp_path), device="cpu")
    loaded = dict(settings.load().model.named_parameters())
    assert all(torch.equal(value, loaded[name]) for name, value in model.named_parameters())
    shards[1].unlink()
    with pytest.raises(UserError, match=f"has no file {shards[1].name}"):
        settings.load()


def _rewrite(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _change_weights(folder: Path, name: str, value: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights[name]
    if value is not None:
        weights[name] = value
    save_file(weights, path, metadata={"format": "pt"})


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no file config.json"),
    "config is no JSON": (lambda f: _rewrite(f, "config.json", "{"), "damaged file config.json"),
    "config is a list": (lambda f: _rewrite(f, "config.json", "[]"), "damaged file config.json"),
    "another family": (
        lambda f: _rewrite(f, "config.json", '{"model_type": "llama"}'),
        "of type 'llama', not 'janus'",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no file model.safetensors"),
    "weights cut short": (_cut, "damaged file model.safetensors"),
    "weights empty": (lambda f: _rewrite(f, "model.safetensors", ""), "0 bytes, cut short"),
    "weights are text": (
        lambda f: _rewrite(f, "model.safetensors", "version 1 of a pointer"),
        "not safetensors",
    ),
    "header is no JSON": (
        lambda f: (f / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{{"),
        "header cannot be read",
    ),
    "empty weight map": (lambda f: _rewrite(f, "model.safetensors.index.json", "{}"), "no weight map"),
    "a weight is missing": (
        lambda f: _change_weights(f, "model.language_model.norm.weight", None),
        "lacks 1 weights .*language_model.norm.weight",
    ),
    "a weight has another shape": (
        lambda f: _change_weights(f, "model.language_model.norm.weight", torch.ones(3)),
        "lacks 1 weights .*language_model.norm.weight",
    ),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "no usable tokenizer"),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_weights_give_one_message(checkpoint: Path, tmp_path: Path, case: str) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    damage, message = DAMAGE[case]
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        Janus(weights=str(folder), device="cpu").load()
    text = str(caught.value)
    assert text.startswith(f"model.weights: '{folder}' ")
    assert "\n" not in text
    assert ";" in text  # the fix


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("./missing", "does not exist"),
        ("missing", "does not exist"),
        ("/no/such/folder", "does not exist"),
        ("some-owner/some-janus", "no local folder and could not be fetched from the hub"),
        ("file", "is a file"),
    ],
)
def test_weights_that_are_nowhere(nowhere: Path, weights: str, message: str) -> None:
    (nowhere / "file").touch()
    with pytest.raises(UserError, match=message) as caught:
        Janus(weights=weights, device="cpu").load()
    assert str(caught.value).startswith(f"model.weights: '{weights}' ")
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="model.device: 'cuda:99' is not on this machine"):
        Janus(weights=str(checkpoint), device="cuda:99").load()


@pytest.mark.parametrize(
    "wrong",
    [
        {"wieghts": "x"},
        {"dtype": "int8"},
        {"device": "tpu"},
        {"temperature": -1},
        {"answer_temperature": -1},
        {"guidance": 0.5},
        {"batch": 0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Janus.model_validate(wrong)


def test_settings_need_no_heavy_import() -> None:
    code = "import sys, gapeval_lab.models.janus; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_loading_is_quiet(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Janus(weights=str(checkpoint), device="cpu").load()
    assert capfd.readouterr() == ("", "")
