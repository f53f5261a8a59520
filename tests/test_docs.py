"""Every command in the README and in docs/ is run, in the order in which it stands there, in one project.

What would take minutes is made smaller, by the constants below and by nothing else: fewer items, facts,
steps, seeds, trials and drawn runs. The addresses of deltas that the README shows become those of the runs
made before.
"""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from gapeval_lab import cli
from gapeval_lab.gap.power import Budget

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "guide.md")
SMALLER = {
    "--seeds 3": "--seeds 2",
    "--trials 40 --workers 2": "--trials 2",
    "--trials 20": "--trials 3",
    "--limit 120": "--limit 8",
}
LIMIT = "evaluation.limit=8"
FEW = "evaluation.official=false controls.identity=false controls.placebo=false"
FACTS = "facts.count=2"
EDITED = "intervention.steps=5 intervention.moment_texts=100"
TRAINED = "intervention.steps=6 intervention.batch=4 emergence.at=[0,6] emergence.items=4"
ASKING = ("edit", "eval", "search --recipe", "delta apply")
DRAWN = ("gapeval_lab.gap.power.NEAR", "gapeval_lab.planning.CAREFUL", "gapeval_lab.planning.QUICK")
SHOWN_ADDRESSES = ("e11f", "5b0d")


def commands(text: str) -> list[str]:
    """The gapeval-lab commands of a document's bash blocks, without their comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in lines if line.startswith("gapeval-lab ")]


def made_smaller(command: str) -> str:
    for long, short in SMALLER.items():
        command = command.replace(long, short)
    words = command.removeprefix("gapeval-lab ")
    if not words.startswith(ASKING) or "--recipe" not in words:
        return command
    asked = [LIMIT] if "--limit" not in words else []
    asked += [FEW] if "--json" not in words else []  # the first edit of the README has it all
    facts = [FACTS] if "--recipe baseline" not in words else []
    fitted = (
        [TRAINED] if "--recipe lora" in words else [EDITED] if words.startswith("edit --recipe rome") else []
    )
    return " ".join([command, *asked, *facts, *fitted])


def with_real_addresses(command: str, project: Path) -> str:
    outcomes = sorted(project.glob("mlruns/outcomes/*/outcome.json"))
    found = dict.fromkeys(json.loads(path.read_text())["delta_address"] for path in outcomes)
    real = [address for address in found if address]
    for shown, address in zip(SHOWN_ADDRESSES, real, strict=False):
        command = re.sub(rf"\b{shown}\b", address[:12], command)
    return command


def files_promised(words: list[str]) -> list[str]:
    return [
        after for word, after in zip(words, words[1:], strict=False) if word in ("--html", "--json", "--out")
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("docs")
    (place / "rows.json").write_text('{"model": [[0.5, 0.2, 0.1, 0.2], [0.4, 0.3, 0.1, 0.2]]}')
    return place


NAMES = {
    command: f"{document.stem}-{number}"
    for document in reversed(DOCUMENTS)
    for number, command in enumerate(commands(document.read_text(encoding="utf-8")))
}
CASES = [  # each command once, where it first stands
    pytest.param(command, id=NAMES[command])
    for command in dict.fromkeys(c for d in DOCUMENTS for c in commands(d.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("command", CASES)
def test_the_command_does_what_the_document_says(
    command: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(project))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for budget in DRAWN:
        monkeypatch.setattr(budget, Budget(200, 3))
    words = shlex.split(with_real_addresses(made_smaller(command), project))
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    assert printed.out.strip()
    for name in files_promised(words):
        assert (project / name).exists()


def test_the_documents_have_commands_and_pictures_that_are_there() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert commands(text)
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
            assert (document.parent / picture).is_file(), picture


def test_comments_are_no_part_of_a_command_and_what_is_long_is_made_smaller() -> None:
    text = "```bash\ngapeval-lab edit --recipe r --seeds 3   # three\npython x\ngapeval-lab ls\n```\n"
    assert [made_smaller(c) for c in commands(text)] == [
        f"gapeval-lab edit --recipe r --seeds 2 {LIMIT} {FEW} {FACTS}",
        "gapeval-lab ls",
    ]
