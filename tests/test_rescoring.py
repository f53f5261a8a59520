"""Finished runs judged again: by name, by other judges, on the command line; people's labels; calibration."""

import csv
import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stored_world import ITEMS, make_run

from gapeval_lab import cli
from gapeval_lab.calibrating import calibrate, made_up, scene_of
from gapeval_lab.calibration import Calibration, Confusion, corrected_rate
from gapeval_lab.cli_judge import _print_estimates
from gapeval_lab.errors import UserError
from gapeval_lab.items import Direction, Item, Response, Verdict, image_digest
from gapeval_lab.judges.exact import Exact
from gapeval_lab.judges.human import Human
from gapeval_lab.label_export import export
from gapeval_lab.labels import answer_hash, read_labels
from gapeval_lab.rescoring import distinct, estimates, rescore
from gapeval_lab.rescoring_corrected import CorrectedRow, corrected
from gapeval_lab.rescoring_tables import corrected_notes, corrected_rows
from gapeval_lab.scene import CELLS, Scene, Thing, render
from gapeval_lab.stored_runs import StoredRun, on_disk, open_run
from gapeval_lab.testing import ScriptedJudge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("world") / "mlruns")


@pytest.fixture
def run(folder: Path) -> StoredRun:
    return open_run(folder)


@pytest.fixture
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The store that holds the run, without what a test leaves there."""
    place = folder.parents[2]
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(place))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield place
    for made in (*folder.glob("scores/*"), *folder.glob("labels.csv")):
        made.unlink()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gapeval-lab", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def exact_but(wrong: set[str]) -> ScriptedJudge:
    """Exact, with the opposite said about these items."""
    exact = Exact()

    def rule(item: Item, response: Response) -> bool | None:
        said = exact([(item, response)])[0].correct
        return said if said is None or item.id not in wrong else not said

    return ScriptedJudge(rule)


# Runs by name, and their answers


def test_a_run_is_found_by_folder_file_id_prefix_and_last(folder: Path) -> None:
    home = folder.parents[1]
    for ref in (str(folder), str(folder / "outcome.json"), folder.name, folder.name[:12], "last"):
        assert on_disk(ref, home) == folder
    assert on_disk("stored-2027", home) is None
    with pytest.raises(UserError, match="no finished run in"):
        on_disk("last", home / "elsewhere")


def test_a_prefix_of_several_runs_is_refused(tmp_path: Path) -> None:
    for name in ("a-1", "a-2"):
        (tmp_path / "outcomes" / name).mkdir(parents=True)
        (tmp_path / "outcomes" / name / "outcome.json").write_text("{}")
    with pytest.raises(UserError, match=r"fits 2 runs \(a-1, a-2\)"):
        on_disk("a", tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        open_run(tmp_path / "outcomes" / "a-1")


def copied(folder: Path, place: Path, **changes: Any) -> Path:
    """The run's record with other content, and its pictures."""
    place.mkdir()
    (place / "pictures").symlink_to(folder / "pictures")
    record = json.loads((folder / "outcome.json").read_text()) | changes
    (place / "outcome.json").write_text(json.dumps(record))
    return place


def test_a_run_whose_items_or_pictures_are_gone_is_not_judged(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="their content differs"):
        open_run(copied(folder, tmp_path / "changed", data_hash="0" * 64))
    before = json.loads((folder / "outcome.json").read_text())["before"]
    before["rows"][0]["id"] = "nobody"
    with pytest.raises(UserError, match="nobody is gone"):
        open_run(copied(folder, tmp_path / "gone", before=before))
    bare = copied(folder, tmp_path / "bare")
    (bare / "pictures").unlink()
    with pytest.raises(UserError, match=rf"lacks {ITEMS} of its pictures"):
        distinct(open_run(bare))
    broken = copied(folder, tmp_path / "broken")
    (broken / "pictures").unlink()
    shutil.copytree(folder / "pictures", broken / "pictures")
    file = sorted((broken / "pictures").rglob("*.png"))[0]
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"has a picture that cannot be read \(item .*\); bring it back"):
        distinct(open_run(broken))


# Scores


