"""Filters read without MLflow give MLflow's own answers; what is no filter is refused at the right place."""

import pytest

from gapeval_lab.errors import UserError
from gapeval_lab.tracking_filter import parse
from gapeval_lab.tracking_read import metric_names, read_runs
from gapeval_lab.tracking_store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    """Six runs in two experiments of ours, and one elsewhere."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        made = Store.open(tmp_path_factory.mktemp("store"))
        made.check()
        client = made.client
        ids = [made.experiment("gapeval/one"), made.experiment("gapeval/two"), client.create_experiment("x")]
        for number in range(7):
            experiment = ids[2] if number == 6 else ids[number % 2]
            name = f"Run_{number}" if number % 2 else f"run-{number}"
            run_id = client.create_run(experiment, run_name=name, start_time=1000 + number).info.run_id
            metrics = [Metric("delta/gap_score", (number - 3) / 10, 0, 0), Metric("plain", number, 0, 0)]
            metrics += [Metric("odd", float("nan"), 0, 0)] if number == 1 else []
            metrics += [Metric("odd", 0.0, 0, 0)] if number == 2 else []
            params = [Param("intervention.lr", str(number)), Param("quoted", "a 'q' value")]
            tags = [RunTag("method", ("rome", "ROME", "lora")[number % 3])]
            tags += [RunTag("note", "50% of_it")] if number == 4 else []
            client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
            if number < 2:
                dataset = Dataset(name=f"items-{number}", digest="d1", source_type="local", source="{}")
                context = [InputTag("mlflow.data.context", "eval")]
                client.log_inputs(run_id, datasets=[DatasetInput(dataset, context)])
            client.set_terminated(run_id, "FAILED" if number == 5 else "FINISHED")
        yield made


def mlflows(store: Store, where: str) -> list[str]:
    """MLflow's own answer, in the order of start."""
    ids = [experiment_id for _, experiment_id in store.experiments()]
    return [run.info.run_name for run in store.client.search_runs(ids, where, order_by=["start_time ASC"])]


@pytest.mark.parametrize(
    "where",
    [
        "",
        "metrics.`delta/gap_score` < 0",
        "metrics.`delta/gap_score` <= -0.1 and tags.method = 'rome'",
        'metric."delta/gap_score" >= 1e-1',
        "metrics.plain = 3",
        "metrics.plain != 3.0",
        "metrics.plain>.5",
        "metrics.odd = 0",
        "metrics.odd != 5",
        "metrics.odd <= 0",
        "params.intervention.lr = '2'",
        'params."intervention.lr" != "2"',
        "parameters.`intervention.lr` LIKE '%2%' AND metrics.plain > 0",
        "tags.method LIKE 'ro%'",
        "tag.method ilike 'RO%'",
        "tags.method like 'ROME'",
        "tags.`method` != 'rome'",
        "tags.note = '50% of_it'",
        "tags.note LIKE '50_ of%'",
        "tags.note IS NULL",
        "tags.note is not null",
        "params.missing IS NULL",
        """params.quoted = "a 'q' value" """,
        "attributes.status = 'FAILED'",
        "status != 'FINISHED'",
        "attributes.run_name LIKE 'run%'",
        "run_name ILIKE 'run%'",
        "attributes.`run name` = 'run-2'",
        "attributes.start_time > 1002",
        "created <= 1002",
        "dataset.name = 'items-0'",
        "datasets.digest LIKE 'd%'",
        "dataset.name IN ('items-0', 'items-9')",
        "dataset.context = 'eval'",
        "tags.method = 'nothing'",
        "  metrics.plain   >   1   and   metrics.plain < 4  ",
    ],
)
def test_the_answers_are_mlflows(store, where) -> None:
    assert [run.name for run in read_runs(store, where=where)] == mlflows(store, where)


def test_runs_by_their_ids(store) -> None:
    ids = [run.run_id for run in read_runs(store)]
    for where in (f"attributes.run_id IN ('{ids[1]}', '{ids[3]}')", f"run_id NOT IN ('{ids[0]}')"):
        assert [run.name for run in read_runs(store, where=where)] == mlflows(store, where)


def test_what_is_asked_for_is_read(store) -> None:
    run = read_runs(
        store, where="metrics.plain = 2", tags=["method"], params=["intervention."], metrics=["odd"]
    )[0]
    assert (run.tags, run.params, run.metrics) == ({"method": "lora"}, {"intervention.lr": "2"}, {"odd": 0.0})
    assert (run.status, run.started) == ("FINISHED", 1002)
    assert metric_names(store) == ["delta/gap_score", "odd", "plain"]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("metrik.loss < 1", r"at character 1 .*did you mean metrics?\?"),
        ("loss < 1", r"at character 1 .*'loss' is no attribute"),
        ("metrics.loss < 'a'", r"at character 16 .*number is expected"),
        ("metrics.loss LIKE 1", r"at character 14 .*not by LIKE"),
        ("metrics.delta/gap < 1", r"at character 14 .*backticks"),
        ("metrics.loss", r"at the end: a comparison"),
        ("tags.a = rome", r"at character 10 .*text in quotes"),
        ("tags.a = 'rome", r"at character 10 .*text in quotes"),
        ("tags.a = 'b' or tags.a = 'c'", r"at character 14 .*no OR"),
        ("(tags.a = 'b')", r"at character 1 .*name is expected"),
        ("tags.a = 'b' and", r"at the end: a name|at the end"),
        ("tags.a IN ('b')", r"at character 8 .*not by IN"),
        ("run_id IN ('b'", r"at the end: ',' or '\)'"),
        ("dataset.size = 'b'", r"'size' is no dataset"),
        ("tags.a > 'b'", r"not by >"),
        ("params.a == 'b'", r"at character 11"),
    ],
)
def test_what_is_no_filter_is_refused_at_its_place(where, said) -> None:
    with pytest.raises(UserError, match=said):
        parse(where)


def test_a_place_where_nothing_was_stored_has_no_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert read_runs(Store.open(tmp_path), where="tags.a = 'b'") == []


def test_another_file_than_a_database_is_one_message(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store.open(tmp_path)
    assert store.database is not None
    store.database.parent.mkdir()
    store.database.write_text("this is no database, and long enough to be told from one " * 20)
    with pytest.raises(UserError, match="cannot be read"):
        read_runs(store)


def test_through_mlflows_client_the_runs_are_the_same(store, monkeypatch) -> None:
    about = {"tags": ["method"], "params": ["intervention."], "metrics": ["plain"]}
    monkeypatch.setattr(
        "gapeval_lab.tracking_read._as_expected", lambda _: False
    )  # tables of another version
    monkeypatch.setattr("gapeval_lab.tracking_read.PAGE", 2)
    found = read_runs(store, where="metrics.plain > 0", **about)
    monkeypatch.undo()
    assert found == read_runs(store, where="metrics.plain > 0", **about)
    assert len(found) == 5
