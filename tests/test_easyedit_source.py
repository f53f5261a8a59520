"""Reading EasyEdit's files: what is replaced in them still stands there, and nothing of them stays."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from engines import NEEDS_EASYEDIT, PACKAGE, checkout

from gapeval_lab.errors import UserError
from gapeval_lab.interventions.easyedit_source import PATCHES, Patch, find_source, opened, patched

PLACES = [(patch, file) for patch in PATCHES for file in patch.files]


def names() -> set[str]:
    return {name for name in sys.modules if name.partition(".")[0] in ("easyeditor", "datasets", "hydra")}


@NEEDS_EASYEDIT
@pytest.mark.parametrize(
    ("patch", "file"), PLACES, ids=[f"{file}-{patch.old[:25]}" for patch, file in PLACES]
)
def test_every_patch_still_applies(patch: Patch, file: str) -> None:
    text = (PACKAGE / file).read_text(encoding="utf-8")
    assert patch.old in text and patch.why
    after = patched(text, file)
    assert patch.old not in after and patch.new in after
    ast.parse(after)


@NEEDS_EASYEDIT
@pytest.mark.parametrize("folder", ["rome", "memit", "ft"])
def test_no_device_is_left_out(folder: str) -> None:
    """Every method of the package that is offered runs where the model is; its scripts' `main` may not."""
    for file in (PACKAGE / "models" / folder).glob("*.py"):
        text = patched(file.read_text(encoding="utf-8"), f"models/{folder}/{file.name}")
        assert "cuda:{" not in text.partition("def main(")[0]


def test_patches_are_for_their_files_alone() -> None:
    text = PATCHES[0].old
    assert patched(text, PATCHES[0].files[0]) == PATCHES[0].new
    assert patched(text, "models/other.py") == text


@NEEDS_EASYEDIT
@pytest.mark.parametrize("main", ["rome.rome_main", "memit.memit_main"])
def test_the_shape_of_a_square_matrix_cannot_tell(main: str) -> None:
    """Why the function that turns a matrix is replaced: it leaves every square one as it is."""
    with opened(find_source(None), lambda text: None) as engine:
        turn = engine.attribute(f"models.{main}", "upd_matrix_match_shape")
    square = torch.arange(9.0).reshape(3, 3)
    assert torch.equal(turn(square, torch.Size((3, 3))), square)
    assert turn(torch.zeros(2, 3), torch.Size((3, 2))).shape == (3, 2)


@NEEDS_EASYEDIT
def test_nothing_is_left_and_globals_are_fresh() -> None:
    before, finders = names(), list(sys.meta_path)
    found = []
    for _ in range(2):
        with opened(find_source(None), lambda text: None) as engine:
            main = engine.module("models.rome.rome_main")
            found.append(main)
            assert main.CONTEXT_TEMPLATES_CACHE is None
            assert engine.module("models.rome.compute_u").inv_mom2_cache == {}
            assert "easyeditor.models.rome.rome_main" in sys.modules
            main.CONTEXT_TEMPLATES_CACHE = ["{}"]
            engine.module("models.rome.compute_u").inv_mom2_cache["a"] = 1
        assert names() == before and sys.meta_path == finders
    assert found[0] is not found[1]


@NEEDS_EASYEDIT
def test_what_was_imported_before_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: types.ModuleType(name) for name in ("easyeditor", "easyeditor.models", "datasets")}
    for name, module in own.items():
        monkeypatch.setitem(sys.modules, name, module)
    before = names()  # another test may have imported the library that `datasets` stands in for
    with opened(find_source(None), lambda text: None) as engine:
        assert engine.module("models.rome.rome_main").__name__ == "easyeditor.models.rome.rome_main"
        assert sys.modules["easyeditor"] is not own["easyeditor"]
    assert all(sys.modules[name] is module for name, module in own.items())
    assert names() == before >= set(own)


