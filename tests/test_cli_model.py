"""`gapeval-lab model`: what it lists, where sites are, and that big models are not read for it."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from test_cli import call
from tiny_vlm import save_tiny

from gapeval_lab.interfaces import Sites
from gapeval_lab.models import janus_model, sites, vlm_model
from gapeval_lab.models.janus import Janus
from gapeval_lab.recipe import model_node
from gapeval_lab.registry import build
from gapeval_lab.shipped import names_in, packaged

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
DOWN = "model.language_model.layers.{}.mlp.down_proj"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of a checkpoint without its weights."""
    folder = tmp_path_factory.mktemp("model")
    (save_tiny("qwen2_5_vl", folder / "tiny") / "model.safetensors").unlink()
    (folder / "mine.yaml").write_text(f"# Mine.\nuse: vlm\nweights: {folder / 'tiny'}\n")
    return folder / "mine.yaml"


def rows(out: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for words in map(str.split, out.splitlines()) if words}


def test_list(capsys: Capture, monkeypatch: Patch) -> None:
    assert call(monkeypatch, "model", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("embedded") + 1].startswith("    The UMM that ships with the package")
    assert lines[-1].startswith("plug-ins: ") and "vlm" in lines[-1]
    assert set(names_in("configs/models", suffix=".yaml")) <= set(lines)


def test_sites_of_the_embedded_model_without_reading_it(capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setattr(janus_model, "load_weights", None)
    assert call(monkeypatch, "model", "sites", "embedded") == 0
    out = capsys.readouterr().out
    assert rows(out)["mlp_down"] == [DOWN, "8", "96", "x", "384", "8", "of", "8"]
    assert rows(out)["head"][:2] == ["lm_head", "1"]
    assert "8 layers, 0 to 7; weights are out x in: not transposed" in out


def test_sites_need_no_weights_on_disk(config: Path, capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setattr(vlm_model, "load_weights", None)
    assert call(monkeypatch, "model", "sites", str(config)) == 0
    assert rows(capsys.readouterr().out)["mlp_down"] == [DOWN, "2", "32", "x", "48", "2", "of", "2"]


def test_sites_that_are_named_otherwise(config: Path, capsys: Capture, monkeypatch: Patch) -> None:
    counted = f"sites={{templates: {{mlp_down: '{DOWN}'}}}}"
    assert call(monkeypatch, "model", "sites", str(config), counted) == 0
    assert "2 layers, 0 to 1; weights are out x in: not transposed" in capsys.readouterr().out
    given = f"sites={{templates: {{mlp_down: '{DOWN}'}}, layers: 1, transposed: true}}"
    assert call(monkeypatch, "model", "sites", str(config), given) == 0
    out = capsys.readouterr().out
    assert "1 layers, 0 to 0; weights are in x out: transposed" in out
    assert "mlp_up" not in out
    assert call(monkeypatch, "model", "sites", str(config), given.replace("layers: 1", "layers: 3")) == 2
    assert "no module 'model.language_model.layers.2.mlp.down_proj'" in capsys.readouterr().err


def test_modules(config: Path, capsys: Capture, monkeypatch: Patch) -> None:
    assert call(monkeypatch, "model", "modules", str(config)) == 0
    assert rows(capsys.readouterr().out)[DOWN] == ["Linear", "32", "x", "48", "2"]


def test_a_site_that_only_some_layers_have(config: Path, capsys: Capture, monkeypatch: Patch) -> None:
    """What an adapter says is held against the modules: a layer may be built differently."""
    odd = Sites({"odd": "model.vision_model.encoder.layers.{}.mlp.fc1"}, layers=8)
    monkeypatch.setattr(Janus, "sites_in", lambda _, root: odd)
    assert call(monkeypatch, "model", "sites", "embedded") == 0
    assert rows(capsys.readouterr().out)["odd"][-3:] == ["2", "of", "8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embeded"], "did you mean 'embedded'?"),
        (["embedded", "dtyp=float32"], "model.dtyp: unknown key; did you mean 'dtype'?"),
        (["embedded", "weights=no/such/folder"], "model.weights: 'no/such/folder' does not exist"),
        (["qwen2_5_vl_7b", "weights=nobody/nothing"], "could not be fetched from the hub"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert call(monkeypatch, "model", "sites", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_config_from_which_no_model_can_be_built(
    config: Path, tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    folder = shutil.copytree(config.parent / "tiny", tmp_path / "spoilt")
    spoilt = json.loads((folder / "config.json").read_text())
    spoilt["text_config"]["num_attention_heads"] = 0
    (folder / "config.json").write_text(json.dumps(spoilt))
    assert call(monkeypatch, "model", "sites", str(config), f"weights={folder}") == 2
    assert "config.json from which no model can be built" in capsys.readouterr().err


@pytest.mark.parametrize("name", names_in("configs/models", suffix=".yaml"))
def test_the_shipped_configs_are_valid_and_say_what_they_are(name: str) -> None:
    node = model_node(name)
    build("models", node.use, settings=node.settings)
    text = (packaged("configs") / "models" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")


def test_what_a_family_states_is_in_its_models_and_is_no_config(monkeypatch: Patch) -> None:
    """Every path of the packaged tables leads somewhere, and a table as it stands can be a config's own."""
    folder = packaged("configs") / "models" / "sites"
    assert {file.stem for file in folder.iterdir()} == {"janus", "emu3", "vlm"}
    assert not [name for name in names_in("configs/models", suffix=".yaml") if "sites" in name]
    for config in ("embedded", "embedded_emu3"):
        node = model_node(config)
        settings = build("models", node.use, settings=node.settings)
        root, table = settings.sketch(), sites.family_table(node.use)
        found = settings.sites_in(root)
        assert found == sites.given_sites(root, table), "nothing is left out of a table that fits"
        assert found.layers == root.config.text_config.num_hidden_layers
        assert dict(found.templates) == dict(table.templates)
        general = sites.family_sites(root, "vlm")  # what the library finds is what is stated
        assert general == found
