"""The life of a run and its logging, on a real SQLite store."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from clean_processes import STORE, clean
from factories import CATEGORIES, make_outcome, without_after
from page_outcomes import full_outcome
from page_reader import PageReader, wrong_numbers

from gapeval_lab import tracking_log, tracking_system
from gapeval_lab.errors import UserError
from gapeval_lab.outcome import Outcome
from gapeval_lab.pages.run_page import write_report
from gapeval_lab.tracking import Stopped, baseline, baseline_fingerprint, experiment_name, track
from gapeval_lab.tracking_log import set_tags
from gapeval_lab.tracking_scores import log_score
from gapeval_lab.tracking_store import Store
from gapeval_lab.tracking_system import node_id, system_metrics

EXPERIMENT = experiment_name("tinyworld-janus")


@pytest.fixture(scope="module")
def store(store: Store):
    """Not for us: MLflow's own `load_table` looks runs up where this variable says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store.uri)
        yield store


@pytest.fixture(scope="module")
def logged(store: Store, tmp_path_factory: pytest.TempPathFactory):
    """An edit outcome, logged; (run, outcome, folder)."""
    folder = tmp_path_factory.mktemp("logged")
    outcome = make_outcome(folder)
    with track(store, "working title", experiment=EXPERIMENT, key="logged") as live:
        live.stage("before")
        live.log(outcome, folder)
    return store.client.get_run(live.run_id), outcome, folder


def status(store: Store, run_id: str) -> str:
    return store.client.get_run(run_id).info.status


def test_a_run_is_running_inside_and_finished_after(store):
    with track(store, "a name", experiment=EXPERIMENT, key="k1") as live:
        live.stage("fit")
        run = store.client.get_run(live.run_id)
        assert run.info.status == "RUNNING"
        assert run.info.run_name == "a name"
        assert run.data.tags["gapeval.stage"] == "fit"
        assert abs(float(run.data.tags["gapeval.heartbeat"]) - time.time()) < 60
        assert run.data.tags["gapeval.host"]
        assert store.reconcile() == []  # alive: its lock is held
    assert status(store, live.run_id) == "FINISHED"
    assert not store.lock_path(live.run_id).exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (UserError("field: wrong"), "FAILED")],
)
def test_how_a_run_ends_when_its_block_raises(store, error, expected):
    with (
        pytest.raises(type(error)),
        track(store, "n", experiment=EXPERIMENT, key=f"end-{type(error).__name__}") as live,
    ):
        raise error
    run = store.client.get_run(live.run_id)
    assert run.info.status == expected
    assert type(error).__name__ in run.data.tags["gapeval.end"]