@NEEDS_EASYEDIT
def test_it_is_cleared_away_after_a_failure_too() -> None:
    before = names()
    with pytest.raises(KeyboardInterrupt), opened(find_source(None), lambda text: None) as engine:
        engine.module("models.rome.rome_main")
        raise KeyboardInterrupt
    assert names() == before


@NEEDS_EASYEDIT
def test_no_data_set_is_loaded() -> None:
    with opened(find_source(None), lambda text: None) as engine:
        load = engine.module("models.rome.layer_stats").load_dataset
    with pytest.raises(RuntimeError, match="second moments"):
        load("wikipedia")


@NEEDS_EASYEDIT
def test_files_stay_as_they_are(tmp_path: Path) -> None:
    root = checkout(tmp_path)

    def state() -> dict[str, str]:
        return {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(root.rglob("*"))
            if file.is_file()
        }

    before = state()
    with opened(find_source(str(root)), lambda text: None) as engine:
        for main in ("rome.rome_main", "memit.memit_main", "ft.ft_main"):
            engine.module(f"models.{main}")
    assert state() == before


def small(root: Path, text: str = "X = 1\n", *, name: str = "thing") -> Path:
    """A checkout with one module of ours."""
    place = root / "easyeditor" / "models"
    place.mkdir(parents=True, exist_ok=True)
    (root / "easyeditor" / "__init__.py").write_text("raise RuntimeError('must never run')\n")
    (place / f"{name}.py").write_text(text)
    return root


def test_printing_is_taken_and_no_init_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "import sys\nprint('one', 2, sep='-', end='!')\nprint(3, file=sys.stderr)\nprint(flush=True)\n"
    said: list[str] = []
    with opened(find_source(str(small(tmp_path, text))), said.append) as engine:
        engine.module("models.thing")
        sys.stdout.write("ours\n")
    assert said == ["one-2!", "3\n", "\n"]
    assert capfd.readouterr() == ("ours\n", "")


def test_the_digest_is_of_what_was_read(tmp_path: Path) -> None:
    found = []
    for text in ("X = 1\n", "X = 1\n", "X = 2\n"):
        with opened(find_source(str(small(tmp_path, text))), lambda text: None) as engine:
            engine.module("models.thing")
            found.append(engine.digest())
    assert found[0] == found[1] != found[2]


def test_the_environment_names_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPEVAL_EASYEDIT", str(small(tmp_path / "one")))
    assert find_source(None).folder == (tmp_path / "one" / "easyeditor").resolve()
    named = find_source(str(small(tmp_path / "two")))
    assert named.folder == (tmp_path / "two" / "easyeditor").resolve()
    assert "two" in named.name and named.has("models.thing") and not named.has("models.other")


def test_neither_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAPEVAL_EASYEDIT", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match=r"pip install --no-deps easyeditor==0\.0\.1\.dev0.*GAPEVAL_EASYEDIT"):
        find_source(None)


@pytest.mark.parametrize("variable", [False, True])
def test_a_folder_that_is_no_checkout(
    variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("GAPEVAL_EASYEDIT", str(tmp_path))
    with pytest.raises(UserError, match=r"root: .* is no checkout of EasyEdit"):
        find_source(None if variable else str(tmp_path))


def test_a_version_that_is_not_known(tmp_path: Path) -> None:
    root = small(small(tmp_path), "import no_such_package\n", name="broken")
    with opened(find_source(str(root)), lambda text: None) as engine:
        with pytest.raises(UserError, match="models.thing .* has no 'execute'"):
            engine.attribute("models.thing", "execute")
        with pytest.raises(UserError, match="cannot be imported .*no_such_package"):
            engine.module("models.broken")


def test_other_imports_are_nobodys_business(tmp_path: Path) -> None:
    with opened(find_source(str(small(tmp_path))), lambda text: None):
        assert importlib.import_module("json").dumps({}) == "{}"
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("easyeditor.models.nothing")
