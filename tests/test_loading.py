"""How weights are loaded: attention, devices, quantisation, compilation. Each option does something."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from contract_umm import noise_picture
from test_janus import SHAPE, WORDS
from tiny_vlm import save_tiny

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Weightless
from gapeval_lab.items import Prompt, image_digest
from gapeval_lab.models import loading
from gapeval_lab.models.janus import Janus
from gapeval_lab.models.janus_model import LoadedJanus, QuantisedJanus
from gapeval_lab.models.loading import Compiled
from gapeval_lab.models.tiny import build_janus
from gapeval_lab.models.vlm import Vlm
from gapeval_lab.models.vlm_model import QuantisedVlm

PROMPTS = [Prompt("the colour of the thing ?"), Prompt("red", (noise_picture(0),)), Prompt("a blue ring ?")]
SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny checkpoint per family."""
    folder = tmp_path_factory.mktemp("loading")
    torch.manual_seed(3)
    for part in build_janus(WORDS, replace(SHAPE, layers=1)):
        part.save_pretrained(folder / "janus")
    save_tiny("llava", folder / "vlm", layers=1)
    return {"janus": str(folder / "janus"), "vlm": str(folder / "vlm")}


def settings(folders: dict[str, str], family: str, **options: Any) -> Any:
    made = {"janus": Janus, "vlm": Vlm}[family]
    return made(**{"weights": folders[family], "device": "cpu", "max_new_tokens": 4, **options})


def answers(umm: Any) -> list[str]:
    given = list(umm.answer(PROMPTS, seeds=SEEDS))
    return (
        given + [image_digest(image) for image in umm.draw(PROMPTS[:1], seeds=[0])] if drawn(umm) else given
    )


def drawn(umm: Any) -> bool:
    return len(umm.directions) == 2


def test_the_defaults_leave_no_trace_in_the_settings(folders: dict[str, str]) -> None:
    """Stored responses are found by a hash of these: a new key would lose them all."""
    assert set(settings(folders, "janus").load().settings()) == {
        *("family", "dtype", "device", "temperature", "guidance", "max_new_tokens", "layout"),
    }


@pytest.mark.parametrize("family", ["janus", "vlm"])
@pytest.mark.parametrize("options", [{"attention": "eager"}, {"device_map": "auto", "device": "auto"}])
def test_other_ways_to_load_answer_the_same(
    folders: dict[str, str], family: str, options: dict[str, Any]
) -> None:
    plain, other = settings(folders, family).load(), settings(folders, family, **options).load()
    assert answers(plain) == answers(other)
    (name,) = options.keys() - {"device"}
    assert other.settings() == plain.settings() | {name: options[name]}


@pytest.mark.parametrize("family", ["janus", "vlm"])
def test_a_compiled_model_answers_the_same(
    folders: dict[str, str], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a back end that runs what was captured: the default one compiles for a minute here."""
    compile_, captured = torch.compile, []

    def backend(graph: Any, _: Any) -> Any:
        captured.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda call, **more: compile_(call, backend=backend, **more))
    torch._dynamo.reset()
    plain = settings(folders, family, max_new_tokens=2).load()
    umm = settings(folders, family, max_new_tokens=2, compile=True).load()
    assert umm.answer(PROMPTS[:1], seeds=[0]) == plain.answer(PROMPTS[:1], seeds=[0])
    assert captured
    assert umm.settings() == plain.settings() | {"compile": True}


def test_attention_is_the_one_asked_for(folders: dict[str, str]) -> None:
    for attention in ("sdpa", "eager"):
        model = settings(folders, "janus", attention=attention).load().model
        assert model.model.language_model.config._attn_implementation == attention


class Recorder:
    """Stands for a family of the library: keeps what it is asked for."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.asked = model, {}

    def from_pretrained(self, folder: Path, **asked: Any) -> Any:
        self.asked = asked
        return self.model, {"missing_keys": [], "mismatched_keys": []}


@pytest.mark.parametrize("name", ["auto", "balanced"])
def test_a_device_map_is_the_librarys_to_follow(name: Any) -> None:
    family = Recorder(torch.nn.Linear(1, 1))
    loading.load_weights(family, Path("x"), Janus(device_map=name))
    assert family.asked["device_map"] == name
    loading.load_weights(family, Path("x"), Janus(device="cpu"))
    assert "device_map" not in family.asked


def test_weights_left_outside_are_refused() -> None:
    with torch.device("meta"):
        family = Recorder(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"^model\.device_map: 'auto' leaves 2 weights outside"):
        loading.load_weights(family, Path("x"), Janus(device_map="auto"))


def test_device_and_device_map_exclude_each_other(folders: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"^model\.device: 'cpu' and device_map 'auto' exclude"):
        settings(folders, "vlm", device_map="auto").load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantise": "4bit"}, r"^model\.quantise: '4bit' cannot be had here \(too old\); .* set it to null"),
        ({"attention": "flash_attention_3"}, r"^model\.attention: 'flash_attention_3' .* set it to sdpa"),
    ],
)
def test_what_the_library_refuses_is_told(options: dict[str, Any], message: str, monkeypatch: Any) -> None:
    class Refusing(Recorder):
        def from_pretrained(self, folder: Path, **asked: Any) -> Any:
            raise ImportError("too old\nand more")

    monkeypatch.setattr(loading, "_quantisation", lambda options: None)
    family = Refusing(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match=message):
        loading.load_weights(family, Path("x"), Janus(device="cpu", **options))
    with pytest.raises(ImportError):  # a defect of the library's keeps its traceback
        loading.load_weights(family, Path("x"), Janus(device="cpu"))


