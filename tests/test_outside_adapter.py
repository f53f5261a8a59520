"""An adapter in a package of its own: installed, found by its entry point, measured by the command line."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from contract_umm import UMMContract
from test_cli import call

from gapeval_lab.interfaces import UMM

ROOT = Path(__file__).parent.parent
PACKAGE = Path(__file__).parent / "data" / "outside_adapter"


@pytest.fixture(scope="module")
def plugin() -> Any:
    """The module, imported from its file."""
    spec = importlib.util.spec_from_file_location("one_colour", PACKAGE / "one_colour.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["one_colour"] = module  # pydantic looks names up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["one_colour"]


class TestOneColour(UMMContract):
    @pytest.fixture
    def umm(self, plugin: Any) -> UMM:
        loaded: UMM = plugin.OneColour(colour="blue").load()
        return loaded


def test_the_guide_shows_it_whole() -> None:
    guide = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    for file in ("one_colour.py", "pyproject.toml"):
        assert (PACKAGE / file).read_text(encoding="utf-8") in guide
    assert len((PACKAGE / "one_colour.py").read_text(encoding="utf-8").splitlines()) < 60


def test_files_that_the_guide_names_are_there() -> None:
    guide = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    for file in ("gapeval_lab/interfaces.py", "gapeval_lab/models/vlm_model.py", "tests/contract_umm.py"):
        assert file in guide and (ROOT / file).is_file()


def test_installed_it_is_found_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, source = tmp_path / "site", tmp_path / "source"
    source.mkdir()
    for file in PACKAGE.glob("*.*"):  # setuptools writes beside what it builds
        (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True)
    monkeypatch.syspath_prepend(str(target))
    monkeypatch.delitem(sys.modules, "one_colour", raising=False)  # that of the tests above
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)

    assert call(monkeypatch, "eval", "--recipe", "baseline", "model={use: one_colour, color: blue}") == 2
    assert "model.color: unknown key; did you mean 'colour'?" in capsys.readouterr().err
    measured = ("eval", "--recipe", "baseline", "model={use: one_colour, colour: blue}", "--limit", "4")
    assert call(monkeypatch, *measured, "evaluation.official=false", "--json", "outcome.json") == 0
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["umm"] == "one_colour/blue" and len(outcome["before"]["rows"]) == 4
    assert sys.modules["one_colour"].__file__ == str(target / "one_colour.py")