def test_sigterm_kills_the_run_properly_and_restores_the_handler(store):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as raised, track(store, "n", experiment=EXPERIMENT, key="term") as live:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert raised.value.code == 143
    assert status(store, live.run_id) == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_first_error_is_seen_when_the_run_cannot_be_closed(store, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("disk full")

    with (
        pytest.raises(ValueError, match="the real one") as raised,
        track(store, "n", experiment=EXPERIMENT, key="note"),
    ):
        monkeypatch.setattr(store.client, "set_terminated", refuse)
        raise ValueError("the real one")
    assert any("disk full" in note for note in raised.value.__notes__)
    monkeypatch.undo()
    assert len(store.reconcile()) == 1


def test_a_killed_run_is_continued_and_others_are_not(store):
    def once(key: str, error: BaseException | None = None) -> tuple[str, bool]:
        try:
            with track(store, "n", experiment=EXPERIMENT, key=key) as live:
                if error:
                    raise error
        except (KeyboardInterrupt, ValueError):
            pass
        return live.run_id, live.resumed

    first, _ = once("same", KeyboardInterrupt())
    assert once("other")[0] != first
    assert once("same", ValueError()) == (first, True)  # taken up, and failed this time
    third, resumed = once("same")
    assert (third != first, resumed) == (True, False)
    assert once("same")[0] not in (first, third)  # a finished run is never taken up
    assert "gapeval.end" not in store.client.get_run(third).data.tags


def test_a_named_run_is_resumed_or_refused(store):
    with pytest.raises(ValueError), track(store, "n", experiment=EXPERIMENT, key="named") as live:
        raise ValueError
    with track(store, "n", experiment=EXPERIMENT, key="named", resume_id=live.run_id) as again:
        assert again.run_id == live.run_id
        with (
            pytest.raises(UserError, match="still running"),
            track(store, "n", experiment=EXPERIMENT, key="named", resume_id=live.run_id),
        ):
            pass
    run = store.client.get_run(live.run_id)
    assert (run.info.status, "gapeval.end" in run.data.tags) == ("FINISHED", False)
    for run_id, words in ((live.run_id, "is finished"), ("0" * 32, "there is no run")):
        with (
            pytest.raises(UserError, match=words),
            track(store, "n", experiment=EXPERIMENT, key="named", resume_id=run_id),
        ):
            pass


def _killed(root: Path, folder: Path, told: Path) -> None:
    """A process that ends with -9 while it logs."""
    tracking_log._log_probes = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with track(Store.open(root), "n", experiment=EXPERIMENT, key="kill9") as live:
        told.write_text(live.run_id)
        live.log(Outcome.load(folder), folder)


def test_kill_9_while_logging_then_the_same_command_again(store, tmp_path):
    """The baseline is there, so the kill hits the edit run itself, after its metrics are written."""
    outcome = make_outcome(tmp_path, seed=9)
    baseline(store, outcome, tmp_path)
    told = tmp_path / "run"
    child = clean(STORE).Process(target=_killed, args=(store.root, tmp_path, told))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    run_id = told.read_text()
    client = store.client
    assert status(store, run_id) == "RUNNING"
    assert "delta/gap_score" in client.get_run(run_id).data.metrics
    assert store.reconcile() == [run_id]
    killed = client.get_run(run_id)
    assert killed.info.status == "KILLED"
    assert killed.data.tags["gapeval.end"] == "owner gone during log"
    running = client.search_runs([killed.info.experiment_id], "attributes.status = 'RUNNING'")
    assert list(running) == []

    with track(store, "n", experiment=EXPERIMENT, key="kill9") as live:
        assert (live.run_id, live.resumed) == (run_id, True)
        live.log(outcome, tmp_path)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert_logged_once(store, run, outcome)


def assert_logged_once(store: Store, run, outcome: Outcome) -> None:
    for key in run.data.metrics:
        steps = [point.step for point in store.client.get_metric_history(run.info.run_id, key)]
        assert len(steps) == len(set(steps)), key
    names = [Path(entry.path).name for entry in store.client.list_artifacts(run.info.run_id, "images")]
    probes = [name.split("+timestamp")[0] for name in names if name.endswith(".png")]
    assert sorted(probes) == sorted(
        f"probes~{category[:3]}-000+step+{step}" for category in CATEGORIES for step in (0, 1)
    )
    models = store.client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
    )
    assert [str(model.status) for model in models] == ["READY"]
    assert len(run.outputs.model_outputs) == 1
    assert len(run.inputs.dataset_inputs) == 2
    rows = store.client.load_table(run.info.experiment_id, "tables/4_items.json", run_ids=[run.info.run_id])
    assert len(rows) == len(outcome.before.rows)


def test_logging_twice_changes_nothing(store, logged):
    run, outcome, folder = logged
    tracking_log.log_outcome(
        store,
        run.info.run_id,
        outcome=outcome,
        folder=folder,
        baseline_run_id=None,
        fingerprint=baseline_fingerprint(outcome),
    )
    again = store.client.get_run(run.info.run_id)
    assert again.data.metrics == run.data.metrics
    assert again.data.params == run.data.params
    assert_logged_once(store, again, outcome)


def test_metrics_come_in_our_order_rounded_and_few(logged):
    run, _, _ = logged
    keys = list(run.data.metrics)
    assert keys[:5] == [
        "delta/gap_score",
        "before/gap_score",
        "after/gap_score",
        "delta/on_target",
        "delta/off_target",
    ]
    assert keys[5:8] == [f"{state}/world_knowledge" for state in ("delta", "before", "after")]
    assert len(keys) <= 65
    assert run.data.metrics["delta/on_target"] == -0.142
    assert all(round(value, 4) == value for value in run.data.metrics.values())


