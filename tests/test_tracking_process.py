"""Runs logged by a process of their own: the same as those of this one, however either of the two ends."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_run import bench as scripted
from test_run import fact, scripted_umm
from test_tracking_traces import assert_traces

from gapeval_lab.bench import Bench, Stage
from gapeval_lab.errors import UserError
from gapeval_lab.outcome import Outcome
from gapeval_lab.recipe import Controls
from gapeval_lab.testing import ScriptedIntervention
from gapeval_lab.tracked_run import Tracked, tracked_run
from gapeval_lab.tracking import Stopped, baseline_fingerprint, experiment_name
from gapeval_lab.tracking_locks import name_master, try_lock
from gapeval_lab.tracking_marker import Marker
from gapeval_lab.tracking_patient import Track, prepare
from gapeval_lab.tracking_process import ENDED, FarRun, TrackingProcess, beside
from gapeval_lab.tracking_store import Store
from gapeval_lab.tracking_sync import outcome_folders, sync

EXPERIMENT = "gapeval/scripted"


@pytest.fixture(scope="module")
def process(store: Store) -> Iterator[TrackingProcess]:
    """One for the module: runs come one after the other."""
    with beside(store) as made:
        yield made


def parts(name: str, seed: int = 0) -> Bench:
    """A bench of eight items; a seed has a baseline of its own."""
    made = scripted(scripted_umm())
    changes = {"controls": Controls(identity=False, placebo=False), "seed": seed}
    recipe = made.loaded.recipe.model_copy(update=changes)
    resolved = recipe.model_dump(mode="json")
    loaded = replace(made.loaded, recipe=recipe, resolved=resolved, hash=f"{name}{seed}")
    return replace(made, loaded=loaded, stages=[Stage((fact(name),), ScriptedIntervention())])


def go(store: Store, bench: Bench, track: Track | None, at: Callable[[str], None] | None = None) -> Tracked:
    """A tracked run that says nothing; `at` is told each phase's progress."""
    said: list[str] = []

    def progress(phase: str, done: int, total: int) -> None:
        if at is not None:
            at(phase)

    done = tracked_run(bench, store=store, on_progress=progress, say=said.append, track=track)
    assert said == []
    return done


def begun(live: FarRun) -> str:
    """The id of a run, once it has begun."""
    while live.run_id is None and live.lost is None:
        live.hear()
        time.sleep(0.01)
    assert live.run_id is not None
    return live.run_id


def logged(store: Store, run_id: str) -> dict[str, Any]:
    """All that a run holds, without its times, its ids and its places."""
    run = store.client.get_run(run_id)

    def files(folder: str | None = None) -> list[str]:
        found = []
        for entry in store.client.list_artifacts(run_id, folder):
            found += files(entry.path) if entry.is_dir else [entry.path.partition("+timestamp")[0]]
        return found

    changing = ("mlflow.note.content", "gapeval.heartbeat", "gapeval.outcome", "gapeval.baseline_run_id")
    changing += ("gapeval.key", "gapeval.lock", "mlflow.loggedArtifacts")
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "metrics": {
            k: v for k, v in run.data.metrics.items() if not k.startswith(("time/", "memory/", "cost/"))
        },
        "params": run.data.params,
        "tags": {k: v for k, v in run.data.tags.items() if k not in changing},
        "files": sorted(files()),
        "data": sorted(entry.dataset.digest for entry in run.inputs.dataset_inputs),
        "models": len(run.outputs.model_outputs) if run.outputs else 0,
    }


def baseline_of(store: Store, run_id: str) -> str:
    return str(store.client.get_run(run_id).data.tags["gapeval.baseline_run_id"])


def test_a_run_is_the_same_wherever_it_is_logged(store, process, tmp_path_factory) -> None:
    other = Store(tmp_path_factory.mktemp("other"), f"sqlite:///{tmp_path_factory.mktemp('other')}/m.db")
    prepare(other)
    here, there = go(other, parts("f"), None), go(store, parts("f"), process.track)
    assert here.run_id and there.run_id
    assert logged(other, here.run_id) == logged(store, there.run_id)
    first, second = baseline_of(other, here.run_id), baseline_of(store, there.run_id)
    assert first != here.run_id and second != there.run_id
    assert logged(other, first) == logged(store, second)
    run = store.client.get_run(there.run_id)
    assert_traces(store, run, there.outcome.after.rows, there.place)
    assert_traces(store, store.client.get_run(second), there.outcome.before.rows, there.place)
    assert Marker.read(there.place).whole_in(store) == there.run_id
    changing = {"run_id", "started", "seconds", "peak_memory_gib"}
    assert here.outcome.model_dump(exclude=changing) == there.outcome.model_dump(exclude=changing)


