"""Files are whole or not there, and a place that cannot be written is the user's to mend."""

import subprocess
import sys

import pytest

from gapeval_lab import files
from gapeval_lab.errors import UserError
from gapeval_lab.files import write_bytes, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writes_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "data.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["data.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_text_is_utf_8_with_its_line_ends_as_given(tmp_path):
    path = tmp_path / "text.txt"
    write_text(path, "grün → ✓\r\n")
    assert path.read_bytes() == "grün → ✓\r\n".encode()


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_crash_at_any_step_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    path = tmp_path / "data.bin"
    write_bytes(path, b"old")

    def crash(*_args):
        raise error

    monkeypatch.setattr(files.os, step, crash)
    with pytest.raises(error):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_a_user_error_and_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "data.bin"
    write_bytes(path, b"old")

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(UserError, match=r"cannot write .*data\.bin \(No space left on device\)"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["data.bin"]


def test_a_process_killed_before_the_rename_leaves_the_old_file(tmp_path):
    path = tmp_path / "data.bin"
    write_bytes(path, b"old")
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom gapeval_lab import files\n"
        "files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_bytes(Path(sys.argv[1]), b'new')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert ended.returncode == -9
    assert path.read_bytes() == b"old"
    assert (tmp_path / next(name for name in names(tmp_path) if name != "data.bin")).read_bytes() == b"new"


@pytest.mark.parametrize("below", ["data.bin", "deeper/data.bin"])
def test_a_file_where_a_folder_should_be_is_a_user_error(tmp_path, below):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="output: cannot write .*choose a folder"):
        write_bytes(tmp_path / "taken" / below, b"data")
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_folder_where_the_file_should_be_is_a_user_error(tmp_path):
    (tmp_path / "data.bin" / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match="output: cannot write"):
        write_bytes(tmp_path / "data.bin", b"data")
    assert names(tmp_path) == ["data.bin"]