def test_the_same_judge_gives_the_same_verdicts_gaps_and_shifts(run: StoredRun) -> None:
    score = rescore(run, Exact(), name="exact", node={"use": "exact"})
    assert set(score.phases) == {"before", "after", "identity"}
    for phase, part in score.phases.items():
        assert part.flips == []
        rows = run.phases[phase].rows
        assert part.gap == run.phases[phase].gap
        said = {(one.item_id, one.direction): one.correct for one in part.verdicts}
        assert len(said) == 2 * ITEMS
        for row in rows:
            assert said[row.id, Direction.UNDERSTANDING] == row.understanding
            assert said[row.id, Direction.GENERATION] == row.generation
    assert score.shifts["after"] == run.outcome.shift
    assert score.shifts["identity"] == run.outcome.identity_shift
    assert run.outcome.shift is not None and run.outcome.shift.changed_items > 0


def test_another_judge_flips_what_it_flips_and_nothing_else(run: StoredRun) -> None:
    wrong = {run.items[0].id, run.items[5].id}
    score = rescore(run, exact_but(wrong), name="other", node={"use": "other"})
    before = score.phases["before"]
    assert {(flip.item, flip.direction) for flip in before.flips} == {
        (i, d) for i in wrong for d in Direction
    }
    assert all(flip.old is (not flip.new) for flip in before.flips)
    told = before.agreement["understanding"]
    assert told.percent is not None and told.percent.value == pytest.approx((ITEMS - 2) / ITEMS)
    assert before.gap != run.outcome.before.gap


def test_each_answer_is_judged_once_however_many_phases_gave_it(run: StoredRun) -> None:
    seen: list[str | None] = []

    class Counting(ScriptedJudge):
        def __call__(self, pairs: Sequence[tuple[Item, Response]]) -> list[Verdict]:
            seen.extend(answer_hash(*pair) for pair in pairs)
            return super().__call__(pairs)

    rescore(run, Counting(lambda item, response: True), name="c", node={})
    assert len(seen) == len(set(seen)) == len(distinct(run)) < 3 * 2 * ITEMS


def test_a_judge_that_scores_nothing_has_no_gap_and_says_so(run: StoredRun) -> None:
    score = rescore(run, ScriptedJudge(lambda item, response: None), name="mute", node={})
    part = score.phases["before"]
    assert part.flips == [] and len(part.apart) == 2 * ITEMS
    assert score.phases["before"].gap is None and "no item is scored" in score.phases["before"].note
    assert score.shifts["after"] is None


def test_a_score_is_a_file_that_says_the_same_each_time(run: StoredRun, home: Path) -> None:
    first = rescore(run, Exact(), name="exact", node={"use": "exact"}).save(run.folder)
    text = first.read_text()
    assert rescore(run, Exact(), name="exact", node={"use": "exact"}).save(run.folder) == first
    assert first.read_text() == text
    assert first.parent == run.folder / "scores" and first.name.startswith("exact-")
    record = json.loads(text)
    assert record["settings"] == Exact().settings()
    assert record["phases"]["before"]["gap"]["gap"]["value"] == run.outcome.before.gap.gap.value
    faster = rescore(run, Exact(), name="exact", node={"use": "exact", "concurrency": 64})
    assert faster.file == f"scores/{first.name}"  # how it is asked changes nothing of what it says
    other = rescore(run, exact_but(set()), name="exact", node={"use": "exact"})
    assert other.file != f"scores/{first.name}"


def test_what_judging_would_cost_is_told_in_lines() -> None:
    @dataclass(frozen=True)
    class Cost:
        calls: int
        cost: dict[str, float]

    class Priced(ScriptedJudge):
        def estimate(self, pairs: Sequence[tuple[Item, Response]]) -> Cost:
            return Cost(len(pairs), {"low": 0.1, "high": 0.2})

    assert estimates(Priced(lambda *_: None), []) == {"calls": 0, "cost.low": 0.1, "cost.high": 0.2}
    assert estimates(Exact(), []) == {}


def test_an_estimate_is_printed_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    prices = {"pairs": 1430, "cached": 2, "prompt_tokens": (50532, 109674), "cost": None}
    _print_estimates({**prices, "fast.cost": (0.25, 1.5), "slow.cost": (2.0, 2.0)})
    lines = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["answers", "1,430"],
        ["verdicts that are kept", "2"],
        ["prompt tokens", "50,532 to 109,674"],
        ["cost", "unknown: set price_in and price_out (of a million tokens)"],
        ["fast, cost", "0.25 to 1.5"],
        ["slow, cost", "2"],
    ]


