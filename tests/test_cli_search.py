"""`gapeval-lab search`: what it prints, what it refuses, and one search with the embedded model."""

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from search_fake import RECIPE, FakeTrials, use_fake_plug_ins
from test_cli import call, home  # noqa: F401 (a fixture)

from gapeval_lab import registry
from gapeval_lab.recipe import LoadedRecipe
from gapeval_lab.tracking import Store

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def scripted(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """Scripted trials and their recipe; its path."""

    @contextlib.contextmanager
    def trials_of(loaded: LoadedRecipe, study: str) -> Iterator[FakeTrials]:
        yield FakeTrials(home, 0.0)

    monkeypatch.setattr(registry, "BUILT_IN", registry.BUILT_IN)
    use_fake_plug_ins()
    monkeypatch.setattr("gapeval_lab.search.trials_of", trials_of)
    monkeypatch.setattr(Store, "check", lambda store: None)
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr("gapeval_lab.search.POLL_SECONDS", 0.01)
    file = home / "searched.yaml"
    file.write_text(RECIPE)
    return file


def test_search_and_show(scripted: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    search = functools.partial(call, monkeypatch, "search", "--recipe", str(scripted), "--study", "mine")
    assert search("--trials", "3") == 0
    out = capsys.readouterr().out
    assert [line[:4] for line in out.splitlines() if line.startswith("#0")][:3] == ["#000", "#001", "#002"]
    assert "trials: 3 finished\n" in out and "searched over searched" in out
    folder = scripted.parent / "mlruns" / "optuna"
    assert f"recipe of the best: {folder / 'mine.best.yaml'}" in out
    assert search("--trials", "5") == 0
    out = capsys.readouterr().out
    assert re.findall(r"^#(\d+)  score [\d.]+ ", out, re.MULTILINE) == ["003", "004"]
    table = out[out.index("\nmine:") : out.index("recipe of the best")]
    assert "+0.2500 [+0.1000, +0.4000]" in table and "Importance" in table
    assert call(monkeypatch, "search", "--show", "mine") == 0
    assert capsys.readouterr().out == table


def test_only_the_recipes_of_those_that_win_now_are_told_and_kept(
    scripted: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = ["search.goal={score: maximize, cost/seconds: minimize}", "search.tests=1"]
    search = functools.partial(call, monkeypatch, "search", "--recipe", str(scripted), *two)
    folder = scripted.parent / "mlruns" / "optuna"

    def told() -> set[Path]:
        return {Path(found) for found in re.findall("recipe of the best: (.*)", capsys.readouterr().out)}

    assert search("--study", "mine", "--trials", "1") == 0
    first = {folder / "mine.best-000.yaml", folder / "mine.best-000.dev.yaml"}
    assert told() == first and all(file.is_file() for file in first)
    names = [
        "mine.best-of.best-000.yaml",
        "mine.best-000.best.yaml",
        "my.mine.best-000.yaml",
        "mine.best.txt",
    ]
    others = {folder / name for name in (*names, "mineXbest-000.yaml")}
    for file in others:
        file.touch()
    assert search("--study", "mine", "--trials", "9") == 0
    now = told()
    assert len(now) == 2 and not now & first
    assert set(folder.glob("m*.yaml")) | {folder / "mine.best.txt"} == now | others


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --recipe R to search, or --show STUDY"),
        (["--recipe", "x", "--show", "y"], "give --recipe R to search, or --show STUDY"),
        (["--show", "nothing"], "--show: there is no study 'nothing'"),
        (["--show", "nothing", "--storage", "not/there"], "--show: there is no study 'nothing'"),
        (["--recipe", "baseline", "--study", "a/b"], "--study: 'a/b' cannot be a name"),
        (["--recipe", "SCRIPTED", "search=null"], "'searched' has no search section"),
        (["--recipe", "SCRIPTED", "search.goal={scor: maximize}"], "did you mean 'score'?"),
        (
            ["--recipe", "SCRIPTED", "search.space.intervention.lr.low=5"],
            "the range from 5.0 to 1.0 is empty",
        ),
        (["--recipe", "SCRIPTED", "search.space.intervention.lr.low=0"], "search.space.intervention.lr: log"),
        (["--recipe", "SCRIPTED", "--storage", "grpc://127.0.0.1:1"], "--storage: grpc://127.0.0.1:1"),
        (["--recipe", "SCRIPTED", "--storage", "/dev/null/x"], "--storage: cannot write /dev/null/x"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str], said: str, scripted: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [str(scripted) if one == "SCRIPTED" else one for one in arguments]
    assert call(monkeypatch, "search", *given) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert not (scripted.parent / "log.jsonl").exists() and not Path("not").exists()


def test_a_search_with_the_embedded_model(
    home: Path,  # noqa: F811
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = (
        "{intervention.lr: {type: float, low: 0.1, high: 0.4}, "
        "intervention.layer: {type: int, low: 0, high: 2}}"
    )
    block = f"search={{goal: {{edit/reliability/text: maximize}}, pruner: {{use: median}}, space: {space}}}"
    small = ["facts.count=1", "evaluation.limit=8", "evaluation.replicates=50", "evaluation.official=false"]
    small += ["controls.placebo=false", "controls.identity=false", "intervention.steps=3"]
    small += ["intervention.moment_texts=200"]
    arguments = ["search", "--recipe", "rome_world_knowledge", "--trials", "2", *small, block]
    assert call(monkeypatch, *arguments) == 0
    assert "trials: 2 finished" in capsys.readouterr().out
    client = Store.open().client
    ids = [e.experiment_id for e in client.search_experiments() if e.name.endswith("/searches")]
    runs = client.search_runs(ids)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [run.info.status for run in runs] == ["FINISHED"] * 4 and len(below) == 3
    trials = [run for run in below if run.data.tags["kind"] == "trial"]
    assert {run.data.params["facts.split"] for run in trials} == {"dev"} and len(trials) == 2
    assert {run.data.params["facts.split"] for run in below if run not in trials} == {"test"}
    assert "**Search `rome_world_knowledge`**" in parent.data.tags["mlflow.note.content"]
    figures = {entry.path for entry in client.list_artifacts(parent.info.run_id, "figures")}
    assert "figures/history.svg" in figures
    on_dev = home / "mlruns" / "optuna" / "rome_world_knowledge.best.dev.yaml"
    best = yaml.safe_load(on_dev.read_text())
    (winner,) = [r for r in trials if float(r.data.params["intervention.lr"]) == best["intervention"]["lr"]]
    assert call(monkeypatch, "edit", "--recipe", str(on_dev)) == 0
    again = client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.kind = 'edit'")
    own = [run for run in again if run.data.params["facts.split"] == "dev"]
    measured = {
        key: value for key, value in winner.data.metrics.items() if key.split("/")[0] in ("edit", "after")
    }
    assert measured and {key: own[0].data.metrics[key] for key in measured} == measured
