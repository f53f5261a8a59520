"""A trace per item on a real store, read back through MLflow's public client."""

import io
import os
from pathlib import Path

import pytest
from factories import make_outcome
from PIL import Image

from gapeval_lab import tracking_traces, tracking_traces_sql
from gapeval_lab.outcome import Outcome
from gapeval_lab.tracking import baseline, experiment_name, track
from gapeval_lab.tracking_store import Store
from gapeval_lab.tracking_tables import pairs
from gapeval_lab.tracking_traces import COUNT, changed, complete, item_traces, log_traces

EXPERIMENT = experiment_name("tinyworld-janus")


@pytest.fixture(scope="module")
def logged(store: Store, tmp_path_factory: pytest.TempPathFactory):
    """An edit outcome, logged; (run, outcome, folder)."""
    folder = tmp_path_factory.mktemp("logged")
    outcome = make_outcome(folder)
    with track(store, "working title", experiment=EXPERIMENT, key="logged") as live:
        live.log(outcome, folder)
    return store.client.get_run(live.run_id), outcome, folder


def traces_of(store: Store, run, *, spans: bool = True):
    """Item id -> trace, of a run's."""
    found = store.client.search_traces(
        locations=[run.info.experiment_id], run_id=run.info.run_id, max_results=500, include_spans=spans
    )
    if not spans:
        return {trace.info.trace_id: trace for trace in found}
    return {trace.data.spans[0].inputs["item"]: trace for trace in found}