def test_the_baseline_of_a_long_run_is_logged_while_the_model_works(store, process, monkeypatch) -> None:
    """It is whole in the store before the intervention's own state is measured."""
    monkeypatch.setattr("gapeval_lab.run.LONG", 0.0)
    bench = parts("g", seed=1)
    found: list[Any] = []

    def wait(phase: str) -> None:
        if phase != "after" or found:
            return
        query = f"tags.kind = 'baseline' and params.seed = '{bench.loaded.recipe.seed}'"
        ends = time.monotonic() + 60
        while not found and time.monotonic() < ends:
            ids = [number for _, number in store.experiments()]
            runs = store.client.search_runs(ids, f"{query} and attributes.status = 'FINISHED'") if ids else []
            found.extend(runs)
            time.sleep(0.05)

    done = go(store, bench, process.track, wait)
    assert done.run_id is not None
    assert [run.info.run_id for run in found] == [baseline_of(store, done.run_id)]
    assert found[0].data.tags["gapeval.fingerprint"] == baseline_fingerprint(done.outcome)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (Stopped(143), "KILLED")],
)
def test_how_a_run_ends_when_its_block_raises(store, process, error, status) -> None:
    with (
        pytest.raises(type(error)),
        process.track("n", experiment=EXPERIMENT, key=f"raises{status}{type(error).__name__}") as live,
    ):
        live.stage("fit")
        raise error
    run = store.client.get_run(live.run_id)
    assert run.info.status == status
    assert run.data.tags["gapeval.end"] == f"{type(error).__name__}: {error}".removesuffix(": ")
    assert run.data.tags["gapeval.stage"] == "fit"
    assert not store.lock_path(live.run_id).exists()


def test_a_run_that_was_stopped_is_continued(store, process) -> None:
    with pytest.raises(KeyboardInterrupt), process.track("n", experiment=EXPERIMENT, key="again") as first:
        raise KeyboardInterrupt
    with process.track("n", experiment=EXPERIMENT, key="again") as second:
        assert try_lock(store.lock_path(begun(second))) is None  # it is held
    assert second.run_id == first.run_id
    assert store.client.get_run(second.run_id).info.status == "FINISHED"


def test_a_refusal_is_raised_here(store, process) -> None:
    gone = store.client.create_experiment("gapeval/gone", (store.artifacts / "gone").as_uri())
    store.client.delete_experiment(gone)
    entered = []
    for in_block in (begun, lambda live: live.finish(None), lambda live: None):
        with (
            pytest.raises(UserError, match="experiment 'gapeval/gone' is deleted"),
            process.track("n", experiment="gapeval/gone", key="k") as live,
        ):
            entered.append(live)
            in_block(live)
    assert len(entered) == 3  # it waits for nothing
    with pytest.raises(ZeroDivisionError), process.track("n", experiment="gapeval/gone", key="k"):
        raise ZeroDivisionError  # the first thing that went wrong is told
    with process.track("n", experiment=EXPERIMENT, key="refused") as live:
        assert begun(live) and live.lost is None  # the process is as good as before


def test_a_refused_run_ends_at_once_and_loses_no_answer(store, process, monkeypatch) -> None:
    bench = parts("f", seed=7)
    bench.umm.name = "refused"
    experiment = experiment_name("refused")
    gone = store.client.create_experiment(experiment, (store.artifacts / "refused").as_uri())
    store.client.delete_experiment(gone)
    hear, phases = FarRun.hear, []

    def after_the_first_answers(run: FarRun) -> None:
        while run._process._replies.empty() and phases:
            time.sleep(0.01)
        if phases.count("before") > 1:
            hear(run)

    with monkeypatch.context() as patch:
        patch.setattr(FarRun, "hear", after_the_first_answers)
        with pytest.raises(UserError, match="'gapeval/refused' is deleted"):
            go(store, bench, process.track, phases.append)
    asked = sum(bench.umm.calls.values())
    assert set(phases) == {"before"} and asked > 0
    store.client.restore_experiment(gone)
    assert go(store, bench, process.track).run_id is not None
    whole = parts("f", seed=8)
    go(store, whole, process.track)
    assert sum(bench.umm.calls.values()) == sum(whole.umm.calls.values())


def test_what_goes_wrong_there_costs_no_result(store, process, tmp_path, caplog) -> None:
    """A call that breaks in the other process ends its run; this one goes on, and the next one is whole."""
    said: list[str] = []
    with process.track("n", experiment=EXPERIMENT, key="breaks", say=said.append) as live:
        process.send(do="ahead", outcome="{}", folder=str(tmp_path))
        live.log(Outcome.model_construct(), tmp_path)
        assert live.finish(None) is False
    (warning,) = said
    assert "gapeval-lab sync" in warning and "ValidationError" in warning and live.lost is not None
    assert store.client.get_run(live.run_id).info.status == "FAILED"
    assert go(store, parts("h"), process.track).run_id is not None