def test_step_metrics_go_from_before_to_after(store, logged):
    run, outcome, _ = logged
    history = {
        key: [(point.step, point.value) for point in store.client.get_metric_history(run.info.run_id, key)]
        for key in ("gap/overall", "gap/world_knowledge", "train/loss")
    }
    assert history["gap/overall"] == [(0, 0.599), (1, 0.569)]
    assert history["gap/world_knowledge"] == [(0, 0.688), (1, 0.546)]
    # The mean of the two facts' curves.
    assert history["train/loss"][0] == (0, 5.5)
    assert [step for step, _ in history["train/loss"]] == list(range(10))


def test_tags_params_name_and_note(store, logged):
    run, outcome, _ = logged
    tags = run.data.tags
    expected = {
        "method": "rome",
        "target": "world_knowledge",
        "direction": "text",
        "umm": "tinyworld-janus",
        "recipe": "rome_world_knowledge",
        "kind": "edit",
        "verdict": "gap closed",
        "gapeval.stage": "done",
        "gapeval.recipe_hash": outcome.recipe_hash,
    }
    assert {key: tags[key] for key in expected} == expected
    assert run.info.run_name == "rome-wk-text-L2"
    assert run.data.params["intervention.lr"] == "0.5"
    assert run.data.params["intervention.layers"] == "[2]"
    assert run.data.params["versions.torch"] == "2.13.0"
    note = tags["mlflow.note.content"].splitlines()
    assert note[0] == "**Gap closed: 0.599 → 0.569 (−0.030 [−0.035, −0.025])**"
    assert any(line.startswith("| world_knowledge (target) | 0.688 | 0.546 | −0.142") for line in note)
    assert f"#/compare-runs?runs=%5B%22{tags['gapeval.baseline_run_id']}" in note[2]


def test_tables_can_be_read_and_the_pictures_come_first(store, logged):
    run, outcome, _ = logged
    client, run_id = store.client, run.info.run_id
    paths = [entry["path"] for entry in json.loads(run.data.tags["mlflow.loggedArtifacts"])]
    assert paths == [
        "tables/1_pictures.json",
        "tables/2_category_shift.json",
        "tables/3_flips.json",
        "tables/4_items.json",
        "tables/5_facts.json",
        "tables/6_delta_norms.json",
    ]
    frames = {path: client.load_table(run.info.experiment_id, path, run_ids=[run_id]) for path in paths}
    pictures = frames[paths[0]]
    assert list(pictures.columns) == ["probe", "before | after"]
    present = {entry.path for entry in client.list_artifacts(run_id, "table_images/tables/1_pictures")}
    assert {cell["filepath"] for cell in pictures["before | after"]} == present
    flips = frames[paths[2]]
    assert list(flips.columns[:2]) == ["item_id", "outcome"]
    assert set(flips["outcome"]) <= {"und only → both", "neither → gen only", "not scored"}
    assert 0 < len(flips) < len(outcome.before.rows)
    assert frames[paths[3]]["picture_after"][0] == "pictures/after/wor-000.png"


def test_artifacts_delta_and_datasets(store, logged, tmp_path):
    run, outcome, _ = logged
    client, run_id = store.client, run.info.run_id
    for path in (
        "figures/gap_shift.svg",
        "figures/gap_shift.png",
        "recipe/recipe.yaml",
        "recipe/resolved.yaml",
    ):
        assert Path(client.download_artifacts(run_id, path, str(tmp_path))).stat().st_size > 0
    assert Outcome.load(Path(client.download_artifacts(run_id, "outcome.json", str(tmp_path)))) == outcome
    names = {(entry.dataset.name, entry.tags[0].value) for entry in run.inputs.dataset_inputs}
    assert names == {("tinyworld-20", "eval"), ("facts-wk-2", "inject")}
    assert json.loads(run.inputs.dataset_inputs[0].dataset.source)["uri"].endswith("/outcome.json")
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert model.model_type == "weight-delta"
    assert "delta/gap_score" in {metric.key for metric in model.metrics}
    assert (Path(model.artifact_location.removeprefix("file://")) / "delta.safetensors").exists()