def picture_of(store: Store, trace) -> Image.Image:
    """What the UI shows: the file that the reference in the outputs names."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracing.attachments import Attachment

    named = Attachment.parse_ref(trace.data.spans[0].outputs["picture"])
    assert named is not None and named["trace_id"] == trace.info.trace_id
    repository = get_artifact_repository(trace.info.tags["mlflow.artifactLocation"], tracking_uri=store.uri)
    content = Path(repository.download_artifacts(f"attachments/{named['attachment_id']}")).read_bytes()
    assert len(content) == named["size"] and named["content_type"] == "image/png"
    return Image.open(io.BytesIO(content))


def assert_traces(store: Store, run, rows, folder: Path) -> None:
    """One whole trace per row, that says what the row says."""
    found = traces_of(store, run)
    assert set(found) == {row.id for row in rows}
    for row in rows:
        trace = found[row.id]
        root, *parts = trace.data.spans
        assert root.inputs == {
            "item": row.id, "question": row.question, "draw": row.draw_prompt,
        }  # fmt: skip
        assert trace.info.tags["category"] == row.category
        assert root.parent_id is None and {span.parent_id for span in parts} == {root.span_id}
        assert [span.name for span in parts] == ["understanding", "generation"]
        assert parts[0].outputs == {"answer": row.answer} and root.outputs["answer"] == row.answer
        said = {one.name: one.feedback.value for one in trace.info.assessments}
        wanted = {"understanding": row.understanding, "generation": row.generation}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if len(wanted) == 2:
            cells = {(True, True): "both", (True, False): "und_only", (False, True): "gen_only"}
            wanted["outcome"] = cells.get((row.understanding, row.generation), "neither")
        assert said == wanted
        assert {one.source.source_type for one in trace.info.assessments} <= {"CODE"}
        with Image.open(folder / row.picture) as drawn:
            shown = picture_of(store, trace).convert("RGB")
            assert shown.resize(drawn.size, Image.Resampling.NEAREST).tobytes() == drawn.tobytes()
    assert run.data.tags[COUNT] == f"{len(rows)} of {len(rows)}"


def test_every_item_has_a_trace_after_and_its_baseline_one_before(store, logged):
    run, outcome, folder = logged
    base = store.client.get_run(run.data.tags["gapeval.baseline_run_id"])
    assert_traces(store, run, outcome.after.rows, folder)
    assert_traces(store, base, outcome.before.rows, folder)
    unscored = [row for row in outcome.before.rows if None in (row.understanding, row.generation)]
    assert unscored  # else this shows nothing about them


def test_both_runs_pair_and_what_changed_comes_first(store, logged):
    """The UI pairs by equal inputs, and shows the newest first."""
    run, outcome, _ = logged
    base = store.client.get_run(run.data.tags["gapeval.baseline_run_id"])
    ours, theirs = traces_of(store, run), traces_of(store, base)
    asked = "mlflow.spanInputs"
    for name, trace in ours.items():
        twin = theirs[name]
        assert trace.data.spans[0]._span.attributes[asked] == twin.data.spans[0]._span.attributes[asked]
        assert trace.info.request_preview == twin.info.request_preview
    flipped = changed(pairs(outcome))
    newest = sorted(ours, key=lambda name: -ours[name].info.request_time)
    assert 0 < len(flipped) < len(ours) and set(newest[: len(flipped)]) == flipped
    link = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/traces?workflowType="
    assert (
        f"{link}machine_learning&compareToRunUuid={base.info.run_id})" in run.data.tags["mlflow.note.content"]
    )


def test_repeating_adds_none_and_brings_back_what_is_missing(store, logged):
    run, outcome, folder = logged
    found = pairs(outcome)
    before = set(traces_of(store, run, spans=False))
    lost = sorted(before)[:3]
    store.client.delete_traces(run.info.experiment_id, trace_ids=lost)
    count = log_traces(store, run, outcome, found, folder=folder, first=())
    assert count == f"{len(found)} of {len(found)}" and set(traces_of(store, run, spans=False)) == before
    assert_traces(store, run, outcome.after.rows, folder)


def test_without_known_tables_the_client_writes_the_same(store, logged, monkeypatch):
    """Another MLflow version: its own way, slower, with the same content; repeated it adds nothing."""
    run, outcome, folder = logged
    live = store.client.create_run(run.info.experiment_id, run_name="by the client")
    monkeypatch.setattr(tracking_traces_sql, "KNOWN", ())
    some = outcome.model_copy(update={"after": None})
    few = pairs(some)[:6]
    for _ in range(2):
        count = log_traces(store, live, some, few, folder=folder, first=(), patient=True)
        assert count == "6 of 6"
    store.client.set_tag(live.info.run_id, COUNT, count)
    assert_traces(store, store.client.get_run(live.info.run_id), [pair.before for pair in few], folder)


def test_where_traces_are_dear_those_that_changed_are_there(store, logged, monkeypatch):
    run, outcome, folder = logged
    live = store.client.create_run(run.info.experiment_id, run_name="dear")
    sent: list[str] = []
    monkeypatch.setattr(tracking_traces_sql, "KNOWN", ())
    monkeypatch.setattr(tracking_traces, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(tracking_traces, "SHARE", 0.0)
    monkeypatch.setattr(tracking_traces, "CHUNK", 4)
    monkeypatch.setattr(
        tracking_traces, "_send", lambda _s, _r, made: sent.extend(one.info.trace_id for one in made)
    )
    found = pairs(outcome)
    first = changed(found)
    count = log_traces(store, live, outcome, found, folder=folder, first=first)
    wanted = item_traces(live.info.run_id, found, folder=folder, first=first)
    assert len(first) <= len(sent) < len(first) + 4 < len(found)
    assert sent == [trace.trace_id for trace in wanted[: len(sent)]]
    assert count == f"{len(sent)} of {len(found)}" and not complete(count)
    assert complete("20 of 20") and not complete(None) and not complete("")


def test_traces_that_fail_do_not_fail_the_run(store, tmp_path, monkeypatch, caplog):
    outcome = make_outcome(tmp_path, seed=31)
    baseline(store, outcome, tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such column")

    monkeypatch.setattr(tracking_traces, "insert", broken)
    with track(store, "n", experiment=EXPERIMENT, key="broken") as live:
        live.log(outcome, tmp_path)
    run = store.client.get_run(live.run_id)
    assert (run.info.status, COUNT in run.data.tags) == ("FINISHED", False)
    assert run.data.metrics["delta/gap_score"] and "/traces?" not in run.data.tags["mlflow.note.content"]
    (line,) = [one for one in caplog.records if "traces" in one.message]
    assert "no such column" in line.message


def test_a_baseline_of_before_there_were_traces_gets_them(store, tmp_path):
    outcome = make_outcome(tmp_path, seed=32, per_category=2)
    base = store.client.get_run(baseline(store, outcome, tmp_path))
    store.client.delete_traces(base.info.experiment_id, trace_ids=list(traces_of(store, base, spans=False)))
    store.client.delete_tag(base.info.run_id, COUNT)
    assert baseline(store, outcome, tmp_path) == base.info.run_id
    assert_traces(store, store.client.get_run(base.info.run_id), outcome.before.rows, tmp_path)


def test_a_trial_has_none(store, tmp_path):
    outcome = make_outcome(tmp_path, kind="trial", per_category=2)
    with track(store, "#001", experiment=EXPERIMENT, key="trial") as live:
        live.log(outcome, tmp_path)
    run = store.client.get_run(live.run_id)
    assert not traces_of(store, run, spans=False) and COUNT not in run.data.tags


@pytest.mark.parametrize(("side", "shown"), [(48, 192), (160, 160), (512, 512), (1024, 512)])
def test_pictures_are_shown_neither_tiny_nor_huge(tmp_path, side, shown):
    picture = Image.effect_noise((side, side), 60).convert("RGB")
    picture.save(tmp_path / "a.png")
    content = tracking_traces._attachment(tmp_path / "a.png")
    assert content is not None and Image.open(io.BytesIO(content)).size == (shown, shown)
    if side == shown:
        assert content == (tmp_path / "a.png").read_bytes()
    assert tracking_traces._attachment(None) is None


def test_traces_of_a_whole_benchmark_take_little_work(store, tmp_path):
    """480 items; CPU time, since the machine may be busy with other work."""
    outcome: Outcome = make_outcome(tmp_path, per_category=120, seed=33)
    run = store.client.create_run(store.experiment(EXPERIMENT))
    start = sum(os.times()[:2])
    count = log_traces(store, run, outcome, pairs(outcome), folder=tmp_path, first=())
    assert count == "480 of 480" and sum(os.times()[:2]) - start < 2.0
