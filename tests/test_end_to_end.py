"""The main job on the shipped model, through the command line, in fresh processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = ["edit", "--recipe", "rome_world_knowledge", "--limit", "16", "evaluation.official=false"]


def command(home: Path, *extra: str) -> tuple[list[str], dict[str, str]]:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    return [sys.executable, "-m", "gapeval_lab.cli", *ARGUMENTS, *extra], environment | {
        "GAPEVAL_LAB_HOME": str(home)
    }


def finish(home: Path, *extra: str) -> tuple[str, dict[str, Any]]:
    """Run to the end; what it printed and its Outcome."""
    words, environment = command(home, "--json", str(home / "outcome.json"), *extra)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((home / "outcome.json").read_text())


def numbers(outcome: dict[str, Any]) -> dict[str, Any]:
    """Everything that must not depend on when and where the run was."""
    left_out = {"run_id", "started", "seconds", "peak_memory_gib", "git_revision", "recipe_text"}
    return {key: value for key, value in outcome.items() if key not in left_out}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    home = tmp_path_factory.mktemp("whole")
    return home, *finish(home)


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


@pytest.mark.parametrize("moment", [0.35, 0.8])
def test_killed_at_any_moment_it_continues_to_the_same_numbers(
    moment: float, whole: tuple[Path, str, dict[str, Any]], tmp_path: Path
) -> None:
    """kill -9 after a share of the whole's responses, then the same command again."""
    home, _, outcome = whole
    words, environment = command(tmp_path)
    running = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = moment * (4 * 2 * 16 + 2 * 2 * 8 * 11)
    deadline = time.monotonic() + 240
    while _responses(tmp_path) < wanted and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running.poll() is None, "it should have been killed before its end"
    running.send_signal(signal.SIGKILL)
    running.wait()
    _, resumed = finish(tmp_path)
    assert numbers(resumed) == numbers(outcome)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(run.data.tags["kind"] for run in runs) == ["baseline", "edit"]


def _responses(home: Path) -> int:
    return sum(len(file.read_bytes().splitlines()) for file in (home / "mlruns").rglob("responses.jsonl"))