def test_the_baseline_is_a_run_of_its_own_logged_once(store, logged, tmp_path):
    run, outcome, _ = logged
    base = store.client.get_run(run.data.tags["gapeval.baseline_run_id"])
    assert (base.info.run_name, base.data.tags["kind"], base.info.status) == (
        "baseline",
        "baseline",
        "FINISHED",
    )
    assert "verdict" not in base.data.tags
    assert base.data.tags["mlflow.runColor"] == "#8a8f98"
    assert list(base.data.metrics)[0] == "before/gap_score"
    assert base.data.tags["gapeval.fingerprint"] == run.data.tags["gapeval.fingerprint"]
    # The same measurement under another method: the same baseline. Another seed: another one.
    other = make_outcome(tmp_path, method="memit")
    recipe = outcome.recipe | {"intervention": {"use": "memit"}, "name": "other"}
    assert baseline(store, other.model_copy(update={"recipe": recipe}), tmp_path) == base.info.run_id
    changed = other.model_copy(update={"seed": 77})
    assert baseline_fingerprint(changed) != base.data.tags["gapeval.fingerprint"]
    # What is asked about facts alone is no part of it; what is asked of the benchmark is.
    prints = [
        baseline_fingerprint(other.model_copy(update={"recipe": outcome.recipe | {"evaluation": section}}))
        for section in ({"items": 8}, {"items": 8, "reasoning": {"note": "{answer}"}}, {"items": 9})
    ]
    assert prints[0] == prints[1] != prints[2]


def test_a_baseline_recipe_serves_later_edits_as_their_baseline(store, tmp_path):
    edit = make_outcome(tmp_path, seed=21)
    own = without_after(edit)
    with track(store, "n", experiment=EXPERIMENT, key="own") as live:
        live.log(own, tmp_path)
    run = store.client.get_run(live.run_id)
    assert run.info.run_name == "baseline"
    assert "Gap 0.599 [0.579, 0.619]" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["gapeval.baseline_run_id"] == live.run_id
    assert baseline(store, edit, tmp_path) == live.run_id


def test_a_trial_keeps_its_name_and_brings_no_pictures(store, tmp_path):
    outcome = make_outcome(tmp_path, kind="trial")
    searches = experiment_name("tinyworld-janus", searches=True)
    with (
        track(store, "a search", experiment=searches, key="search") as parent,
        track(store, "#004 r=32", experiment=searches, key="t4", parent_id=parent.run_id) as live,
    ):
        live.log(outcome, tmp_path)
    run = store.client.get_run(live.run_id)
    assert run.info.run_name == "#004 r=32"
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert "mlflow.runColor" not in run.data.tags
    top = {entry.path for entry in store.client.list_artifacts(live.run_id)}
    assert top == {"outcome.json", "recipe", "tables"}


def test_logging_a_whole_benchmark_takes_seconds(store, tmp_path):
    """480 items in three phases. CPU time, since the machine may be busy with other work."""
    outcome = make_outcome(tmp_path, per_category=120, seed=5)
    baseline(store, outcome, tmp_path)
    start = time.process_time()
    with track(store, "n", experiment=EXPERIMENT, key="speed") as live:
        live.log(outcome, tmp_path)
    assert time.process_time() - start < 4.0


def test_a_baseline_holds_nothing_of_the_intervention(tmp_path):
    """Also what came to the record later: an optional field is the intervention's."""
    from gapeval_lab.outcome import Emergence, EmergencePoint
    from gapeval_lab.tracking import _before_only

    points = [EmergencePoint(step=0, text=0.0, image=0.0)]
    measured = make_outcome(tmp_path).model_copy(
        update={
            "emergence": Emergence(points=points, crossings={}, lag={}),
            "adapter": "adapter",
            "kept_before": [{"text": 0.0, "image": 0.0}],
            "merge_error": 0.1,
        }
    )
    recipe = {**measured.recipe, "then": [{}], "emergence": {"every": 5}}
    baseline = _before_only(measured.model_copy(update={"recipe": recipe}))
    assert baseline.before == measured.before
    assert (baseline.emergence, baseline.adapter, baseline.merge_error) == (None, None, None)
    assert (baseline.stages, baseline.kept_before, baseline.curves) == ([], [], {})
    assert not {"then", "emergence", "intervention", "facts"} & set(baseline.recipe)


