"""Diffusion pipelines as UMMs that draw: the contract, parity with the library, what is refused."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_umm import UMMContract, noise_picture
from safetensors.torch import load_file, save_file
from tiny_diffusion import pixart, stable_diffusion

from gapeval_lab.bench import weights_of
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import respond
from gapeval_lab.interfaces import Weightless
from gapeval_lab.items import Direction, Example, Item, Prompt, image_digest
from gapeval_lab.models.diffusion import Diffusion
from gapeval_lab.models.diffusion_kinds import by_kind
from gapeval_lab.models.diffusion_model import CannotDraw, LoadedDiffusion

STEPS = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("pipelines")
    return {
        "drawing": stable_diffusion(place / "drawing"),
        "editing": stable_diffusion(place / "editing", editing=True),
        "transformer": pixart(place / "transformer"),
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, LoadedDiffusion]:
    """What the contract is held against."""
    return {
        "both": load(folders["drawing"], strength=0.9, size=(16, 24)),
        "batches": load(folders["drawing"], batch=3, negative="blue"),
        "transformer": load(folders["transformer"], batch=2),
        "editing": load(folders["editing"], image_guidance=1.2),
    }


def load(folder: Path, **settings: Any) -> LoadedDiffusion:
    return Diffusion(weights=str(folder), **{"device": "cpu", "steps": STEPS, **settings}).load()


class TestDrawingAndEditing(UMMContract):
    """Stable Diffusion: its image-to-image sibling takes the prompts with pictures."""

    @pytest.fixture
    def umm(self, models: dict[str, LoadedDiffusion]) -> LoadedDiffusion:
        return models["both"]

    def test_a_text_alone_gives_the_size(self, umm: LoadedDiffusion) -> None:
        assert umm.draw([Prompt("red")], seeds=[1])[0].size == (16, 24)


class TestDrawingInBatches(UMMContract):
    pictures = False

    @pytest.fixture
    def umm(self, models: dict[str, LoadedDiffusion]) -> LoadedDiffusion:
        return models["batches"]


class TestTransformer(UMMContract):
    pictures = False

    @pytest.fixture
    def umm(self, models: dict[str, LoadedDiffusion]) -> LoadedDiffusion:
        return models["transformer"]


class TestEditing(UMMContract):
    """InstructPix2Pix: edits only."""

    @pytest.fixture
    def umm(self, models: dict[str, LoadedDiffusion]) -> LoadedDiffusion:
        return models["editing"]

    def prompts(self) -> list[Prompt]:
        return [Prompt(text, (noise_picture(i % 2),)) for i, text in enumerate(self.texts)]


def test_pictures_are_those_of_the_librarys_own_call(folders: dict[str, Path]) -> None:
    from diffusers import (
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInstructPix2PixPipeline,
        StableDiffusionPipeline,
    )

    shown = noise_picture(3)
    drawing = load(folders["drawing"], strength=0.9, guidance=4.0, negative="blue")
    editing = load(folders["editing"], image_guidance=1.2)
    options = {"num_inference_steps": STEPS, "output_type": "pil"}
    cases = [
        (drawing, (), StableDiffusionPipeline, {"guidance_scale": 4.0, "negative_prompt": "blue"}),
        (
            drawing,
            (shown,),
            StableDiffusionImg2ImgPipeline,
            {"guidance_scale": 4.0, "negative_prompt": "blue", "strength": 0.9, "image": shown},
        ),
        (
            editing,
            (shown,),
            StableDiffusionInstructPix2PixPipeline,
            {"image_guidance_scale": 1.2, "image": shown},
        ),
    ]
    for umm, pictures, kind, own in cases:
        theirs = kind(**{**umm.pipeline.components}, requires_safety_checker=False)
        theirs.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(11)
        (expected,) = theirs(prompt="a red ring", generator=generator, **own, **options).images
        prompt = Prompt("a red ring", pictures)
        (given,) = umm.draw([prompt], seeds=[11])
        assert image_digest(given) == image_digest(expected)
        assert image_digest(umm.draw([prompt], seeds=[12])[0]) != image_digest(expected)


@pytest.mark.parametrize(
    ("name", "drawing", "editing"),
    [
        ("StableDiffusionXLPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        ("FluxPipeline", "FluxPipeline", "FluxImg2ImgPipeline"),
        ("FluxImg2ImgPipeline", "FluxPipeline", "FluxImg2ImgPipeline"),
        ("FluxKontextPipeline", "FluxKontextPipeline", "FluxKontextPipeline"),
        ("QwenImageEditPipeline", None, "QwenImageEditPipeline"),
        ("SanaPipeline", "SanaPipeline", None),
    ],
)
def test_what_a_pipeline_can_do_is_read_from_its_signature(
    name: str, drawing: str | None, editing: str | None
) -> None:
    found = by_kind(skeleton(name))
    assert [None if one is None else type(one).__name__ for one in found] == [drawing, editing]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FluxInpaintPipeline", "needs a mask"),
        ("FluxControlPipeline", "needs a control picture"),
        ("DDPMPipeline", "does not draw from a prompt"),
        ("WanPipeline", "makes films"),
    ],
)
def test_pipelines_for_other_things_are_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=f"a {name} {said}"):
        by_kind(skeleton(name))


def skeleton(name: str) -> Any:
    """The pipeline without its parts."""
    import diffusers

    kind = getattr(diffusers, name)
    wanted = [one for one in inspect.signature(kind.__init__).parameters.values() if one.name != "self"]
    return kind(**{one.name: None for one in wanted if one.default is inspect.Parameter.empty})


def test_each_option_changes_the_picture(folders: dict[str, Path]) -> None:
    def digest(umm: LoadedDiffusion, *pictures: Any) -> str:
        return image_digest(umm.draw([Prompt("a red ring", pictures)], seeds=[5])[0])

    drawn = load(folders["drawing"])
    options = [{"steps": 3}, {"guidance": 3.0}, {"size": (24, 16)}, {"negative": "blue"}]
    assert len({digest(drawn), *(digest(load(folders["drawing"], **one)) for one in options)}) == 5
    shown = noise_picture(1)
    assert digest(drawn, shown) != digest(load(folders["drawing"], strength=1.0), shown)
    edited = load(folders["editing"])
    assert digest(edited, shown) != digest(load(folders["editing"], image_guidance=5.0), shown)


def test_what_a_pipeline_cannot_do_is_an_error_of_the_item(folders: dict[str, Path]) -> None:
    shown = (noise_picture(0),)
    editing, transformer = load(folders["editing"]), load(folders["transformer"])
    with pytest.raises(CannotDraw, match="only edits"):
        editing.draw([Prompt("red")], seeds=[0])
    with pytest.raises(CannotDraw, match="one picture"):
        editing.draw([Prompt("red", shown * 2)], seeds=[0])
    with pytest.raises(CannotDraw, match="from text alone"):
        transformer.draw([Prompt("red", shown)], seeds=[0])
    prompts = [Prompt("red", shown)] + [Prompt(f"red {i}") for i in range(11)]
    items = [Item(f"i{i}", "c", "s", prompt, prompt, ("x",)) for i, prompt in enumerate(prompts)]
    given = respond(transformer, items, [Direction.GENERATION], seed=0)
    errors = {key[0]: response.error for key, response in given.items() if response.error}
    assert list(errors) == ["i0"] and "from text alone" in str(errors["i0"])
    assert sum(response.picture is not None for response in given.values()) == 11


def test_a_hidden_picture_is_an_error_and_no_black_picture(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    umm = load(folders["drawing"])
    assert umm.drawing is not None
    plain = type(umm.drawing.pipeline).__call__

    def hiding(self: Any, *arguments: Any, **options: Any) -> Any:
        given = plain(self, *arguments, **options)
        given.nsfw_content_detected = [True]
        return given

    monkeypatch.setattr(type(umm.drawing.pipeline), "__call__", hiding)
    with pytest.raises(CannotDraw, match="safety checker"):
        umm.draw([Prompt("red")], seeds=[0])


def test_its_weights_are_out_of_reach_and_known_by_their_content(folders: dict[str, Path]) -> None:
    umm, other = load(folders["drawing"]), load(folders["editing"])
    assert isinstance(umm, Weightless)
    assert weights_of(umm) == weights_of(load(folders["drawing"])) != weights_of(other)
    before = umm.identity()
    with torch.no_grad():
        umm.pipeline.text_encoder.get_input_embeddings().weight[0, 0] += 1
    assert umm.identity() != before
    with pytest.raises(UserError, match="no language trunk"):
        umm.backbone()
    with pytest.raises(UserError, match="no likelihoods"):
        umm.loss([Example(Prompt("red"), "red")], Direction.UNDERSTANDING)
    with pytest.raises(UserError, match="no text"):
        umm.answer([Prompt("red")], seeds=[0])


def test_the_settings_tell_options_and_schedulers_apart(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = load(folders["drawing"]).settings()
    elsewhere = copy(folders["drawing"], tmp_path / "drawing")
    assert settings == load(elsewhere).settings()
    assert settings != load(folders["drawing"], guidance=2.0).settings()
    file = elsewhere / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_train_timesteps": 50}))
    assert settings != load(elsewhere).settings()


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("transformer", {"strength": 0.5}, "model.strength: PixArtSigmaPipeline takes no strength"),
        ("drawing", {"image_guidance": 1.5}, "model.image_guidance: StableDiffusionPipeline and"),
        ("editing", {"size": (16, 16)}, "model.size: StableDiffusionInstructPix2PixPipeline takes no"),
        ("drawing", {"true_guidance": 2.0}, "takes no true_cfg_scale"),
        ("drawing", {"negative": "blue", "guidance": 1.0}, "model.negative: does nothing"),
        ("drawing", {"strength": 0.3}, "model.strength: 0.3 of 2 steps is less than one step"),
        ("drawing", {"device": "cuda:99"}, "model.device: 'cuda:99' is not on this machine"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    folders: dict[str, Path], kind: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load(folders[kind], **settings)


def copy(folder: Path, place: Path) -> Path:
    for file in folder.rglob("*"):
        if file.is_file():
            target = place / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return place


def test_bad_weights_are_one_message(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no model_index\.json"):
        load(tmp_path)
    broken = copy(folders["drawing"], tmp_path / "cut")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model\.weights: .*cannot be read: part 'unet'"):
        load(broken)
    broken = copy(folders["drawing"], tmp_path / "lacking")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"model\.weights: .*lacks 1 weights of 'unet' \(conv_in.weight\)"):
        load(broken)
    broken = copy(folders["drawing"], tmp_path / "text")
    (broken / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.weights: .*cannot be read"):
        load(broken)


def test_weights_have_the_dtype_asked_for(folders: dict[str, Path]) -> None:
    umm = load(folders["drawing"], dtype="bfloat16")
    assert {value.dtype for value in umm.root.parameters()} == {torch.bfloat16}
    assert umm.draw([Prompt("red")], seeds=[1])[0].mode == "RGB"