def test_why_nothing_was_corrected_is_said_once_below_the_table() -> None:
    judge = Confusion(right_right=5, right_wrong=5, wrong_right=6, wrong_wrong=5)
    coin = corrected_rate(3, 5, judge, seed=0, name="x")
    row = CorrectedRow(Direction.UNDERSTANDING, "a_b", True, coin, coin, None)
    other = replace(row, category="c")
    assert corrected_rows([row])[0].cells == ("60 %", "n/a", "60 %", "n/a", "n/a", "n/a")
    (note,) = corrected_notes([row, other])
    assert note.startswith("understanding, a b; understanding, c: the judge tells right from wrong hardly")
    assert note.endswith("(Se + Sp − 1 = −0.05)")
    assert len(corrected_notes([row, replace(other, own=False)])) == 2, "and what the star means"


def test_the_command_prints_old_and_new(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    panel = "{use: panel, judges: [{use: exact}, {use: exact}]}"
    assert call(monkeypatch, "score", "last", "--judge", panel, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "different answers in before, after, identity" in out and "gives no estimate" in out
    assert not (folder / "scores").exists() or not list((folder / "scores").iterdir())
    file = home / "again.json"
    arguments = ("score", folder.name, "--judge", panel, "--set", "rule=first", "--json", str(file))
    assert call(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out
    for words in ("judged by panel", "Gap Scores after", "voices with each other", "no verdict flips"):
        assert words in out
    assert "What shifted" in out and "MLflow" not in out
    (written,) = (folder / "scores").iterdir()
    assert json.loads(written.read_text()) == json.loads(file.read_text())
    assert json.loads(file.read_text())["node"]["rule"] == "first"
    assert not (home / "mlruns" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", "last"], "name a judge with --judge"),
        (["score", "rows.json", "--dry-run"], "give --judge NAME"),
        (["score", "no.json"], "no.json: cannot be read"),
        (["score", "last", "--judge", "exakt"], "did you mean 'exact'?"),
        (["score", "nothing", "--judge", "exact"], "'nothing' is no finished run"),
        (["score", "last", "--judge", "human"], "judge.file: missing"),
        (["score", "last", "--judge", "human", "--set", "file=no.csv"], "cannot read no.csv"),
        (["score", "last", "--judge", "exact", "--calibration", "no.json"], "--calibration: cannot read"),
        (["labels", "import", "last", "no.csv"], "cannot read no.csv"),
        (["judge", "calibrate", "--judge", "exact", "--run", "last", "--limit", "3"], "--limit: is about"),
    ],
)
def test_bad_input_is_one_message(
    home: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert said in capsys.readouterr().err


# Labels


def write_csv(file: Path, rows: Sequence[Sequence[str]]) -> Path:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["item", "direction", "answer", "correct", "who", "when"], *rows])
    return file


def labelled(run: StoredRun, who: str, said: dict[str, str]) -> list[list[str]]:
    """Rows about the drawings before, of these items."""
    found = []
    for item, response in run.pairs("before"):
        if response.direction is Direction.GENERATION and item.id in said:
            answer = answer_hash(item, response)
            assert answer is not None
            found.append(
                [item.id, str(response.direction), answer, said[item.id], who, "2026-01-31T12:00:00Z"]
            )
    return found


def test_the_majority_of_people_decides_and_ties_are_not_scored(run: StoredRun, tmp_path: Path) -> None:
    first, second, third, fourth = (item.id for item in run.items[:4])
    rows = labelled(run, "ann", {first: "yes", second: "no", third: "YES"})
    rows += labelled(run, "bob", {first: "no", second: "n", third: "no"})
    rows += labelled(run, "cyd", {first: "1", fourth: "skip"})
    judge = Human(file=str(write_csv(tmp_path / "labels.csv", rows)))
    pairs = run.pairs("before")
    said = {(one.item_id, one.direction): one for one in judge(pairs)}
    drawn = Direction.GENERATION
    assert [said[name, drawn].correct for name in (first, second, third, fourth)] == [True, False, None, None]
    assert said[first, drawn].reason == "right for 2 of 3: ann, bob, cyd"
    assert said[first, Direction.UNDERSTANDING].correct is None
    assert judge.decide(judge.votes(pairs)) == judge(pairs)
    score = rescore(run, judge, name="human", node={})
    voices = score.phases["before"].voices["generation"]
    assert (voices.n, voices.kind) == (1, "fleiss")


def test_a_label_holds_for_its_own_answer_only(run: StoredRun, tmp_path: Path) -> None:
    item, response = next(pair for pair in run.pairs("before") if pair[1].direction is Direction.GENERATION)
    rows = labelled(run, "ann", {item.id: "yes"})
    judge = Human(file=str(write_csv(tmp_path / "labels.csv", rows)))
    other = Response(item.id, Direction.GENERATION, picture=Image.new("RGB", (48, 48), "red"))
    copy = Response(item.id, Direction.GENERATION, picture=response.image)
    assert [one.correct for one in judge([(item, response), (item, copy), (item, other)])] == [
        True,
        True,
        None,
    ]
    changed = write_csv(tmp_path / "changed.csv", labelled(run, "ann", {item.id: "no"}))
    assert Human(file=str(changed)).settings() != judge.settings()


def test_all_mistakes_of_labels_come_in_one_message(run: StoredRun, tmp_path: Path) -> None:
    good = labelled(run, "ann", {run.items[0].id: "yes"})[0]
    item, direction, answer, _, who, when = good
    known = {f"{item}|{direction}": {answer}}
    file = write_csv(
        tmp_path / "labels.csv",
        [
            good,
            [item, direction, answer, "maybe", who, when],
            [item, "drawing", answer, "yes", who, when],
            ["nobody", direction, answer, "yes", who, when],
            [item, direction, "0" * 24, "yes", who, when],
            [item, direction, answer, "yes", "", "yesterday"],
            [item, direction, answer, "no", who, when],
            [item, direction, answer, "", "", ""],
        ],
    )
    with pytest.raises(UserError) as caught:
        read_labels([file], known=known)
    said = str(caught.value)
    assert said.startswith("labels: 7 to mend")
    for line, words in (
        (3, "correct: 'maybe'"),
        (4, "direction: 'drawing'"),
        (5, "item: 'nobody'"),
        (6, "answer: '0000"),
        (7, "who: empty"),
        (7, "when: 'yesterday'"),
        (8, "ann said the opposite"),
    ):
        assert f"line {line}: {words}" in said
    (tmp_path / "short.csv").write_text("item,answer\n")
    with pytest.raises(UserError, match="lacks the columns direction, correct, who, when"):
        read_labels([tmp_path / "short.csv"])
    (tmp_path / "open.csv").write_text("item,direction,answer,correct,who,when\n" + '"' + "x\n" * 70_000)
    with pytest.raises(UserError, match="line .* cannot be read .*quotation mark that is not closed"):
        read_labels([tmp_path / "open.csv"])


def test_the_export_is_blind_shuffled_and_can_be_imported(
    run: StoredRun, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "labels"
    assert call(monkeypatch, "labels", "export", "last", "--out", str(place), "--seed", "3") == 0
    page, table = (place / "label.html").read_text(), (place / "labels.csv").read_text()
    for secret in ("after", "before", "identity", run.outcome.umm, run.outcome.run_id):
        assert secret not in table
        assert secret not in "".join(re.findall(r"const tasks = (.*);", page))
    tasks = json.loads(re.findall(r"const tasks = (.*);", page)[0])
    rows = list(csv.DictReader(table.splitlines()))
    pairs = {answer_hash(*pair): pair for pair in distinct(run)}
    assert [task["key"][2] for task in tasks] == [row["answer"] for row in rows]
    assert {row["answer"] for row in rows} == set(pairs) and len(rows) == len(pairs)
    for row in rows:
        item, response = pairs[row["answer"]]
        if response.image is None:
            assert row["given"] == response.text and not row["picture"]
        else:
            assert image_digest(Image.open(place / row["picture"])) == image_digest(response.image)
        assert row["question"] == item.prompt(response.direction).text
    export(distinct(run), tmp_path / "same", seed=3)
    assert (tmp_path / "same" / "labels.csv").read_text() == table
    export(distinct(run), tmp_path / "other", seed=4, limit=5)
    other = list(csv.DictReader((tmp_path / "other" / "labels.csv").read_text().splitlines()))
    assert len(other) == 5 and [row["answer"] for row in other] != [row["answer"] for row in rows[:5]]
    with pytest.raises(UserError, match="not empty"):
        export(distinct(run), place, seed=0)
    # Filled in with the truth, the export is as good as the exact judge.
    exact = {key: one.correct for key, one in zip(pairs, Exact()(list(pairs.values())), strict=True)}
    for row in rows:
        row |= {"correct": "yes" if exact[row["answer"]] else "no", "who": "ann", "when": "2026-01-31"}
    with (place / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert call(monkeypatch, "labels", "import", "last", str(place / "labels.csv")) == 0
    judge = Human(file=str(run.folder / "labels.csv"))
    assert rescore(run, judge, name="human", node={}).phases["after"].flips == []


def test_labels_of_an_earlier_import_are_not_lost(
    run: StoredRun, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    item, response = distinct(run)[0]
    row = [item.id, response.direction, answer_hash(item, response)]
    files = {
        (who, said): write_csv(tmp_path / f"{who}-{said}.csv", [[*row, said, who, "2026-01-31"]])
        for who, said in (("ann", "yes"), ("ann", "no"), ("bob", "no"))
    }
    place = tmp_path / "kept.csv"

    def imported(*given: Path) -> int:
        return call(monkeypatch, "labels", "import", "last", *map(str, given), "--out", str(place))

    assert imported(files["ann", "yes"]) == 0
    before = place.read_bytes()
    assert imported(files["bob", "no"]) == 2 and place.read_bytes() == before
    assert "holds labels by ann that these files lack; name it among the files" in capsys.readouterr().err
    assert imported(files["bob", "no"], place) == 0
    assert [(one.who, one.correct) for one in read_labels([place])] == [("bob", False), ("ann", True)]
    assert imported(files["bob", "no"], files["ann", "no"]) == 0, "who thinks otherwise by now may say so"
    assert not any(one.correct for one in read_labels([place]))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_page_takes_keys_and_asks_for_a_name_first(run: StoredRun, tmp_path: Path) -> None:
    export(distinct(run)[:3], tmp_path / "x", seed=0)
    page = (tmp_path / "x" / "label.html").read_text()
    pressing = """<script>
    const seen = [], who = byId("who");
    const press = (key, target = document.body) => seen.push(
      [target.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true})),
       document.activeElement.id, byId("first").hidden, Object.keys(said).length]);
    press("y");
    who.value = "Ann"; who.dispatchEvent(new Event("input")); press("y", who); press("Enter", who);
    press("y"); press("N"); press("b"); press("s"); press("n"); press("y");
    document.title = JSON.stringify([seen, at, said]);
    </script></html>"""
    (tmp_path / "x" / "driven.html").write_text(page.replace("</html>", pressing))
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
    )
    command = ["chromium", *options.split(), f"--user-data-dir={tmp_path / 'user'}"]
    file = (tmp_path / "x" / "driven.html").as_uri()
    ran = subprocess.run([*command, file], capture_output=True, text=True, timeout=60, check=True)
    title = html.unescape(re.findall("<title>(.*)</title>", ran.stdout)[0])
    seen, at, said = json.loads(title)
    # Was the key left to the browser? Where is the focus, is the hint hidden, how many are labelled?
    assert seen[:3] == [[False, "who", False, 0], [True, "who", True, 0], [True, "", True, 0]]
    assert [step[3] for step in seen[3:]] == [1, 2, 2, 1, 2, 2] and not any(step[0] for step in seen[3:])
    assert (at, {index: one["correct"] for index, one in said.items()}) == (3, {"0": "yes", "2": "no"})


def test_no_answer_can_end_the_pages_script(run: StoredRun, tmp_path: Path) -> None:
    item = run.items[0]
    nasty = Response(item.id, Direction.UNDERSTANDING, text="</script><script>alert(1)</script> @COLUMNS@")
    export([(item, nasty)], tmp_path / "x", seed=0)
    page = (tmp_path / "x" / "label.html").read_text()
    assert page.count("</script>") == 1
    assert json.loads(re.findall(r"const tasks = (.*);", page)[0])[0]["given"] == nasty.text


def test_a_browser_never_mixes_the_labels_of_two_exports(run: StoredRun, tmp_path: Path) -> None:
    pairs = distinct(run)[:3]
    stores, orders = {}, {}
    for seed in range(12):
        export(pairs, tmp_path / str(seed), seed=seed)
        page = (tmp_path / str(seed) / "label.html").read_text()
        stores[seed] = re.findall(r'const store = "(.*)";', page)[0]
        orders[seed] = tuple(t["key"][2] for t in json.loads(re.findall(r"const tasks = (.*);", page)[0]))
    assert len(set(stores.values())) == len(set(orders.values())) > 3  # some have the same first answer
    assert len(set(zip(stores.values(), orders.values(), strict=True))) == len(set(orders.values()))


# Calibration


def test_scenes_are_read_back_from_their_own_renderings() -> None:
    scene = Scene.of({0: Thing("red", "ring"), CELLS - 1: Thing("blue", "cross")})
    assert scene_of(render(scene)) == scene
    assert scene_of(Image.new("RGB", (48, 48), "pink")) is None
    assert scene_of(Image.new("RGB", (8, 8))) is None


def test_truths_are_right_and_near_misses_wrong(run: StoredRun) -> None:
    from gapeval_lab.benchmarks.tinyworld import TinyWorld

    made = made_up(TinyWorld(), run.items, seed=0)
    assert [answer_hash(*pair) for pair in made] == [
        answer_hash(*pair) for pair in made_up(TinyWorld(), run.items, seed=0)
    ]
    said = [one.correct for one in Exact()(made)]
    assert None not in said
    for direction in Direction:
        told = [one for (_, given), one in zip(made, said, strict=True) if given.direction is direction]
        assert told.count(True) == ITEMS
        assert 0.8 * ITEMS <= told.count(False) <= ITEMS


def test_a_calibration_counts_the_judges_mistakes(run: StoredRun) -> None:
    pairs = distinct(run)
    truth = {answer_hash(*pair): one.correct for pair, one in zip(pairs, Exact()(pairs), strict=True)}
    wrong = {item.id for item in run.items[:6]}
    found = calibrate(exact_but(wrong), pairs, name="other", node={"use": "x"}, source="here")
    for direction in Direction:
        cell = found.cells[str(direction)]
        mine = [pair for pair in pairs if pair[1].direction is direction]
        right = [pair for pair in mine if truth[answer_hash(*pair)]]
        assert cell.right_right + cell.right_wrong == len(right)
        assert cell.right_wrong == sum(item.id in wrong for item, _ in right)
        assert cell.wrong_right == sum(
            item.id in wrong for item, response in mine if not truth[answer_hash(item, response)]
        )
        parts = [one for name, one in found.cells.items() if name.startswith(f"{direction}/")]
        total = parts[0]
        for part in parts[1:]:
            total = total.plus(part)
        assert total == cell
    twice = calibrate(exact_but(wrong), [*pairs, *pairs], name="other", node={"use": "x"}, source="here")
    assert twice.cells == found.cells  # the same answer again says nothing more about the judge
    mute = ScriptedJudge(lambda *_: None)
    assert calibrate(mute, pairs, name="m", node={}, source="").cells["generation"].unscored


def test_a_score_is_corrected_by_its_judges_calibration(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "exact.json"
    arguments = ("judge", "calibrate", "--judge", "exact", "--run", "last", "--out", str(file))
    assert call(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out
    assert "sensitivity" in out and "100 %" in out
    assert "gapeval-lab score RUN --judge exact --calibration" in out
    panel = "{use: panel, judges: [{use: exact}, {use: exact}]}"
    other = ("judge", "calibrate", "--judge", panel, "--set", "rule=first", "--run", "last")
    assert call(monkeypatch, *other, "--out", str(home / "panel.json")) == 0
    (told,) = re.findall(r"use it with: gapeval-lab (.*)", capsys.readouterr().out)
    assert call(monkeypatch, *(word.replace("RUN", "last") for word in shlex.split(told))) == 0
    assert "Corrected by the calibration" in capsys.readouterr().out
    for made in folder.glob("scores/*"):
        made.unlink()
    known = Calibration.load(file)
    assert known.cells["generation"].whole and known.cells["understanding"].whole
    assert call(monkeypatch, "score", "last", "--judge", "exact", "--calibration", str(file)) == 0
    assert "Corrected by the calibration" in capsys.readouterr().out
    (written,) = (folder / "scores").iterdir()
    assert len(json.loads(written.read_text())["corrected"]) == 8
    assert call(monkeypatch, "score", "last", "--judge", panel, "--calibration", str(file)) == 2
    said = capsys.readouterr().err
    assert "is of the judge 'exact' with other settings (judge: exact there, panel here; " in said
    assert "rule: nothing there, majority here" in said
    run = open_run(folder)
    table = corrected(run, rescore(run, Exact(), name="exact", node={}), known)
    for row in table:
        assert row.before is not None and row.before.value is not None
        assert row.before.value.value == pytest.approx(row.before.raw)  # this judge makes no mistakes
        assert row.shift is not None and row.shift.value is not None
        assert row.shift.value.value == pytest.approx(row.shift.raw)