def test_a_new_score_stands_on_the_run(store, tmp_path):
    outcome, file = make_outcome(tmp_path, seed=77), tmp_path / "score.json"
    file.write_text("{}")

    def log(digest: str) -> str | None:
        numbers = {"before/gap_score": 0.25}
        return log_score(store, outcome, judge="exact", digest=digest, metrics=numbers, file=file)

    assert log("abc123") is None
    with track(store, "scored", experiment=EXPERIMENT, key="scored") as live:
        set_tags(store.client, live.run_id, {"gapeval.outcome": outcome.run_id, "kind": outcome.kind})
    assert log("abc123") == log("abc123") == log("def456") == live.run_id
    data = store.client.get_run(live.run_id).data
    assert data.metrics == {
        "judge/exact/before/gap_score": 0.25,
        "judge/exact-def456/before/gap_score": 0.25,
    }
    assert [one.path for one in store.client.list_artifacts(live.run_id, "scores")] == ["scores/score.json"]
    nowhere = Store(tmp_path / "nowhere", f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    assert log_score(nowhere, outcome, judge="x", digest="0", metrics={}, file=file) is None
    assert not (tmp_path / "nowhere").exists()


def test_every_number_of_the_report_is_the_one_in_the_record_and_in_mlflow(store, logged, tmp_path):
    """All three are read: the page as HTML, `outcome.json`, and the runs in the store."""
    full = full_outcome(tmp_path, seed=5)
    with track(store, "n", experiment=EXPERIMENT, key="report") as live:
        page_of_full = write_report(Outcome.load(tmp_path), tmp_path)
        live.log(full, tmp_path)
    (tmp_path / "from MLflow").mkdir()
    page_of_logged = write_report(Outcome.load(logged[2]), logged[2])
    for run, file in ((logged[0], page_of_logged), (store.client.get_run(live.run_id), page_of_full)):
        page, folder = PageReader(file.read_text(encoding="utf-8")), file.parent
        history = {
            key: {point.step: point.value for point in store.client.get_metric_history(run.info.run_id, key)}
            for key in {one.metric for one in page.numbers} - {""}
        }
        assert wrong_numbers(page, folder / "outcome.json", history) == []
        assert len(history) > 40
        history["delta/gap_score"] = {0: 0.5}
        problems = wrong_numbers(page, folder / "outcome.json", history)
        assert problems and all("/shift/gap/value" in one and "0.5 in MLflow" in one for one in problems)
    artifact = store.client.download_artifacts(live.run_id, "report.html", str(tmp_path / "from MLflow"))
    assert "Identity: a change of zero moved nothing at all" in Path(artifact).read_text(encoding="utf-8")


def watchers() -> set[str]:
    return {one.name for one in threading.enumerate()} & {"SystemMetricsMonitor", "gapeval-system-metrics"}


def watched(store: Store, run_id: str) -> list[int]:
    """The steps of the processor's metric, after waiting for more of them."""
    key = f"system/{node_id()}/cpu_utilization_percentage"
    return [point.step for point in store.client.get_metric_history(run_id, key)]


def test_the_machine_is_watched_and_a_continued_run_goes_on_at_its_last_step(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")

    def once(wanted: int) -> str:
        with track(store, "n", experiment=EXPERIMENT, key="watched") as live:
            with pytest.raises(ZeroDivisionError), system_metrics(store, live.run_id, after=0):
                deadline = time.monotonic() + 60
                while len(watched(store, live.run_id)) < wanted and time.monotonic() < deadline:
                    time.sleep(0.05)
                raise ZeroDivisionError
            assert watchers() == set()  # also where the block fails
            raise KeyboardInterrupt

    for wanted in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            once(wanted)
    (run,) = store.client.search_runs([store.experiment(EXPERIMENT)], "tags.`gapeval.key` = 'watched'")
    steps = watched(store, run.info.run_id)
    assert len(steps) >= 4 and steps == sorted(set(steps)) and steps[0] == 0
    assert f"system/{node_id()}/system_memory_usage_percentage" in run.data.metrics


@pytest.mark.parametrize(("value", "delay"), [(None, 60.0), ("true", 0.0), ("false", None)])
def test_a_short_run_is_not_watched_unless_it_is_asked_for(monkeypatch, value, delay):
    if value is None:
        monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", value)
    assert tracking_system._delay() == delay
