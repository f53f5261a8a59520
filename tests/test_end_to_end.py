"""Whole runs on the shipped model, an edit and an injection, through the command line."""

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clean_processes import RUN, clean, command_line
from engines import NEEDS_EASYEDIT
from page_reader import PageReader, wrong_numbers

from gapeval_lab import cli
from gapeval_lab.tracking_store import Store

FACTS, ITEMS = 2, 8
EDIT = (
    *("--recipe", "rome_world_knowledge", "--limit", str(ITEMS), "evaluation.official=false"),
    *(f"facts.count={FACTS}", "intervention.moment_texts=200"),
)
INJECT = (
    *("--recipe", "lora_world_knowledge_both", "--limit", str(ITEMS), "evaluation.official=false"),
    *("controls.placebo=false", "facts.count=2", "intervention.steps=6", "intervention.batch=4"),
    *("intervention.checkpoint_every=2", "emergence.at=null", "emergence.every=3", "emergence.items=8"),
)


def finish(home: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Run to the end in this process, which has the library imported; what it printed and its Outcome."""
    words = ["gapeval-lab", "edit", "--json", str(home / "outcome.json"), *arguments]
    home.mkdir(exist_ok=True)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", words)
        patch.setenv("GAPEVAL_LAB_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code
    return printed.getvalue(), json.loads((home / "outcome.json").read_text())


def numbers(outcome: dict[str, Any]) -> dict[str, Any]:
    """Everything that must not depend on when and where the run was."""
    left_out = {"run_id", "started", "seconds", "peak_memory_gib", "git_revision", "recipe_text"}
    return {key: value for key, value in outcome.items() if key not in left_out}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    home = tmp_path_factory.mktemp("whole")
    return home, *finish(home, *EDIT)


def test_the_run_prints_and_stores_what_shifted(whole: tuple[Path, str, dict[str, Any]]) -> None:
    home, printed, outcome = whole
    assert "Edit quality" in printed and "reliability/text" in printed and "identity" in printed
    assert outcome["reverted"] is True
    assert outcome["weights_fingerprint_reverted"] == outcome["weights_fingerprint"]
    assert outcome["identity_shift"]["gap"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert outcome["identity_shift"]["changed_items"] == 0
    assert outcome["quality"]["reliability"]["text"]["after"]["value"] >= 0.95
    assert len(list((home / "mlruns" / "outcomes").glob("*/outcome.json"))) == 1
    assert not list((home / "mlruns" / "work").glob("*/*"))


def test_mlflow_holds_the_same_numbers(whole: tuple[Path, str, dict[str, Any]]) -> None:
    from mlflow import MlflowClient

    home, _, outcome = whole
    client = MlflowClient(f"sqlite:///{home / 'mlruns' / 'mlflow.db'}")
    ids = [e.experiment_id for e in client.search_experiments() if e.name.startswith("gapeval/")]
    runs = client.search_runs(ids)
    kinds = sorted(run.data.tags["kind"] for run in runs)
    assert kinds == ["baseline", "edit"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    edited = next(run for run in runs if run.data.tags["kind"] == "edit")
    assert edited.data.metrics["delta/gap_score"] == pytest.approx(outcome["shift"]["gap"]["value"], abs=5e-5)
    assert edited.data.params["intervention.layer"] == str(outcome["recipe"]["intervention"]["layer"])


def test_the_report_of_the_run_holds_the_same_numbers(whole: tuple[Path, str, dict[str, Any]]) -> None:
    from mlflow import MlflowClient

    home, _, outcome = whole
    folder = home / "mlruns" / "outcomes" / outcome["run_id"]
    page = PageReader((folder / "report.html").read_text(encoding="utf-8"))
    client = MlflowClient(f"sqlite:///{home / 'mlruns' / 'mlflow.db'}")
    ids = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(ids, "tags.kind = 'edit'")
    history = {
        key: {point.step: point.value for point in client.get_metric_history(run.info.run_id, key)}
        for key in {one.metric for one in page.numbers} - {""}
    }
    assert wrong_numbers(page, folder / "outcome.json", history) == []
    assert len(history) > 30 and page.problems == []
    cards = [found for name, found in page.tags if name == "article"]
    assert len(cards) == len(outcome["before"]["rows"])
    assert "report.html" in {entry.path for entry in client.list_artifacts(run.info.run_id)}


def test_killed_again_and_again_it_continues_to_the_same_numbers(
    whole: tuple[Path, str, dict[str, Any]], tmp_path: Path
) -> None:
    """kill -9 after two shares of the whole's responses, the same command each time, then to its end."""
    _, _, outcome = whole
    for moment in (0.35, 0.8):
        wanted = moment * (4 * 2 * ITEMS + 2 * 2 * FACTS * 11)
        kill_when(lambda wanted=wanted: _responses(tmp_path) >= wanted, tmp_path, *EDIT)
    _, resumed = finish(tmp_path, *EDIT)
    assert numbers(resumed) == numbers(outcome)
    assert finished_kinds(tmp_path) == ["baseline", "edit"]


def test_an_injection_killed_while_it_trains_ends_with_the_same_adapter(tmp_path: Path) -> None:
    """kill -9 after some updates, then the same command again, beside a run that nobody killed."""
    one, two = tmp_path / "one", tmp_path / "two"
    printed, whole = finish(one, *INJECT)
    kill_when(lambda: bool(list(two.rglob("checkpoint.pt"))), two, *INJECT)
    assert not list(two.rglob("delta.safetensors")), "it should have been killed before its end"
    _, resumed = finish(two, *INJECT)
    assert numbers(resumed) == numbers(whole)
    assert "When the facts were learned" in printed
    assert [point["step"] for point in whole["emergence"]["points"]] == [0, 3, 6]
    assert all(point["gap"] is not None for point in whole["emergence"]["points"])
    files = [next(home.rglob("adapter/adapter_model.safetensors")).read_bytes() for home in (one, two)]
    assert files[0] == files[1]
    assert finished_kinds(two) == ["baseline", "inject"]


@NEEDS_EASYEDIT
def test_an_edit_with_easyedits_own_code(tmp_path: Path) -> None:
    """Through its recipe: facts told and drawn, weights back, and what it printed beside the run."""
    printed, outcome = finish(
        tmp_path,
        *("--recipe", "easyedit_rome_world_knowledge", "--limit", str(ITEMS), "evaluation.official=false"),
        *("facts.count=2", "controls.placebo=false"),
    )
    assert outcome["reverted"] is True and outcome["engine_logs"] == ["engine.txt"]
    told = outcome["quality"]["target_logprob"]["text"]
    assert told["after"]["value"] > told["before"]["value"] + 5
    assert set(outcome["curves"]) >= {"train/loss", *(f"loss/{fact['id']}" for fact in outcome["facts"])}
    assert "Executing ROME" not in printed and "loss " not in printed
    (kept,) = (tmp_path / "mlruns" / "outcomes").rglob("engine.txt")
    assert kept.read_text().count("Executing ROME") == 2
    (logged,) = (tmp_path / "mlruns" / "artifacts").rglob("engine.txt")  # the baseline has none
    assert logged.read_text() == kept.read_text()
    assert finished_kinds(tmp_path) == ["baseline", "edit"]


def kill_when(reached: Callable[[], bool], home: Path, *arguments: str) -> None:
    """Start a run on a store that is there, and end it with -9 as soon as something is so."""
    Store(home, f"sqlite:///{home / 'mlruns' / 'mlflow.db'}").check()
    running = clean(RUN).Process(target=command_line, args=(home, "edit", *arguments))
    running.start()
    deadline = time.monotonic() + 240
    while not reached() and running.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running.is_alive(), "it should have been killed before its end"
    running.kill()
    running.join()


def finished_kinds(home: Path) -> list[str]:
    """The kinds of the runs in a store, all of which are finished."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlruns' / 'mlflow.db'}")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids)
    assert {run.info.status for run in runs} == {"FINISHED"}
    return sorted(run.data.tags["kind"] for run in runs)


def _responses(home: Path) -> int:
    return sum(len(file.read_bytes().splitlines()) for file in (home / "mlruns").rglob("responses.jsonl"))
