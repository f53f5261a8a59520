"""Runs ranked as far as the data allow, apart where their numbers are of other scales; runs as a list."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from factories import make_outcome, without_after
from run_store import call, database, log, put, verdicts

from gapeval_lab import cli
from gapeval_lab.errors import UserError
from gapeval_lab.gap.records import Estimate
from gapeval_lab.leaderboard import leaderboard
from gapeval_lab.leaderboard_list import listed
from gapeval_lab.leaderboard_measures import Sort, measure
from gapeval_lab.leaderboard_tables import rank
from gapeval_lab.outcome import Outcome
from gapeval_lab.report_cells import spread
from gapeval_lab.summaries import summarise
from gapeval_lab.tracking_read import Logged
from gapeval_lab.tracking_store import Store
from gapeval_lab.tracking_values import params, tags


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path))
    return Store.open(tmp_path)


def stamp(number: int) -> str:
    return f"run{number}-20261121T1000{number:02d}-abc{number:03d}"


def drawn_right(outcome: Outcome, share: float) -> Outcome:
    """The outcome with that share of each category's items drawn right afterwards, and a shift to match."""
    from gapeval_lab.gap.one_sided import state_shift
    from gapeval_lab.gap.table import ItemVerdict

    assert outcome.after is not None
    places: dict[str, int] = {}
    flips = {}
    for row in outcome.after.rows:
        at = places[row.category] = places.get(row.category, -1) + 1
        flips[row.id.replace("-", "_")] = (True, at < share * 30)
    after = verdicts(outcome.after, **flips)
    states = [
        [ItemVerdict(r.category, r.understanding, r.generation) for r in phase.rows]
        for phase in (outcome.before, after)
    ]
    return outcome.model_copy(update={"after": after, "shift": state_shift(*states, seed=0, replicates=400)})


@pytest.fixture
def ranked(store, tmp_path):
    """Three edits: one that lets most be drawn right, two that are nearly alike and let few."""
    base = make_outcome(tmp_path, per_category=30)
    for number, share in enumerate((0.9, 0.3, 0.25)):
        put(store, stamp(number), drawn_right(base, share), seed=number)
    return store


def test_what_cannot_be_told_apart_is_in_no_order(ranked) -> None:
    board = leaderboard(ranked)
    (edits,) = board.lists
    assert [place.run_id for place in edits.places] == [stamp(0), stamp(1), stamp(2)]
    assert [rank(place) for place in edits.places] == ["1", "2–3", "2–3"]
    assert "paired by item" in edits.how
    for place in edits.places:
        assert place.shift is not None and place.value == place.shift.value
        assert (place.low, place.high) == (place.shift.low, place.shift.high)


def test_pairing_tells_apart_what_single_intervals_would_not(tmp_path) -> None:
    base = make_outcome(tmp_path, per_category=30)
    runs = [summarise(drawn_right(base, share)) for share in (0.5, 0.6)]
    found = measure([(one, None) for one in runs], "delta/generation")
    alone = np.hypot(*(found.high - found.low) / (2 * 1.959964))
    assert found.paired == 2
    assert found.errors[0, 1] < alone / 2
    assert abs(found.values[0] - found.values[1]) > 1.96 * found.errors[0, 1]


@pytest.mark.parametrize(
    "metric",
    ["delta/generation", "delta/on_target", "after/generation", "delta/reasoning"],
)
def test_what_is_counted_from_verdicts_is_the_outcomes_own_number(tmp_path, metric) -> None:
    outcome = drawn_right(make_outcome(tmp_path, per_category=30), 0.4)
    one = summarise(outcome)
    found = measure([(one, None), (one, None)], metric)
    shift = outcome.shift
    assert shift is not None and shift.generation is not None
    own = {
        "delta/generation": shift.generation.value,
        "delta/on_target": shift.categories["world_knowledge"].gap.value,
        "delta/reasoning": shift.categories["reasoning"].gap.value,
        "after/generation": one.states["after"].gap.generation.value,
    }
    assert found.values.tolist() == pytest.approx([own[metric]] * 2)
    assert found.errors[0, 1] == pytest.approx(0, abs=1e-6)
    assert (found.low <= found.values).all() and (found.values <= found.high).all()


