"""Recipes and configs are found from a checkout, an editable install and a wheel, wherever one stands."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import gapeval_lab
from gapeval_lab.errors import UserError
from gapeval_lab.shipped import find_file, names_in, packaged, read_text

ROOT = Path(__file__).parent.parent

PROGRAM = """
import gapeval_lab
from gapeval_lab import catalogue, shipped
print(gapeval_lab.__file__)
print(shipped.packaged("recipes"))
print(catalogue.available())
print(catalogue.describe("rome_world_knowledge").name)
print(shipped.find_file("embedded", folder="configs/models", suffix=".yaml").name)
"""


def ask(folder, **environment):
    """What a fresh interpreter in another working directory finds."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()


def test_found_from_another_working_directory(tmp_path):
    file, place, names, name, config = ask(tmp_path)
    assert Path(file) == Path(gapeval_lab.__file__)
    assert Path(place) == packaged("recipes")
    assert "rome_world_knowledge" in names
    assert (name, config) == ("rome_world_knowledge", "embedded.yaml")


def test_found_in_a_wheel(tmp_path):
    pytest.importorskip("setuptools")
    tree, unpacked, elsewhere = tmp_path / "tree", tmp_path / "unpacked", tmp_path / "elsewhere"
    for folder in ("gapeval_lab", "recipes", "configs"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "README.md").touch()
    for data in ("models/embedded/deep/weights.bin", "judges/templates/one.yaml"):
        (tree / "gapeval_lab" / data).parent.mkdir(parents=True, exist_ok=True)
        (tree / "gapeval_lab" / data).write_text("x")
    (tree / "recipes" / "facts" / "some.jsonl").write_text("{}\n")
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=tree, check=True, capture_output=True, text=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(unpacked)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gapeval_lab"}
    carried = ("recipes/facts/some.jsonl", "recipes/texts/everyday.txt", "configs/judges/endpoint.yaml")
    pages = ("pages/templates/page.html.j2", "pages/static/page.css", "pages/static/gallery.js")
    for data in ("models/embedded/deep/weights.bin", "judges/templates/one.yaml", *carried, *pages):
        assert f"gapeval_lab/{data}" in names
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gapeval_lab").rglob("*.py")}
    assert code <= names
    elsewhere.mkdir()
    # -P would not do: the unpacked wheel must come before the editable install.
    file, place, names_found, name, config = ask(elsewhere, PYTHONPATH=str(unpacked))
    assert Path(file).is_relative_to(unpacked)
    assert Path(place) == unpacked / "gapeval_lab" / "recipes"
    assert "rome_world_knowledge" in names_found
    assert (name, config) == ("rome_world_knowledge", "embedded.yaml")


def test_every_code_folder_is_listed_for_the_wheel():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "gapeval_lab").rglob("__init__.py")}
    assert listed - {"gapeval_lab.recipes", "gapeval_lab.configs"} == {".".join(f.parts) for f in folders}


def test_order_of_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gapeval_lab.shipped.packaged", lambda folder: tmp_path / "package" / folder)
    for place in ("package/configs/models", "configs/models", "."):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)

    def find(name):
        return find_file(name, folder="configs/models", suffix=".yaml")

    (tmp_path / "package/configs/models/small.yaml").write_text("packaged")
    assert read_text(find("small")) == "packaged"
    (tmp_path / "configs/models/small.yaml").write_text("local")
    assert read_text(find("small")) == read_text(find("small.yaml")) == "local"
    (tmp_path / "small.yaml").write_text("path")
    assert read_text(find("small")) == "path"
    (tmp_path / "small").mkdir()  # a folder of that name is no recipe
    assert read_text(find("small")) == "path"
    assert read_text(find(str(tmp_path / "configs/models/small.yaml"))) == "local"
    assert names_in("configs/models", suffix=".yaml") == ["small"]
    with pytest.raises(UserError, match=r"'smal' was found neither .* did you mean 'small'\?"):
        find("smal")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_text(tmp_path)
    (tmp_path / "latin").write_bytes("grün".encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 2\)"):
        read_text(tmp_path / "latin")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_text(tmp_path / "marked") == "a: 1"