def test_attention_that_is_not_installed(folders: dict[str, str]) -> None:
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash attention is installed")
    with pytest.raises(UserError, match=r"^model\.attention: 'flash_attention_2' cannot be had here"):
        settings(folders, "vlm", attention="flash_attention_2").load()


def test_a_family_without_the_default_attention(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "_supports_sdpa", False)
    with pytest.raises(UserError, match=r"^model.attention: .sdpa. is not in this .* set it to eager$"):
        settings(folders, "vlm").load()
    assert settings(folders, "vlm", attention="eager").load().answer(PROMPTS[:1], seeds=[0])


def test_a_processor_that_needs_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*args: Any, **more: Any) -> Any:
        raise ImportError("\nSome requires the Torchvision library\nbut it was not found")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lacking)
    with pytest.raises(UserError, match=r"model\.weights.*a package .*Torchvision library but .*install it"):
        loading.load_processor(Path("x"), "mine")


def test_masks_for_flash_attention_say_the_same(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes masks of tokens, not of pairs; another implementation told so answers the same."""
    umm = settings(folders, "janus").load()
    expected = answers(umm)
    from gapeval_lab.models import decode

    monkeypatch.setattr(decode, "OWN_MASK", ())
    assert answers(umm) == expected


# --- compiled -----------------------------------------------------------------------------------------


def test_compiled_inside_with_only() -> None:
    """Interventions hang hooks on modules, and compiled code need not run them."""

    class Doubling(torch.nn.Linear):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(value)

    module, calls = Doubling(2, 2), []
    original = module.weight

    def backend(graph: Any, _: Any) -> Any:
        calls.append("compiled")
        return graph.forward

    torch._dynamo.reset()
    compile_ = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda call, **more: compile_(call, backend=backend, **more))
        compiled = Compiled(module, wanted=True)
    value = torch.ones(1, 2)
    expected = module(value)
    assert calls == []
    with compiled:
        assert torch.equal(module(value), expected)
        with torch.no_grad():
            module.weight.mul_(2.0)
        assert not torch.equal(module(value), expected)  # weights are read, not kept
    assert calls
    module.register_forward_hook(lambda *_: torch.zeros(1, 2))
    assert torch.equal(module(value), torch.zeros(1, 2))
    assert module.weight is original


def test_losses_and_interventions_run_the_model_as_it_is(folders: dict[str, str]) -> None:
    umm = settings(folders, "janus", compile=True).load()
    block = umm.backbone().root.get_submodule(umm.backbone().sites.path("block", 0))
    seen: list[int] = []
    hook = block.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        umm.backbone().logits(umm.backbone().encode(["red ?"], None))
    hook.remove()
    assert seen == [1]


# --- quantised ----------------------------------------------------------------------------------------


def test_quantisation_needs_its_package(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^model\.quantise: '8bit' needs the package bitsandbytes"):
        settings(folders, "janus", quantise="8bit").load()


def test_quantisation_needs_cuda(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^model\.quantise: '4bit' needs a CUDA device"):
        settings(folders, "vlm", quantise="4bit").load()


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ("8bit", {"load_in_8bit": True}),
        (
            "4bit",
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
        ),
    ],
)
def test_what_the_library_is_asked_for(bits: Any, expected: dict[str, Any], monkeypatch: Any) -> None:
    """The package itself cannot run here: what it is told, and where the model is put."""
    family = Recorder(torch.nn.Linear(1, 1))
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "BitsAndBytesConfig", lambda **given: SimpleNamespace(**given))
    loading.load_weights(family, Path("x"), Janus(quantise=bits, dtype="bfloat16"))
    assert vars(family.asked["quantization_config"]) == expected
    assert family.asked["device_map"] == {"": torch.device("cuda")}
    assert family.asked["dtype"] == torch.bfloat16


def test_a_quantised_model_is_measured_and_not_written_into(folders: dict[str, str]) -> None:
    chosen = settings(folders, "janus")
    plain = chosen.load()
    umm = QuantisedJanus(plain.model, plain.processor, chosen)
    assert isinstance(umm, Weightless) and not isinstance(plain, Weightless)
    assert answers(umm) == answers(plain)
    before = umm.identity()
    with torch.no_grad():
        weight = plain.model.model.language_model.layers[0].mlp.down_proj.weight
        weight.add_(1e-3)
        changed = umm.identity()
        weight.sub_(1e-3)
    assert before != changed
    with pytest.raises(UserError, match=r"^model\.quantise: the weights of janus/janus are quantised"):
        umm.backbone()


@pytest.mark.parametrize(("plain", "held"), [(Janus, QuantisedJanus), (Vlm, QuantisedVlm)])
def test_only_quantised_settings_make_quantised_models(
    folders: dict[str, str], plain: Any, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = plain.__name__.lower()
    model = settings(folders, family).load().model
    for module in ("janus_model", "vlm_model"):
        monkeypatch.setattr(f"gapeval_lab.models.{module}.load_weights", lambda *_: model)
    assert type(settings(folders, family, quantise="4bit").load()) is held
    loaded = settings(folders, family).load()
    assert not isinstance(loaded, held)
    assert isinstance(loaded, LoadedJanus) is (plain is Janus)
