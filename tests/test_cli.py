"""The command line: what it prints, what it refuses and how, and what it does not import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gapeval_lab import cli
from gapeval_lab.evaluate import PromptsFailed

HEAVY = ("torch", "transformers", "mlflow", "optuna", "matplotlib", "scipy", "pandas")
OFF = ["controls.identity=false", "controls.placebo=false", "evaluation.official=false"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["gapeval-lab", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["ls"], ["ls", "models"], ["edit", "--help"], ["delta", "ls"], ["search", "--help"]],
)
def test_quick_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from gapeval_lab import cli; sys.argv = ['gapeval-lab'] + sys.argv[1:]\n"
        "try:\n    cli.main()\nexcept SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout
    assert done.stderr == ""


def test_a_model_that_cannot_answer_is_one_message(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gapeval_lab.models.janus import Janus
    from gapeval_lab.testing import ScriptedUMM

    def broken(prompt: object, seed: int) -> str:
        raise RuntimeError("no room")

    monkeypatch.setattr(Janus, "load", lambda self: ScriptedUMM(broken))
    assert call(monkeypatch, "eval", "-r", "baseline", "--limit", "2", *OFF) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("failed: 2 of 2 prompts failed; first ") and "RuntimeError: no room" in said


def test_ls_names_the_shipped_recipes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "ls") == 0
    out = capsys.readouterr().out
    assert "rome_world_knowledge" in out and "baseline" in out


def test_show_prints_a_recipe_with_its_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "show", "rome_world_knowledge", "intervention.layer=0") == 0
    out = capsys.readouterr().out
    assert "layer: 0" in out and "kl_factor" in out


def test_validate_checks_every_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "validate") == 0
    out = capsys.readouterr().out
    assert "rome_world_knowledge: valid, 8 facts" in out
    assert "inject_edit_inject: valid, 12 + 8 + 12 facts" in out
    assert (
        "janus_pro_lora: valid as far as can be told without its benchmark (root: GapEval is no folder" in out
    )


def test_a_recipe_that_is_named_needs_its_benchmark(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "validate", "janus_pro_lora") == 2
    assert "root: GapEval is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "named"), [("judges", "endpoint"), ("models", "janus_pro_7b")])
def test_ls_names_configs_beside_plug_ins(
    kind: str, named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "ls", kind) == 0
    assert f"{{config: {named}}}" in capsys.readouterr().out.splitlines()


def test_a_run_that_cannot_go_on_says_so_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise PromptsFailed("3 of 4 prompts failed; first i, generation: E: x")

    monkeypatch.setattr("gapeval_lab.recipe.load", fails)
    assert call(monkeypatch, "show", "baseline") == 1
    assert capsys.readouterr().err == "failed: 3 of 4 prompts failed; first i, generation: E: x\n"


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "edit", "--recipe", "rome_world_knowledge", "--dry-run", "--limit", "12") == 0
    out = capsys.readouterr().out
    assert "items      12" in out and "nothing was done" in out
    assert call(monkeypatch, "edit", "--recipe", "inject_edit_inject", "--dry-run", "--limit", "12") == 0
    out = capsys.readouterr().out
    assert [out.count(f"intervene  {method}") for method in ("lora", "rome")] == [2, 1]
    assert "measure    5 times" in out
    assert call(monkeypatch, "eval", "--recipe", "inject_edit_inject", "--dry-run", "--limit", "12") == 0
    assert "intervene" not in capsys.readouterr().out
    assert call(monkeypatch, "edit", "--recipe", "lora_reasoned", "--dry-run", "--limit", "12") == 0
    assert "4 questions about each fact, then draw: whole, caption" in capsys.readouterr().out
    assert call(monkeypatch, "eval", "--recipe", "lora_reasoned", "--dry-run", "--limit", "12") == 0
    assert "question" not in capsys.readouterr().out
    assert list(home.iterdir()) == []


def test_score_prints_both_estimators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.json"
    rows = [[40, 3, 38, 15], [12, 72, 0, 16], [36, 47, 16, 1], [32, 30, 24, 14]]
    shares = [[cell / sum(row) for cell in row] for row in rows]
    file.write_text(json.dumps({"counted": rows, "shared": shares}))
    assert call(monkeypatch, "score", str(file), "--json", str(tmp_path / "scores.json")) == 0
    out = capsys.readouterr().out
    assert "published" in out and "counted" in out and "1000 items per row" in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    world = scores["counted"]["rows"]["Instruction Following"]
    assert world["low"] <= world["gap_score"] <= world["high"]
    assert "low" not in scores["shared"]["rows"]["Instruction Following"]
    # Published fits of the same shares agree within the rounding band, whatever n was.
    band = scores["counted"]["published"]["rounding_band"] + 1e-9
    assert (
        abs(scores["counted"]["published"]["mean"] - scores["shared"]["published"]["mean"]) <= 2 * band + 0.02
    )


def subject_elsewhere(tmp_path: Path) -> Path:
    """The shipped facts with the subject taken out of the first one's edit question."""
    lines = (Path(cli.__file__).parents[1] / "recipes/facts/world_knowledge.jsonl").read_text().splitlines()
    fact = json.loads(lines[0])
    fact["edit"]["understand"] = "tell me the colour of somebody ."
    file = tmp_path / "facts.jsonl"
    file.write_text(json.dumps(fact) + "\n")
    return file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["edit", "--recipe", "rome_world_knowlege"], "did you mean 'rome_world_knowledge'"),
        (["edit", "--recipe", "rome_world_knowledge", "intervention.layr=1"], "layer"),
        (["edit", "--recipe", "rome_world_knowledge", "intervention.layer=two"], "intervention.layer"),
        (["edit", "--recipe", "rome_world_knowledge", "intervention.layer=99"], "layer: 99 is out of range"),
        (["edit", "--recipe", "rome_world_knowledge", "intervention.site=mlp"], "site: 'mlp' is unknown"),
        (["edit", "--recipe", "rome_world_knowledge", "--categories", "colours"], "'colours' is unknown"),
        (["edit", "--recipe", "rome_world_knowledge", "model.weights=nowhere"], "model.weights"),
        (["edit", "--recipe", "baseline"], "has no intervention"),
        (["ls", "planets"], "'planets' cannot be listed"),
        (["show", "nothing_of_that_name"], "nothing_of_that_name"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str],
    said: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert call(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not list(home.glob("mlruns/outcomes/*")) and not list(home.glob("mlruns/work/*/*"))


def test_a_fact_whose_subject_is_not_in_its_prompt(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = subject_elsewhere(tmp_path)
    assert call(monkeypatch, "edit", "--recipe", "rome_world_knowledge", f"facts.file={file}") == 2
    err = capsys.readouterr().err
    assert "line 1" in err and "edit.understand" in err


def test_truncated_weights(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = Path(cli.__file__).parent / "models" / "embedded"
    folder = tmp_path / "weights"
    folder.mkdir()
    for file in shipped.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    arguments = ["edit", "--recipe", "rome_world_knowledge", f"model.weights={folder}"]
    assert call(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert "model.weights" in err and "model.safetensors" in err


def test_an_unwritable_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path / "file"))
    assert call(monkeypatch, "edit", "--recipe", "rome_world_knowledge", "--limit", "4") == 2
    assert "GAPEVAL_LAB_HOME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"m": [[0.5, 0.5, 0.5, 0.5]]}', "sum"),
        ('{"m": [[0.5, 0.5]]}', "m"),
        ('{"m": [[1, 2, 3, -1]]}', "-1"),
        ("{", "JSON"),
    ],
)
def test_bad_rows(
    content: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(content)
    assert call(monkeypatch, "score", str(file)) == 2
    assert said in capsys.readouterr().err
