"""What doctor finds, what it never prints, and a store that was moved."""

import json
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gapeval_lab import cli, doctor, doctor_machine, doctor_parts
from gapeval_lab.doctor import Line, Section
from gapeval_lab.errors import UserError
from gapeval_lab.tracking import Store, find_moved, health, relocate
from gapeval_lab.tracking_health import within
from gapeval_lab.tracking_locks import try_lock


@pytest.fixture(autouse=True)
def no_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a run, a delta and a trace's tag, after its project was moved to a path with a space."""
    base = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = Store.open(base / "old place")
        store.check()
        experiment = store.experiment("gapeval/m")
        run = store.client.create_run(experiment)
        store.client.log_text(run.info.run_id, "kept", "note.txt")
        model = store.client.create_logged_model(experiment, name="delta", source_run_id=run.info.run_id)
        store.client.finalize_logged_model(model.model_id, "READY")
        store.client.set_terminated(run.info.run_id)
        lost = store.client.create_run(experiment)
        for key, value in (("gapeval.host", socket.gethostname()), ("gapeval.lock", "/nowhere/x.lock")):
            store.client.set_tag(lost.info.run_id, key, value)
        shutil.move(base / "old place", base / "new place")
        return Store.open(base / "new place")


def test_a_moved_store_is_seen_and_put_right(moved: Store) -> None:
    seen = health(moved)
    assert (seen.runs, seen.running, seen.stale, seen.error) == (2, 1, 1, "")
    assert seen.moved == 2  # MLflow's own experiment is one
    assert seen.schema and seen.schema == seen.wanted
    found = find_moved(moved)
    assert [Path(old).parent.name for old in found.old] == ["old place"]
    assert {(one.table, one.column) for one in found.changes} >= {
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
    }
    assert health(moved) == seen  # looking has changed nothing
    lock = try_lock(moved.locks / f"{'a' * 32}.lock")
    assert lock is not None
    with lock, pytest.raises(UserError, match="is going on"):
        relocate(moved)
    _, backup = relocate(moved)
    assert find_moved(moved).changes == () and health(moved).moved == 0
    (finished, _) = sorted(moved.client.search_runs(["1"]), key=lambda run: run.info.status)
    file = moved.client.download_artifacts(finished.info.run_id, "note.txt")
    assert Path(file).read_text() == "kept"
    (model,) = moved.client.search_logged_models(["1"])
    assert model.artifact_location.startswith(moved.artifacts.as_uri())
    with sqlite3.connect(backup) as before:
        assert "old%20place" in before.execute("SELECT artifact_uri FROM runs").fetchone()[0]


def test_what_cannot_be_relocated_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no database"):
        find_moved(Store.open(tmp_path))
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_text("this is no database, whatever it is called" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        find_moved(Store.open(tmp_path))
    assert "database" in health(Store.open(tmp_path)).error
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="no local file"):
        relocate(Store.open(tmp_path))


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("http://me:hush@127.0.0.1:{port}", "refused"),
        ("postgresql://me:hush@127.0.0.1:{port}/runs?sslpassword=hush", "refused"),
        ("/some/folder", "plain folders"),
        ("sqlite:////nowhere/at/all.db", "no folder"),
    ],
)
def test_a_store_out_of_reach_is_told_at_once_and_without_a_password(
    uri: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=closed.getsockname()[1]))
        monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path))
        (line,) = doctor.guarded(doctor_machine.store)
    assert line.status == "problem" and error in line.text and line.fix
    assert "hush" not in f"{line}"


def test_a_server_that_hangs_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and says nothing
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert "timed out" in health(Store(Path("/tmp"), uri), seconds=0.2).error
    gate = threading.Event()
    assert within(lambda: gate.wait(5), 0.05) == (None, "no answer within 0.05 s")
    gate.set()