def test_numbers_that_mlflow_alone_knows_are_compared_by_their_own_intervals() -> None:
    def logged(value: float, half: float) -> Logged:
        metrics = {"delta/gap_score": value, "low/gap_score": value - half, "high/gap_score": value + half}
        return Logged("a" * 32, "n", "FINISHED", 0, "", metrics=metrics)

    found = measure([(None, logged(-0.1, 0.05)), (None, logged(0.0, 0.05))], "delta/gap_score")
    assert found.paired == 0
    assert found.errors[0, 1] == pytest.approx(np.hypot(0.05, 0.05) / 1.959964)
    bare = measure([(None, Logged("a" * 32, "n", "FINISHED", 0, "", metrics={"x": 1.0}))] * 2, "x")
    assert bare.values.tolist() == [1.0, 1.0] and np.isnan(bare.errors[0, 1])


def test_other_items_judges_and_models_have_lists_of_their_own(ranked, tmp_path) -> None:
    base = Outcome.load(ranked.folder / "outcomes" / stamp(0))
    put(ranked, stamp(3), base, data_hash="99" * 32)
    put(ranked, stamp(4), base, recipe=base.recipe | {"judge": {"use": "exact", "strict": True}})
    put(ranked, stamp(5), base, umm="other", weights_fingerprint="77" * 32)
    put(ranked, stamp(6), without_after(base))
    put(ranked, stamp(7), without_after(base), umm="other", weights_fingerprint="77" * 32)
    board = leaderboard(ranked)
    edits = [one for one in board.lists if one.of == "interventions"]
    assert [len(one.places) for one in edits] == [3, 1, 1, 1]
    (models,) = [one for one in board.lists if one.of == "models"]
    assert {place.umm for place in models.places} == {"tinyworld-janus", "other"}
    assert models.metric == "before/gap_score" and all(rank(place) == "1–2" for place in models.places)
    assert {one.common["judge"] for one in edits} == {"exact", "exact (strict=true)"}
    only = leaderboard(ranked, kind="baseline")
    assert [one.of for one in only.lists] == ["models"]


def test_edits_that_did_not_take_and_failed_runs_are_marked_not_hidden(ranked) -> None:
    base = Outcome.load(ranked.folder / "outcomes" / stamp(0))
    assert base.quality is not None
    cell = base.quality.reliability["text"].model_copy(update={"after": Estimate(0.25, 0.1, 0.4)})
    quality = base.quality.model_copy(update={"reliability": base.quality.reliability | {"text": cell}})
    put(ranked, stamp(3), base, quality=quality, reverted=False)
    made = database(ranked)
    log(made, "f" * 32, status="FAILED", tags={"gapeval.end": "ValueError: too bad"})
    log(made, "e" * 32, tags={"kind": "trial"})
    board = leaderboard(ranked)
    marked = {place.run_id: place.marks for one in board.lists for place in one.places}
    assert marked[stamp(3)] == ["weights NOT restored", "edit did not take (told 25 %)"]
    assert marked[stamp(0)] == []
    (failed,) = board.unfinished
    assert (failed.status, failed.why) == ("FAILED", "ValueError: too bad")
    assert board.trials == 1


def test_runs_of_other_machines_are_ranked_by_what_mlflow_has(ranked) -> None:
    base = Outcome.load(ranked.folder / "outcomes" / stamp(0))
    about = {"tags": tags(base) | {"gapeval.outcome": "elsewhere"}, "params": params(base)}
    metrics = {
        "delta/gap_score": -0.2,
        "low/gap_score": -0.3,
        "high/gap_score": -0.1,
        "edit/reliability/text": 0.1,
    }
    log(database(ranked), "a" * 32, metrics=metrics, **about)
    (edits,) = leaderboard(ranked).lists  # one scale: the params say the same as the outcomes
    (place,) = [place for place in edits.places if place.run_id == "elsewhere"]
    assert (place.value, place.low, place.high) == (-0.2, -0.3, -0.1)
    assert place.marks == ["its outcome is not on this disk", "edit did not take (told 10 %)"]
    assert "3 of 4" in edits.how


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("delta/gap_score", Sort("delta/gap_score", True)),
        ("metrics.`delta/gap_score` DESC", Sort("delta/gap_score", False)),
        ("edit/reliability/text", Sort("edit/reliability/text", False)),
        ("edit/reliability/text asc", Sort("edit/reliability/text", True)),
        ("edit/locality_pixel_distance", Sort("edit/locality_pixel_distance", True)),
        ("delta/generation", Sort("delta/generation", False)),
        ("time/after", Sort("time/after", True)),
    ],
)
def test_which_end_is_best(text, expected) -> None:
    assert Sort.parse(text) == expected


