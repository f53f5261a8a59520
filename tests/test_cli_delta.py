"""`gapeval-lab delta`: what it prints, what it refuses, and that a stored delta runs like a fitted one."""

import json
from pathlib import Path

import pytest
import torch
from test_cli import call, home  # noqa: F401 (a fixture)
from test_stored_deltas import delta, make_run

from gapeval_lab.delta import Dense, LowRank, WeightDelta, fingerprint
from gapeval_lab.delta_file import Origin, read_head
from gapeval_lab.models.janus import Janus
from gapeval_lab.outcome import Outcome

Capture = pytest.CaptureFixture[str]
NAME = "model.language_model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def runs(home: Path) -> Path:  # noqa: F811
    """Two runs' deltas in a store; its `mlruns` folder."""
    make_run(home / "mlruns", "one", delta(1.0), started="2026-01-01", stages=1)
    make_run(home / "mlruns", "two", delta(2.0), started="2026-02-01")
    return home / "mlruns"


def test_ls(runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "outcomes" / "two" / "delta.safetensors").write_bytes(b"spoilt")
    assert call(monkeypatch, "delta", "ls") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"{delta(1.0).digest[:12]}  one",
        "    recipe a_recipe, m1 through text, 1 parameter, rank 1, norm 2.449",
        "    facts fact-1, fact-2",
    ]
    assert lines[-2] == "????????????  two" and "cannot read" in lines[-1]


def test_ls_of_an_empty_store(
    home: Path,  # noqa: F811
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert call(monkeypatch, "delta", "ls") == 0
    assert "no deltas yet" in capsys.readouterr().out


def test_show(runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = WeightDelta({"a": LowRank(torch.eye(3)[:, :2], torch.eye(2)), "b": Dense(torch.zeros(4))})
    path.save(runs / "file")
    assert call(monkeypatch, "delta", "show", f"{runs / 'file'}*3") == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith(("a ", "b "))]
    assert rows == [
        ["a", "3", "x", "2", "2", "4.243", "2.00", "3", "3"],
        ["b", "4", "dense", "0", "n/a", "0"],
    ]
    assert "norm 4.243" in out and "times 3" in out


def test_compare(runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    both = delta(1.0).then(WeightDelta({name: Dense(torch.ones(2)) for name in "bcdef"}))
    both.save(runs / "file")
    assert call(monkeypatch, "delta", "compare", "one", f"{runs / 'file'}*-1") == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("w "))
    assert row.split()[1] == "-1.000"
    assert "only the second: b, c, d and 2 more" in out


def test_compose_keeps_the_sum_in_the_store(
    runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "delta", "compose", "one", "two*0.5") == 0
    out = capsys.readouterr().out
    wanted = delta(1.0).then(delta(2.0).scaled(0.5))
    assert out.splitlines()[0] == f"{wanted.digest}  norm {wanted.norm():.4g}"
    assert f"+0.5 x {delta(2.0).digest[:12]}  two" in out
    file = runs / "deltas" / f"{wanted.digest}.safetensors"
    assert WeightDelta.load(file).digest == wanted.digest
    assert call(monkeypatch, "delta", "ls") == 0
    assert f"composed of {delta(1.0).digest[:12]}*1 + " in capsys.readouterr().out
    out_file = runs / "sub" / "sum.safetensors"
    assert call(monkeypatch, "delta", "compose", wanted.digest[:10], "one*-1", "--out", str(out_file)) == 0
    assert [part.scale for part in read_head(out_file).origin.parts] == [1.0, -1.0]


def test_apply_says_what_it_would_do(runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--recipe", "inject_edit_inject", "--limit", "4", "--dry-run", "intervention.scale=2"]
    assert call(monkeypatch, "delta", "apply", "one*0.5", *arguments) == 0
    out = capsys.readouterr().out
    assert out.count("intervene") == 1 and "'scale': 2" in out and "'direction': 'text'" in out
    assert str(runs / "outcomes" / "one" / "delta.safetensors") in out


def test_apply_measures_and_merges(
    home: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = Janus(device="cpu").load().model
    shape = root.get_parameter(NAME).shape
    change = WeightDelta({NAME: LowRank(0.1 * torch.ones(shape[0], 1), torch.ones(1, shape[1]))})
    folder = tmp_path_factory.mktemp("delta")
    file = change.save(folder / "file", origin=Origin(fingerprint(root), "text"))
    small = ["--limit", "4", "facts.count=1", "evaluation.official=false", "controls.placebo=false"]
    arguments = ["--recipe", "rome_world_knowledge", *small, "evaluation.replicates=50"]
    assert call(monkeypatch, "delta", "apply", f"{file}*0.5", *arguments) == 0
    (place,) = (home / "mlruns" / "outcomes").iterdir()
    outcome = Outcome.load(place)
    assert outcome.recipe["intervention"]["use"] == "saved"
    assert outcome.delta_address == change.scaled(0.5).digest and outcome.reverted
    assert len(outcome.facts) == 1 and outcome.identity_shift.changed_items == 0
    assert call(monkeypatch, "delta", "show", str(file), "--model", "embedded") == 0
    relative = change.norm() / float(root.get_parameter(NAME).detach().norm())
    assert f"{100 * relative:.2f} %" in capsys.readouterr().out
    out = folder / "merged"
    assert call(monkeypatch, "delta", "apply", str(file), "--model", "embedded", "--out", str(out)) == 0
    with change.applied(root):
        assert json.loads((out / "merged.json").read_text())["merged_weights"] == fingerprint(root)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nothing"], "'nothing' is no file, no run"),
        (["show", "one", "--model", "nobody"], "'nobody' was found neither"),
        (["compare", "one", "README.md"], "README.md"),
        (["compose", "one", "two*x"], "'two*x' is no file"),
        (["compose", "one", "--out", "/dev/null/file"], "cannot write /dev/null/file"),
        (["apply", "one"], "give --recipe R"),
        (["apply", "one", "--recipe", "rome_world_knowledge", "--model", "embedded"], "give --recipe R"),
        (["apply", "one", "--model", "embedded"], "needs --out FOLDER"),
        (["apply", "one", "--recipe", "rome_world_knowledge", "--out", "x"], "--out: is for merged"),
        (["apply", "one", "--recipe", "baseline"], "facts: missing"),
        (["apply", "one", "--recipe", "rome_world_knowledge", "intervention.lr=1"], "intervention.lr"),
        (["apply", "one", "--recipe", "rome_world_knowledge"], "w: the model has no such parameter"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str], said: str, runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "delta", *arguments) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert not (runs / "deltas").exists()