def test_a_store_that_is_not_there_yet_is_fine_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path))
    lines = [*doctor.guarded(doctor_machine.home_folder), *doctor.guarded(doctor_machine.store)]
    assert {line.status for line in lines if line.name != "disk"} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_versions_are_held_against_what_is_asked_and_what_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=99", "scipy>=1", "no-such-package>=2", "rich>=0", "nothing; python_version < '3'"]
    monkeypatch.setattr(doctor_machine, "_required", lambda: asked)
    monkeypatch.setattr(doctor_machine, "_tested", lambda: {"scipy": "0.1", "rich": "0.1"})
    monkeypatch.setattr(doctor_machine.metadata, "version", _versions)
    found = {line.name: line for line in doctor_machine.packages()}
    assert {name: line.status for name, line in found.items()} == {
        **{"numpy": "problem", "no-such-package": "problem"},
        **{"scipy": "note", "rich": "ok"},
    }
    assert found["numpy"].fix == "pip install 'numpy>=99'" and "tested with 0.1" in found["scipy"].text


def test_our_own_requirements_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = {line.name: line.status for line in doctor_machine.packages()}
    assert {"torch", "mlflow", "packaging"} <= here.keys() and "problem" not in here.values()
    monkeypatch.setattr(doctor_machine, "ROOT", tmp_path)  # only the package is installed
    assert doctor_machine._tested() == {}


def test_a_check_that_breaks_is_a_problem_of_its_own() -> None:
    def broken_thing() -> Iterator[Line]:
        yield Line("first", "ok", "fine")
        raise ImportError("libx is gone\nmore")

    first, second = doctor.guarded(broken_thing)
    assert first.status == "ok"
    assert (second.name, second.status) == ("broken thing", "problem") and "libx is gone" in second.text


def test_shipped_weights_that_were_touched_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {line.status for line in doctor_parts.weights()} == {"ok"}
    folder = Path(doctor_parts.__file__).parent / "models" / "embedded"
    copy = tmp_path / "embedded"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("other words")
    assert doctor_parts.digest(copy) == doctor_parts.SHIPPED["embedded"]
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert doctor_parts.digest(copy) != doctor_parts.SHIPPED["embedded"]


def test_keys_are_told_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush")
    (line,) = (line for line in doctor_parts.api_keys() if line.name == "OPENAI_API_KEY")
    assert line.status == "ok" and "hush" not in f"{line}" and "openai" in line.text
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    (line,) = (line for line in doctor_parts.api_keys() if line.name == "OPENAI_API_KEY")
    assert line.status == "note" and "export OPENAI_API_KEY" in line.fix


def test_engines_are_named_with_what_they_can_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "easyeditor" / "models" / "memit").mkdir(parents=True)
    (tmp_path / "easyeditor" / "models" / "memit" / "memit_main.py").touch()
    monkeypatch.setenv("GAPEVAL_EASYEDIT", str(tmp_path))
    (line,) = doctor_parts.easyedit()
    assert line.status == "note" and line.text.endswith(": MEMIT") and "for ROME" in line.fix
    monkeypatch.setenv("GAPEVAL_EASYEDIT", str(tmp_path / "wrong"))
    (line,) = doctor_parts.easyedit()
    assert line.status == "problem" and "is no checkout" in line.text


def test_the_shipped_model_answers_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = doctor_parts.self_test()
    assert line.status == "ok" and "both right" in line.text
    monkeypatch.setattr(doctor_parts, "ASKED", "sort_down-000")  # drawn wrong: nobody taught it that
    (line,) = doctor_parts.self_test()
    assert line.status == "problem" and "generation" in line.text


@pytest.mark.parametrize(("status", "code"), [("note", 0), ("problem", 1)])
def test_the_command_exits_by_what_it_found(
    status: doctor.Status, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [Section("Things", (Line("thing", "ok", "fine"), Line("other", status, "is so", "mend it")))]
    monkeypatch.setattr(doctor, "examine", lambda *, quick: found)
    done = CliRunner().invoke(cli.app, ["doctor", "--json", str(tmp_path / "found.json")])
    assert done.exit_code == code
    assert "is so; mend it" in done.output and status in done.output
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["healthy"] is (code == 0) and written["sections"][0]["lines"][1]["fix"] == "mend it"


def _versions(name: str) -> str:
    if name == "no-such-package":
        raise doctor_machine.metadata.PackageNotFoundError
    return {"numpy": "2.4.6", "scipy": "1.17.1", "rich": "0.1"}[name]
