"""Runs at a real MLflow server: whole ones, and those whose server goes away; then `gapeval-lab sync`."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow_server import Door, serve
from test_run import bench as scripted
from test_run import fact, scripted_umm
from test_tracking_traces import assert_traces, traces_of

from gapeval_lab import cli
from gapeval_lab.bench import Bench, Stage
from gapeval_lab.errors import UserError
from gapeval_lab.recipe import Controls
from gapeval_lab.testing import ScriptedIntervention
from gapeval_lab.tracked_run import Tracked, tracked_run
from gapeval_lab.tracking_locks import try_lock
from gapeval_lab.tracking_marker import Marker
from gapeval_lab.tracking_patient import prepare
from gapeval_lab.tracking_store import Store, Unreachable
from gapeval_lab.tracking_sync import Synced, outcome_folders, sync
from gapeval_lab.tracking_traces import COUNT


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with serve(tmp_path_factory.mktemp("server")) as number:
        yield number


@pytest.fixture
def door(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    made = Door(port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    yield made
    made.close()


def parts(number: int) -> Bench:
    """A bench of eight items; another fact is another experiment with the same baseline."""
    made = scripted(scripted_umm())
    recipe = made.loaded.recipe.model_copy(update={"controls": Controls(identity=False, placebo=False)})
    stages = [Stage((fact(f"f{number}"),), ScriptedIntervention())]
    return replace(made, loaded=replace(made.loaded, recipe=recipe), stages=stages)


def go(
    store: Store, number: int, said: list[str], at: dict[str, Callable[[], None]] | None = None
) -> Tracked:
    """A tracked run; `at` says what happens at which phase's progress."""

    def progress(phase: str, done: int, total: int) -> None:
        if at and phase in at:
            at[phase]()

    return tracked_run(parts(number), store=store, on_progress=progress, say=said.append)


def runs_of(store: Store, done: Tracked) -> list:
    query = f"tags.`gapeval.outcome` = '{done.outcome.run_id}' and tags.kind = 'edit'"
    ids = [number for _, number in store.experiments()]
    return list(store.client.search_runs(ids, query))


def synced(store: Store, **how: bool) -> list[Synced]:
    return list(sync(store, outcome_folders(store.folder), **how))


def test_a_run_is_whole_at_a_server(door: Door, tmp_path: Path) -> None:
    store, said = Store(tmp_path, door.uri), []
    prepare(store)
    done = go(store, 1, said)
    assert said == [] and done.run_id is not None
    client = store.client
    run = client.get_run(done.run_id)
    base = client.get_run(run.data.tags["gapeval.baseline_run_id"])
    assert (run.info.status, base.info.status) == ("FINISHED", "FINISHED")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert_traces(store, run, done.outcome.after.rows, done.place)
    assert_traces(store, base, done.outcome.before.rows, done.place)
    top = {entry.path for entry in client.list_artifacts(done.run_id)}
    assert top >= {"outcome.json", "recipe", "tables", "figures", "pictures", "images", "table_images"}
    table = client.load_table(run.info.experiment_id, "tables/4_items.json", run_ids=[done.run_id])
    assert len(table) == len(done.outcome.before.rows)
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert str(model.status) == "READY" and client.list_logged_model_artifacts(model.model_id)
    experiment = client.get_experiment(run.info.experiment_id)
    assert any(key.startswith("mlflow.sharedViewState.") for key in experiment.tags)
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()
    assert [one.what for one in synced(store)] == ["there"]

    # Traces that there was no time for are added.
    lost = [trace.info.trace_id for trace in traces_of(store, run).values()][:3]
    client.delete_traces(run.info.experiment_id, trace_ids=lost)
    client.set_tag(done.run_id, COUNT, "5 of 8")
    assert [one.what for one in synced(store, dry_run=True)] == ["missing"]
    assert [one.what for one in synced(store)] == ["completed"]
    assert_traces(store, client.get_run(done.run_id), done.outcome.after.rows, done.place)
    assert [one.what for one in synced(store)] == ["there"]


