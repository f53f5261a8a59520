"""Places, the first creation of the database, and clean words where nothing can be stored."""

import fcntl
import os
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from clean_processes import STORE, clean, write_to

from gapeval_lab import tracking_store
from gapeval_lab.errors import UserError
from gapeval_lab.home import project_root
from gapeval_lab.tracking import track
from gapeval_lab.tracking_locks import try_lock
from gapeval_lab.tracking_store import Store


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "GAPEVAL_LAB_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_root_is_the_argument_then_the_variable_then_the_project(tmp_path, monkeypatch):
    project = tmp_path / "project"
    (project / "mlruns").mkdir(parents=True)
    (project / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(project / "deep" / "er")
    assert Store.open().root == project
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path / "home"))
    assert Store.open().root == tmp_path / "home"
    store = Store.open(tmp_path / "given")
    assert store.uri == f"sqlite:///{tmp_path}/given/mlruns/mlflow.db"
    assert store.database == tmp_path / "given" / "mlruns" / "mlflow.db"
    assert list(tmp_path.iterdir()) == [project]  # nothing is made by opening


def test_a_pyproject_of_ours_marks_a_project_and_another_does_not(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "gapeval_lab"\n')
    assert project_root(inner) == tmp_path
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "something"\n')
    assert project_root(inner) == inner


def test_the_users_uri_is_taken_and_never_overwritten(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/theirs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    store = Store.open(tmp_path / "root")
    store.check()
    assert store.uri == uri == os.environ["MLFLOW_TRACKING_URI"]
    assert (tmp_path / "theirs.db").exists()
    assert not (tmp_path / "root" / "mlruns" / "mlflow.db").exists()
    with track(store, "n", experiment="gapeval/x", key="k") as live:
        pass
    assert store.client.get_run(live.run_id).info.artifact_uri.startswith(
        (tmp_path / "root" / "mlruns" / "artifacts" / "gapeval-x").as_uri()
    )


def _start(root: Path, gate: Path, said: Path, results: Any) -> None:
    """One process that starts with the others: waits at the gate, then does what the command line does."""
    write_to(said)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # of the test that first asked for such a process
    try:
        with gate.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH)
        store = Store.open(root)
        store.check()
        store.reconcile()
        with track(store, "n", experiment="gapeval/race", key=f"k{os.getpid()}") as live:
            live.stage("before")
        results.put(live.run_id)
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")


def test_four_processes_start_at_once_on_a_missing_database(tmp_path, capfd):
    context, said = clean(STORE), tmp_path / "said"
    results = context.Queue()
    with (tmp_path / "gate").open("a") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        children = [
            context.Process(target=_start, args=(tmp_path, tmp_path / "gate", said, results))
            for _ in range(4)
        ]
        for child in children:
            child.start()
        fcntl.flock(gate, fcntl.LOCK_UN)
    run_ids = [results.get(timeout=300) for _ in children]
    for child in children:
        child.join()
    store = Store.open(tmp_path)
    runs = store.client.search_runs([store.experiment("gapeval/race")])
    assert sorted(run_ids) == sorted(run.info.run_id for run in runs)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert (store.folder / ".gitignore").read_text() == "*\n"
    assert list(store.locks.glob("probe-*")) == []
    words = said.read_text() + "".join(capfd.readouterr())
    assert "INFO" not in words
    assert "alembic" not in words

    # A database that a kill left half made, under its other name, is in nobody's way.
    assert not store.database.with_name("mlflow.db.unfinished").exists()
    # A run of another machine is none of our business, a run of ours without owner is.
    tags = {"gapeval.host": "elsewhere", "gapeval.lock": str(store.lock_path("x"))}
    theirs = store.client.create_run(store.experiment("gapeval/race"), tags=tags).info.run_id
    tags |= {"gapeval.host": socket.gethostname(), "gapeval.stage": "fit", "gapeval.heartbeat": "1000"}
    ours = store.client.create_run(store.experiment("gapeval/race"), tags=tags).info.run_id
    assert store.reconcile() == [ours]
    assert store.client.get_run(theirs).info.status == "RUNNING"
    assert store.client.get_run(ours).info.end_time == 1_000_000

    store.client.delete_experiment(store.experiment("gapeval/race"))
    with pytest.raises(UserError, match="is deleted; bring it back"):
        store.experiment("gapeval/race")


def test_an_owner_that_ends_while_its_lock_is_looked_at_is_left_alone(tmp_path, monkeypatch):
    store = Store.open(tmp_path)
    store.check()
    owner = track(store, "n", experiment="gapeval/x", key="k")
    live = owner.__enter__()

    def slow(path: Path) -> Any:
        """As `try_lock` where its process is kept waiting between opening the file and locking it."""
        stream = path.open("a")
        owner.__exit__(None, None, None)
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return stream

    monkeypatch.setattr(tracking_store, "try_lock", slow)
    assert store.reconcile() == []
    assert store.client.get_run(live.run_id).info.status == "FINISHED"


def test_an_older_database_is_upgraded_and_a_newer_one_refused(tmp_path):
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import InitialBase, _get_alembic_config
    from sqlalchemy import create_engine

    store = Store.open(tmp_path)
    store.folder.mkdir()
    engine = create_engine(store.uri)
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(store.uri)
    script = ScriptDirectory.from_config(config)
    head = script.get_revision(script.get_current_head())
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, head.down_revision)
    engine.dispose()

    store.check()
    with sqlite3.connect(store.database) as database:
        assert database.execute("select version_num from alembic_version").fetchall() == [(head.revision,)]
        database.execute("update alembic_version set version_num = 'from_the_future'")
    assert store.database.with_name(f"mlflow.db.before-upgrade-{head.down_revision}").exists()
    with pytest.raises(UserError, match="newer MLflow"):
        store.check()


@pytest.mark.parametrize("uri", ["./mlruns", "file:///somewhere"])
def test_a_plain_folder_is_refused_with_the_fix(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="plain folder.*sqlite:////"):
        Store.open(tmp_path).check()


def test_a_server_that_does_not_answer_is_named_without_its_password(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(UserError, match="no answer from http://me:") as raised:
            Store.open(tmp_path).check()
    assert "secret" not in str(raised.value)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write .*GAPEVAL_LAB_HOME"):
        Store.open(tmp_path / "file").check()


def test_a_file_that_is_no_database_is_named(tmp_path):
    store = Store.open(tmp_path)
    store.folder.mkdir()
    store.database.write_bytes(b"this is not a database" * 100)
    with pytest.raises(UserError, match="cannot be used"):
        store.check()


def test_a_lock_is_free_again_when_its_holder_closes_it(tmp_path):
    first = try_lock(tmp_path / "x.lock")
    assert first is not None
    assert try_lock(tmp_path / "x.lock") is None
    first.close()
    second = try_lock(tmp_path / "x.lock")
    assert second is not None
    second.close()