def test_a_store_that_can_never_be_used_is_told(tmp_path) -> None:
    secret = "hunter2"
    store = Store(tmp_path, f"gopher://me:{secret}@somewhere/x")
    with beside(store) as made:
        shown = Path(f"/proc/{made._process.pid}/cmdline")
        if shown.exists():
            assert secret not in shown.read_text()
        with pytest.raises(UserError, match="somewhere") as refused:
            go(store, parts("f"), made.track)
    assert secret not in str(refused.value)
    assert made._process.returncode is not None


def test_a_place_that_can_never_be_used_is_told_before_anything_is_started(tmp_path) -> None:
    for store in (Store(tmp_path, str(tmp_path)), Store(Path("/proc/nowhere"), "sqlite:////proc/m.db")):
        with pytest.raises(UserError, match="plain folder|cannot write"), beside(store):
            raise AssertionError("the block is entered")


def test_a_process_that_is_killed_costs_no_result(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store, said = Store.open(tmp_path), []
    with beside(store) as made:

        def kill(phase: str, done: int, total: int) -> None:
            if phase == "after" and made._process.poll() is None:
                begun(made._run)
                made._process.kill()
                made._process.wait()

        done = tracked_run(parts("f"), store=store, on_progress=kill, say=said.append, track=made.track)
    (warning,) = said
    assert ENDED in warning and "gapeval-lab sync" in warning
    assert done.run_id is None and done.outcome.shift is not None
    opened = Marker.read(done.place).open_in(store)
    assert opened is not None
    store.check()
    assert [one.what for one in sync(store, outcome_folders(store.folder))] == ["logged"]
    assert Marker.read(done.place).whole_in(store) == opened  # the same run, taken up
    assert store.client.get_run(opened).info.status == "FINISHED"


LEFT = """
import os, sys, time
from pathlib import Path
from gapeval_lab.tracking_process import beside
from gapeval_lab.tracking_store import Store

with beside(Store.open(Path(sys.argv[1]))) as tracker:
    with tracker.track("n", experiment="gapeval/scripted", key="left") as live:
        while live.run_id is None:
            live.hear()
            time.sleep(0.01)
        Path(sys.argv[2]).write_text(f"{live.run_id} whole")
        time.sleep(600)
"""


def test_the_next_command_waits_for_a_process_that_is_about_to_end(store, process, tmp_path) -> None:
    """One that is starved of the processor ends late: its runs are ended then, not left alone as alive."""
    made = store.client.create_run(store.experiment(EXPERIMENT)).info.run_id
    path, master = store.lock_path(made), tmp_path / "master"
    tags = {"gapeval.host": socket.gethostname(), "gapeval.lock": str(path)}
    for key, value in tags.items():
        store.client.set_tag(made, key, value)
    lock, held = try_lock(path), try_lock(master)
    assert lock is not None and held is not None
    name_master(lock, master)
    assert store.reconcile() == []  # its master lives
    held.close()
    threading.Timer(0.3, lock.close).start()
    assert store.reconcile() == [made]
    assert not path.exists() and not master.exists()
    with process.track("n", experiment=EXPERIMENT, key="master") as live:
        named = Path(store.lock_path(begun(live)).read_text())
        assert named.exists() and try_lock(named) is None
        assert store.reconcile() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_ends_with_the_one_that_asked_for_it(store, tmp_path, number) -> None:
    told = tmp_path / "told"
    parent = subprocess.Popen([sys.executable, "-c", LEFT, str(store.root), str(told)])
    while not (told.exists() and " " in told.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    run_id, _ = told.read_text().split()
    parent.send_signal(number)
    assert parent.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
    # Killed, it leaves a run that the next command ends; asked to stop, it has ended its run itself.
    assert store.reconcile() == ([run_id] if number == signal.SIGKILL else [])
    assert store.client.get_run(run_id).info.status == "KILLED"


def test_warnings_of_the_other_process_are_logged_here(process, caplog) -> None:
    """What is logged there goes through our own logging, above a progress bar and not across it."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        stream.write('{"log": ["gapeval_lab.tracking_traces", 30, "no traces: 100 %"]}\n')
    with caplog.at_level(logging.WARNING):
        process._listen(os.fdopen(read))
    assert [(one.name, one.getMessage()) for one in caplog.records] == [
        ("gapeval_lab.tracking_traces", "no traces: 100 %")
    ]
    assert process._replies.get() is None


def test_what_broke_before_the_run_is_told_where_nothing_can_be_logged(tmp_path, monkeypatch) -> None:
    """A defect while the store is prepared costs no result either, and its words are not lost."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    broken = tmp_path / "modules"
    broken.mkdir()
    (broken / "mlflow.py").write_text("raise ZeroDivisionError('in MLflow')")
    monkeypatch.setenv("PYTHONPATH", f"{broken}:{os.environ.get('PYTHONPATH', '')}")
    said: list[str] = []
    store = Store.open(tmp_path / "home")
    with beside(store) as made:
        done = tracked_run(
            parts("f"), store=store, on_progress=lambda *_: None, say=said.append, track=made.track
        )
    (warning,) = said
    assert "in MLflow" in warning and done.run_id is None and done.outcome.shift is not None