def test_a_server_that_goes_away_loses_nothing(door, tmp_path, monkeypatch) -> None:
    """Before anything, in the middle, and between two calls of the logging; then one sync."""
    monkeypatch.setattr("gapeval_lab.tracking_store.CONNECT_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    store = Store(tmp_path, door.uri)

    def gone(number: int, at: dict[str, Callable[[], None]]) -> Tracked:
        said: list[str] = []
        prepare(store)
        began = time.monotonic()
        done = go(store, number, said, at)
        assert time.monotonic() - began < 30
        (warning,) = said
        assert "gapeval-lab sync" in warning and door.uri in warning
        assert done.run_id is None and done.outcome.shift is not None
        assert (done.place / "outcome.json").is_file() and (done.place / "pictures").is_dir()
        assert "gapeval-system-metrics" not in {one.name for one in threading.enumerate()}
        door.state, door.shuts_at = "open", None
        return done

    door.state = "shut"
    cases = [gone(2, {})]
    cases.append(gone(3, {"after": lambda: setattr(door, "state", "stuck")}))
    # Numbers and tables are there, the model and the traces are not.
    door.shuts_at = lambda data: b"/logged-models" in data[:200]
    cases.append(gone(4, {}))

    opened = [Marker.read(done.place).open_in(store) for done in cases]
    assert opened[0] is None and None not in opened[1:]
    assert [one.what for one in synced(store, dry_run=True)] == ["missing"] * 3
    assert [runs_of(store, done) for done in cases] == [[], [], []]
    assert [one.what for one in synced(store)] == ["logged"] * 3
    ids = [number for _, number in store.experiments()]
    for done, lost, number in zip(cases, opened, (2, 3, 4), strict=True):
        (run,) = runs_of(store, done)
        assert run.info.status == "FINISHED" and lost in (None, run.info.run_id)  # the lost one, taken up
        with_key = store.client.search_runs(ids, f"tags.`gapeval.key` = '{parts(number).key}'")
        assert [one.info.run_id for one in with_key] == [run.info.run_id]
        assert_traces(store, run, done.outcome.after.rows, done.place)
        marker = Marker.read(done.place)
        assert marker.whole_in(store) == run.info.run_id and marker.open_in(store) is None
    for key in run.data.metrics:
        steps = [point.step for point in store.client.get_metric_history(run.info.run_id, key)]
        assert len(steps) == len(set(steps)), key
    assert [one.what for one in synced(store)] == ["there"] * 3
    assert [len(runs_of(store, done)) for done in cases] == [1, 1, 1]


def test_the_local_store_comes_to_a_server_whole(door, tmp_path, monkeypatch, capsys) -> None:
    """And an outcome that another process logs now is left to it."""
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local = Store.open()
    prepare(local)
    done = go(local, 5, [])
    assert done.run_id is not None

    def command(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["gapeval-lab", "sync", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out.splitlines()

    name = done.outcome.run_id
    assert command() == [f"there      {name}  ({done.run_id})", f"{local.database}: 1 there"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    assert command("--dry-run")[0] == f"missing    {name}  (the run)"
    store = Store.open()
    held = try_lock(store.locks / f"sync-{name}.lock")
    assert held is not None
    assert command()[0].startswith(f"busy       {name}")
    held.close()
    assert command("last")[0].startswith(f"logged     {name}")
    (run,) = runs_of(store, done)
    assert command()[0] == f"there      {name}  ({run.info.run_id})"
    assert_traces(store, run, done.outcome.after.rows, done.place)
    took = (run.info.end_time - run.info.start_time) / 1000
    assert took == pytest.approx(sum(done.outcome.seconds.values()), abs=0.1)  # not the logging's time
    marker = Marker.read(done.place)
    assert marker.whole_in(local) == done.run_id and marker.whole_in(store) == run.info.run_id


def test_a_run_that_fails_beside_a_dead_server_tells_its_own_error(door, tmp_path) -> None:
    store, said = Store(tmp_path, door.uri), []
    prepare(store)

    def broken(phase: str, done: int, total: int) -> None:
        door.state = "shut"
        raise ZeroDivisionError("its own")

    with pytest.raises(ZeroDivisionError, match="its own"):
        tracked_run(parts(6), store=store, on_progress=broken, say=said.append)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_refuses_us_is_told_at_the_start(tmp_path, status) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(UserError, match="cannot be used") as raised:
            prepare(Store(tmp_path, f"http://127.0.0.1:{server.server_port}"))
        assert not isinstance(raised.value, Unreachable)
    finally:
        server.shutdown()
        server.server_close()


def test_an_address_that_cannot_be_one_is_told_at_the_start(tmp_path) -> None:
    for uri in ("gopher://somewhere/x", "http://[half"):
        with pytest.raises(UserError):
            prepare(Store(tmp_path, uri))
