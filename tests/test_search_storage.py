"""What a search's storage refuses to touch."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import optuna
import pytest
from search_fake import RECIPE, plan
from test_cli import call, home  # noqa: F401 (a fixture)
from test_search import log, plug_ins, search  # noqa: F401 (a fixture)

from gapeval_lab.errors import UserError
from gapeval_lab.search_storage import JOURNAL_START, open_place
from gapeval_lab.search_study import load_study

Capture = pytest.CaptureFixture[str]


def database(path: Path) -> bytes:
    with sqlite3.connect(path) as opened:
        opened.execute("create table t (n)")
    opened.close()
    return path.read_bytes()


def foreign(kind: str, folder: Path) -> Path:
    """A file that is no journal, in a folder of its own."""
    folder.mkdir()
    path = folder / f"mine.{kind}"
    if kind == "db":
        database(path)
    else:
        texts = {
            "txt": b"one line, no end",
            "md": b"\n{}",
            "yaml": RECIPE.encode(),
            "json": b'{"op": 1}\n{"x',
        }
        path.write_bytes(texts[kind])
    return path


@pytest.mark.parametrize("kind", ["txt", "md", "yaml", "json", "db"])
def test_a_file_that_is_no_journal_is_left_alone(
    kind: str,
    home: Path,  # noqa: F811
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = foreign(kind, home / "own")
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"--storage: {path} is no journal of a search"):
        search(plan(home, trials=1, storage=str(path)))
    assert call(monkeypatch, "search", "--show", "searched", "--storage", str(path)) == 2
    assert f"--storage: {path} is no journal of a search" in capsys.readouterr().err
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    assert log(home, "start") == []


def test_to_show_makes_and_changes_no_file(tmp_path: Path) -> None:
    search(plan(tmp_path, trials=2))
    copy = tmp_path / "copy" / "searched.journal"
    copy.parent.mkdir()
    whole = (tmp_path / "optuna" / "searched.journal").read_bytes()
    copy.write_bytes(whole + b'{"op_code":4,"torn')
    folder = tmp_path / "none"
    place = open_place(str(copy), folder=folder, study="searched", make=False)
    assert len(load_study(place, "searched").trials()) == 2
    empty = copy.with_name("empty.db")
    empty.touch()
    held = database(copy.with_name("other.db"))
    for name in ("empty.db", "other.db", "missing.db"):
        with pytest.raises(UserError, match=f"--storage: sqlite:///.*{name} cannot be used"):
            open_place(f"sqlite:///{copy.parent}/{name}", folder=folder, study="s", make=False)
    with pytest.raises(UserError, match="--storage: cannot read"):
        open_place(str(tmp_path / "missing"), folder=folder, study="s", make=False)
    names = {"searched.journal", "empty.db", "other.db"}
    assert {path.name for path in copy.parent.iterdir()} == names
    assert copy.read_bytes() == whole + b'{"op_code":4,"torn' and empty.read_bytes() == b""
    assert copy.with_name("other.db").read_bytes() == held
    assert not folder.exists() and not (tmp_path / "missing").exists()


@pytest.mark.parametrize("torn", [b"", b'{"op', JOURNAL_START, b'{"op_code":0,"worker'])
def test_a_first_line_that_is_torn_is_a_journal(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.journal"
    path.write_bytes(torn)
    place = open_place(str(path), folder=tmp_path, study="s")
    optuna.create_study(storage=place.storage, study_name="s")
    assert path.read_bytes().startswith(JOURNAL_START)