def test_a_metric_without_intervals_claims_no_rank(ranked) -> None:
    made = database(ranked)
    for number in range(3):
        about = {"gapeval.outcome": stamp(number), "kind": "edit"}
        log(made, f"{number:032x}", tags=about, metrics={"time/after": float(number)})
    (edits,) = leaderboard(ranked, sort="time/after desc").lists
    assert [place.value for place in edits.places] == [2.0, 1.0, 0.0]
    assert [rank(place) for place in edits.places] == ["–"] * 3
    assert "no rank is claimed" in edits.how


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sort", "delta/gap_scor"], "no run that matches has 'delta/gap_scor'.*did you mean"),
        (["--sort", "two words here"], "is no metric"),
        (["--kind", "edits"], "'edits' is none of .*did you mean"),
        (["--kind", "inject"], "no finished run matches"),
        (["--where", "tags.kind ="], "at the end"),
    ],
)
def test_bad_input_is_one_message(ranked, words, said) -> None:
    log(database(ranked), "a" * 32, tags={"kind": "trial"}, metrics={"delta/gap_score": 0.0})
    with pytest.raises(UserError, match=said):
        cli.app(["leaderboard", *words], standalone_mode=False)


def test_nothing_to_rank_is_one_message(store) -> None:
    with pytest.raises(UserError, match="no finished run is in"):
        leaderboard(store)


def test_the_command_prints_and_writes_the_same(ranked, tmp_path, capsys) -> None:
    page, numbers = tmp_path / "l.html", tmp_path / "l.json"
    assert call("leaderboard", "--top", "2", "--html", str(page), "--json", str(numbers)) == 0
    printed, html, told = capsys.readouterr().out, page.read_text(), json.loads(numbers.read_text())
    shift = f"{told['lists'][0]['places'][0]['value']:+.3f}".replace("-", "−")
    assert shift in printed and shift in html
    assert "1 more rows" in printed and "more rows" not in html
    assert len(told["lists"][0]["places"]) == 3


def test_runs_are_listed_newest_last_with_their_result(ranked, capsys) -> None:
    made = database(ranked)
    about = {"gapeval.outcome": stamp(0), "kind": "edit", "method": "rome", "umm": "tiny"}
    metrics = {"delta/gap_score": -0.1, "low/gap_score": -0.2, "high/gap_score": 0.0}
    log(made, "a" * 32, tags=about, metrics=metrics)
    log(made, "d" * 32, tags=about | {"gapeval.outcome": "far"}, metrics=metrics)
    log(made, "b" * 32, status="KILLED", tags={"gapeval.end": "owner gone during fit"})
    log(made, "c" * 32, tags={"kind": "trial"})
    found = listed(ranked)
    cells = dict(found.lines)
    assert found.trials == 1
    shift = Outcome.load(ranked.folder / "outcomes" / stamp(0)).shift.gap
    day = time.strftime("%d %b %H:%M", time.localtime(0))
    assert cells[stamp(0)] == (day, "rome", "tiny", f"shift {spread(shift)}", "finished")
    there = next(line[1:] for name, line in found.lines if name in ("far", "d" * 32))
    assert there == ("rome", "tiny", "shift −0.100 [−0.200, 0]", "finished, outcome elsewhere")
    assert cells["b" * 32][-1] == "killed: owner gone during fit"
    assert cells[stamp(1)][-1] == "finished, not in MLflow" and cells[stamp(1)][3].startswith("shift ")
    assert [name for name, _ in found.lines][-1] == stamp(2)
    assert call("ls", "runs") == 0 and stamp(2) in capsys.readouterr().out
    assert call("ls", "runs", "--quiet") == 0
    assert capsys.readouterr().out.split() == [stamp(0), stamp(1), stamp(2)]


def test_neither_imports_what_takes_seconds(ranked) -> None:
    code = (
        "import sys; from gapeval_lab import cli; cli.app(['leaderboard'], standalone_mode=False); "
        "cli.app(['ls', 'runs'], standalone_mode=False); "
        "sys.exit(any(name in sys.modules for name in ('mlflow', 'torch', 'scipy', 'matplotlib', 'jinja2')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
