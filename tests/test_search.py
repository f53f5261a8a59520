"""A search with scripted trials: resumed, killed, pruned, shared by workers, and refused."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import search_fake
from search_fake import FakeTrials, fake_trials, plan, use_fake_plug_ins

from gapeval_lab import registry
from gapeval_lab.errors import UserError
from gapeval_lab.processes import THREADS, shared_threads
from gapeval_lab.recipe import flatten, load
from gapeval_lab.search import Plan, run_search
from gapeval_lab.search_report import Summary
from gapeval_lab.search_storage import open_place
from gapeval_lab.search_study import TRIES, SearchStudy, working
from gapeval_lab.search_workers import RESPAWNS, WorkerFailed, crew
from gapeval_lab.trials_types import TrialFailed

STATES = optuna.trial.TrialState


@pytest.fixture(autouse=True)
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BUILT_IN", registry.BUILT_IN)  # put back afterwards
    use_fake_plug_ins()
    # Waiting for the disk is most of the time; what survives a kill is tested in processes of its own.
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr("gapeval_lab.search.POLL_SECONDS", 0.01)


def search(found: Plan, *, drawn: bool = True) -> Summary:
    """Ended, with its figures; `drawn`: or without, where another search like it has been drawn."""
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr("gapeval_lab.search.figures", lambda study, section: {})
        return run_search(
            found, functools.partial(fake_trials, found.folder.parent, 0.0), say=lambda line: None
        )


def search_with(found: Plan, trials: FakeTrials) -> Summary:
    """With trials that the test keeps."""
    return run_search(found, lambda: contextlib.nullcontext(trials), say=lambda line: None)


def log(folder: Path, event: str) -> list[dict[str, Any]]:
    file = folder / "log.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [entry for line in lines if (entry := json.loads(line))["event"] == event]


def path_of(found: Plan) -> list[tuple[Any, Any]]:
    """What was drawn and found, in the order of the places: retries stand for what they retry."""
    by_place: dict[int, tuple[Any, Any]] = {}
    study = found.open()
    for trial in study.trials():
        if trial.state != STATES.FAIL or "reason" in trial.user_attrs:
            by_place[study._place_of(trial)] = (trial.params, trial.values)
    assert sorted(by_place) == list(range(len(by_place)))
    return [by_place[place] for place in sorted(by_place)]


SAMPLERS = {
    "tpe": ["search.sampler={use: tpe, n_startup_trials: 4}"],
    "tpe, two goals": ["search.goal={score: maximize, cost/seconds: minimize}"],
    "gp": ["search.sampler={use: gp, n_startup_trials: 5}"],
    "nsga2": ["search.sampler={use: nsga2, population_size: 3}"],
    "nsga3": ["search.sampler={use: nsga3, population_size: 3}"],
    "random": ["search.sampler={use: random}"],
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_search_is_an_uninterrupted_one(sampler: str, tmp_path: Path) -> None:
    whole, parts = (plan(tmp_path / name, *SAMPLERS[sampler], trials=8) for name in ("whole", "parts"))
    search(whole)
    for trials in (1, 5, 8):
        search(plan(tmp_path / "parts", *SAMPLERS[sampler], trials=trials), drawn=False)
    assert len(path_of(whole)) == 8
    assert path_of(parts) == path_of(whole)
    other = plan(tmp_path / "other", *SAMPLERS[sampler], "seed=4", trials=3)
    search(other, drawn=False)
    assert path_of(other)[1:] != path_of(whole)[1:3]


def test_the_recipe_as_it_stands_is_the_first_trial(tmp_path: Path) -> None:
    search(plan(tmp_path, trials=1))
    (start,) = log(tmp_path, "start")
    assert start["overrides"] == {
        "intervention.lr": 0.5,
        "intervention.steps": 5,
        "intervention.site": "down",
        "intervention.layers": [1],
    }
    outside = plan(tmp_path / "outside", "intervention.lr=2.0", trials=1)
    search(outside)
    assert log(tmp_path / "outside", "start")[0]["overrides"]["intervention.lr"] <= 1.0


def test_settings_that_are_conditional_are_left_alone_elsewhere(tmp_path: Path) -> None:
    search(plan(tmp_path, "search.sampler={use: random}", trials=12))
    drawn = [entry["overrides"] for entry in log(tmp_path, "start")]
    for overrides in drawn:
        assert ("intervention.layers" in overrides) == (overrides["intervention.site"] in ("up", "down"))
        layers = overrides.get("intervention.layers", [0])
        assert layers == list(range(layers[0], layers[0] + len(layers))) and len(layers) <= 2
    sites = [json.dumps(overrides["intervention.site"]) for overrides in drawn]
    assert set(sites) == {'"up"', '"down"', '["both", "sides"]'}


GRID = (
    "search.space={intervention.site: {type: choice, choices: [up, [both, sides]]}, "
    "intervention.lr: {type: float, low: 0.1, high: 0.35, step: 0.1}, "
    "intervention.layers: {type: layers, first: [0, 1], count: [1, 2], when: {intervention.site: up}}}"
)


def test_a_grid_asks_every_point_once_and_ends_by_itself(tmp_path: Path) -> None:
    given = ["search.sampler={use: grid}", GRID]
    search(plan(tmp_path, *given, trials=5), drawn=False)
    found = plan(tmp_path, *given, trials=100)
    assert search(found).finished == 3 * 4 + 3
    drawn = [json.dumps(entry["overrides"], sort_keys=True) for entry in log(tmp_path, "start")]
    assert len(drawn) == len(set(drawn)) == 15
    assert search(found, drawn=False).finished == 15
    (tmp_path / "huge").mkdir()
    huge = GRID.replace("step: 0.1", "step: 1e-6")
    with pytest.raises(UserError, match="more than 100,000 points"):
        search(plan(tmp_path / "huge", given[0], huge, trials=5))


def test_what_cannot_be_run_has_no_value_but_its_place(tmp_path: Path) -> None:
    class Choosy(FakeTrials):
        def run(self, overrides: Any, **more: Any) -> Any:
            if overrides["intervention.steps"] > 6:
                raise TrialFailed("steps: too many for this model", "run")
            return super().run(overrides, **more)

    summary = search_with(plan(tmp_path, trials=12), Choosy(tmp_path, 0.0))
    assert summary.failed > 0 and summary.finished + summary.failed == 12
    assert set(summary.reasons.values()) == {"steps: too many for this model"}


def test_what_breaks_every_trial_ends_the_search_and_costs_no_place(tmp_path: Path) -> None:
    class Broken(FakeTrials):
        def run(self, overrides: Any, **more: Any) -> Any:
            raise UserError("MLFLOW_TRACKING_URI: nothing answers")

    with pytest.raises(UserError, match="nothing answers"):
        search_with(plan(tmp_path, trials=3), Broken(tmp_path, 0.0))
    summary = search_with(plan(tmp_path, trials=3), FakeTrials(tmp_path, 0.0))
    assert summary.finished == 3


def test_a_goal_that_was_not_measured_is_no_value(tmp_path: Path) -> None:
    class Silent(FakeTrials):
        def run(self, overrides: Any, **more: Any) -> Any:
            result = super().run(overrides, **more)
            del result.metrics["locality"]
            return result

    summary = search_with(plan(tmp_path, trials=2), Silent(tmp_path, 0.0))
    assert (summary.finished, summary.failed, summary.best) == (0, 2, [])
    assert summary.reasons[0] == "search.constraints: not measured"


# Killed and stopped


def start(folder: Path, *more: str, trials: int, workers: int, seconds: float) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    arguments = [str(folder), str(trials), str(workers), str(seconds), *more]
    return subprocess.Popen(
        [sys.executable, search_fake.__file__, *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def check_nothing_is_lost(folder: Path, found: Plan, *, places: int) -> None:
    """Every finished trial is kept, every number stands once, every place has one outcome."""
    trials = found.open().trials()
    numbers = [trial.number for trial in trials]
    assert numbers == list(range(len(numbers)))
    starts = [entry["number"] for entry in log(folder, "start")]
    assert len(starts) == len(set(starts))
    ended = {entry["number"] for entry in log(folder, "end")}
    assert {t.number for t in trials if t.state == STATES.COMPLETE} == ended
    assert len(path_of(found)) == places


def test_a_killed_search_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    process = start(tmp_path / "killed", trials=8, workers=1, seconds=0.3)
    wait_for(lambda: len(log(tmp_path / "killed", "start")) == 3, process)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    journal = tmp_path / "killed" / "optuna" / "searched.journal"
    with journal.open("ab") as stream:
        stream.write(b'{"op_code": 8, "worker_id": "torn')
    whole, killed = (plan(tmp_path / name, trials=8) for name in ("whole", "killed"))
    search(whole, drawn=False)
    summary = search(killed)
    assert path_of(killed) == path_of(whole)
    check_nothing_is_lost(tmp_path / "killed", killed, places=8)
    assert [entry["number"] for entry in log(tmp_path / "killed", "lost")] == [2]
    assert [e["number"] for e in log(tmp_path / "killed", "start") if e["retry_of"] == 2] == [3]
    assert (summary.lost, summary.running) == (1, 0)
    assert "torn" in journal.with_name("searched.journal.torn").read_text()


def test_two_workers_one_of_which_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, trials=12, workers=2, seconds=0.4)

    def others() -> list[int]:
        return [entry["pid"] for entry in log(tmp_path, "start") if entry["pid"] != process.pid]

    wait_for(others, process)
    victim = others()[-1]
    running = next(e["number"] for e in reversed(log(tmp_path, "start")) if e["pid"] == victim)
    os.kill(victim, signal.SIGKILL)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0, out
    found = plan(tmp_path, trials=12)
    check_nothing_is_lost(tmp_path, found, places=12)
    assert [entry["number"] for entry in log(tmp_path, "lost")] == [running]
    (again,) = (e for e in log(tmp_path, "start") if e["retry_of"] == running)
    killed, retried = (found.open().trials()[number] for number in (running, again["number"]))
    assert (killed.state, retried.state) == (STATES.FAIL, STATES.COMPLETE)
    assert killed.params == retried.params
    pids = {entry["pid"] for entry in log(tmp_path, "start")}
    assert len(pids) >= 2 and not any(map(alive, pids))
    assert len(log(tmp_path, "test")) == 1


def test_ctrl_c_ends_all_workers_and_the_same_command_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, trials=12, workers=2, seconds=0.6)
    wait_for(lambda: len({entry["pid"] for entry in log(tmp_path, "start")}) == 2, process)
    pids = {entry["pid"] for entry in log(tmp_path, "start")}
    os.kill(process.pid, signal.SIGINT)
    out = process.communicate(timeout=30)[0]
    assert process.returncode != 0 and "KeyboardInterrupt" in out
    assert not any(map(alive, pids))
    found = plan(tmp_path, trials=12)
    states = [trial.state for trial in found.open().trials()]
    assert STATES.RUNNING not in states and 1 <= states.count(STATES.WAITING) <= 2  # one may be between two
    assert not list((tmp_path / "locks").iterdir())
    search(found)
    check_nothing_is_lost(tmp_path, found, places=12)


def test_a_signal_waits_until_a_trial_says_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan(tmp_path, trials=3)
    ask = optuna.Study.ask

    def disturbed(study: optuna.Study) -> Any:
        trial = ask(study)
        os.kill(os.getpid(), signal.SIGINT)
        return trial

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "ask", disturbed)
        with pytest.raises(KeyboardInterrupt):
            search(found)
    states = [trial.state for trial in found.open().trials()]
    assert states == [STATES.FAIL, STATES.WAITING]
    search(found)
    check_nothing_is_lost(tmp_path, found, places=3)


def test_what_a_worker_holds_is_given_back_wherever_it_is_stopped(tmp_path: Path) -> None:
    found = plan(tmp_path, trials=3)

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    class Stopping(FakeTrials):
        def run(self, overrides: Any, *, number: int, **more: Any) -> Any:
            if number == 1:
                raise KeyboardInterrupt
            return super().run(overrides, number=number, **more)

    with pytest.raises(KeyboardInterrupt):  # after a trial was told
        run_search(found, functools.partial(fake_trials, tmp_path, 0.0), say=stop)
    with pytest.raises(KeyboardInterrupt):  # while a trial runs
        search_with(found, Stopping(tmp_path, 0.0))
    states = [trial.state for trial in found.open().trials()]
    assert states == [STATES.COMPLETE, STATES.FAIL, STATES.WAITING]
    assert (search(found).finished, search(found).lost) == (3, 1)


def test_a_worker_without_its_parent_ends(tmp_path: Path) -> None:
    process = start(tmp_path, trials=100, workers=2, seconds=0.3)
    wait_for(lambda: len({entry["pid"] for entry in log(tmp_path, "start")}) == 2, process)
    pids = {entry["pid"] for entry in log(tmp_path, "start")}
    process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while any(map(alive, pids - {process.pid})):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.communicate()
    assert len(log(tmp_path, "start")) < 100


def test_a_trial_that_always_kills_its_worker_is_given_up(tmp_path: Path) -> None:
    found = plan(tmp_path, trials=2)
    study = found.open()
    for _ in range(TRIES):
        with working(found.locks, "searched") as worker:
            taken = study.take(1, worker=worker)
            assert taken is not None and study._place_of(taken.trial) == 0
    with working(found.locks, "searched") as worker:
        assert study.take(1, worker=worker) is None
    assert len(worker.lost) == 1
    summary = search(found)
    assert (summary.lost, summary.finished, summary.running) == (TRIES, 1, 0)


def test_the_trial_of_a_living_worker_or_of_another_machine_is_left_alone(tmp_path: Path) -> None:
    found = plan(tmp_path, trials=3)
    study = found.open()
    with working(found.locks, "searched") as one, working(found.locks, "searched") as two:
        first = study.take(3, worker=one)
        two.attribute["host"] = "elsewhere"
        second = study.take(3, worker=two)
        assert first is not None and second is not None
        summary = search(found)
        assert (summary.finished, summary.running) == (1, 2)
        assert log(tmp_path, "test") == []  # whoever ends last does that
    assert (search(found).finished, search(found).running) == (2, 1)


def test_two_machines_that_take_the_last_place_at_once(tmp_path: Path) -> None:
    found = plan(tmp_path, trials=1)
    study = found.open()
    ask = study._study.ask

    def overtaken() -> Any:
        study._study.ask = ask
        ask()
        return ask()

    study._study.ask = overtaken
    with working(found.locks, "searched") as worker:
        assert study.take(1, worker=worker) is None
    assert [trial.state for trial in study.trials()] == [STATES.RUNNING, STATES.FAIL]
    assert search(found).finished == 1 and len(path_of(found)) == 1


# Goals, pruning, results


def test_the_best_trial_keeps_the_constraints(tmp_path: Path) -> None:
    found = plan(
        tmp_path, "search.constraints=['locality >= 0.95']", "search.sampler={use: random}", trials=15
    )
    (best,) = search(found).best
    trials = {t.number: t for t in found.open().trials() if t.state == STATES.COMPLETE}
    assert best.overrides["intervention.lr"] <= 0.15
    kept = [t.value for t in trials.values() if t.params["intervention.lr"] <= 0.15]
    assert best.dev["score"] == max(kept) < max(t.value for t in trials.values())


def test_several_goals_give_a_front(tmp_path: Path) -> None:
    given = [
        "search.goal={score: maximize, abs(cost/seconds): minimize}",
        "search.tests=2",
        "search.constraints=[]",
    ]
    found, trials = plan(tmp_path, *given, trials=15), FakeTrials(tmp_path, 0.0)
    summary = search_with(found, trials)
    done = [t.values for t in found.open().trials() if t.state == STATES.COMPLETE]
    for best in summary.best:
        score, cost = best.dev["score"], best.dev["abs(cost/seconds)"]
        assert not any(s >= score and c <= cost and (s, c) != (score, cost) for s, c in done)
    assert len(summary.best) == 2 == len(log(tmp_path, "test"))
    assert "pareto" in trials.figures and set(summary.importances) == set(summary.goal)


@pytest.mark.parametrize(
    "pruner",
    [
        "{use: median, n_startup_trials: 2}",
        "{use: halving}",
        "{use: wilcoxon, n_startup_steps: 0, p_threshold: 0.3}",
    ],
)
def test_pruning_and_what_it_saves(pruner: str, tmp_path: Path) -> None:
    found = plan(tmp_path, f"search.pruner={pruner}", trials=12)
    summary = search(found)
    trials = [t for t in found.open().trials() if "result" in t.user_attrs]
    asked = sum(10 * len(t.intermediate_values) for t in trials)
    assert summary.pruned > 0 and summary.pruned + summary.finished == len(trials)
    assert summary.saved == pytest.approx(1 - asked / (40 * len(trials))) and summary.saved > 0.1
    assert all(len(t.intermediate_values) == 4 for t in trials if t.state == STATES.COMPLETE)
    unpruned = search(plan(tmp_path / "unpruned", trials=3))
    assert (unpruned.pruned, unpruned.saved) == (0, 0.0)


def test_a_wilcoxon_test_that_can_never_stop_a_trial_is_refused(tmp_path: Path) -> None:
    found = plan(tmp_path, "search.pruner={use: wilcoxon, p_threshold: 0.125}", trials=3)
    with pytest.raises(UserError, match=r"^search.pruner: .*'score' is measured in 3 parts .* takes 4;"):
        search(found)
    assert not log(tmp_path, "start")


def test_results(tmp_path: Path) -> None:
    found, trials = plan(tmp_path, trials=8), FakeTrials(tmp_path, 0.0)
    summary = search_with(found, trials)
    assert set(trials.figures) == {"history", "slice", "parallel", "importances"}
    for name, figure in trials.figures.items():
        figure.savefig(tmp_path / f"{name}.svg")
    names = ["searched.best.yaml", "searched.best.dev.yaml"]
    assert trials.artifacts == [tmp_path / "optuna" / name for name in names]
    (best,) = summary.best
    tested, on_dev = (load(str(file)).resolved for file in trials.artifacts)
    for resolved in (tested, on_dev):
        flat = flatten(resolved)
        assert {path: flat[path] for path in best.overrides} == best.overrides
        assert resolved["search"] is None
    assert tested["evaluation"]["split"] == tested["facts"]["split"] == "test"
    assert f"score {best.dev['score']:.4g}" in trials.artifacts[1].read_text()
    metrics, note = trials.told
    assert metrics["score"] == best.dev["score"] and note is not None
    assert "| 0.5000 | +0.2500 [+0.1000, +0.4000] |" in note and note.endswith("Scripted.")
    assert (best.test, best.optimism["score"].low) == ({"score": 0.5}, 0.1)
    assert search_with(found, trials).best == summary.best
    assert len(log(tmp_path, "test")) == 1


def test_a_warm_start_from_past_runs(tmp_path: Path) -> None:
    trials = FakeTrials(tmp_path, 0.0)
    fine = {"score": 5.0, "locality": 1.0}
    trials.earlier = [
        ({"intervention.lr": 0.25}, fine),
        ({"intervention.lr": 7.0}, fine),  # outside the space
        ({"seed": 9}, fine),  # another experiment
        ({}, {"locality": 1.0}),  # no goal
        ({}, {"score": 9.0}),  # no constraint
    ]
    cold = search_with(plan(tmp_path / "cold", trials=1), trials)
    assert cold.past == 0
    found = plan(tmp_path, "search.warm_start=true", trials=3)
    summary = search_with(found, trials)
    assert (summary.past, summary.finished) == (1, 3)
    assert summary.best[0].dev["score"] < 5.0  # what was measured elsewhere informs, and does not win
    assert search_with(found, trials).past == 1


# Refused before any trial


@pytest.mark.parametrize(
    ("overrides", "storage", "said"),
    [
        (["search.goal={scor: maximize}"], None, "search.goal.scor: .* logs 'scor'; did you mean 'score'"),
        (["search.constraints=['local >= 1']"], None, "search.constraints: .* logs 'local'"),
        (
            ["search.pruner={use: median, metric: x}"],
            None,
            "search.pruner.metric: .* logs 'x' .there are: cost",
        ),
        (["search=null"], None, "has no search section"),
        (
            [],
            "postgresql://me:secret@127.0.0.1:1/x",
            r"--storage: postgresql://me:\*\*\*@127.0.0.1:1/x cannot",
        ),
        ([], "grpc://127.0.0.1:1", "--storage: grpc://127.0.0.1:1 cannot be used"),
        ([], "sqlite:////nowhere/x.db", "--storage: sqlite:////nowhere/x.db cannot be used"),
        ([], "oddbase://x", "--storage: oddbase://x cannot be used"),
        ([], "/dev/null/x", "--storage: cannot write /dev/null/x"),
    ],
)
def test_bad_input_is_told_before_any_trial(
    overrides: list[str], storage: str | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        search(plan(tmp_path, *overrides, trials=2, storage=storage))
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert log(tmp_path, "start") == []
    summary = search(plan(tmp_path, trials=1))  # nothing is left that would be in the way
    assert summary.finished == 1


def test_a_study_of_another_recipe(tmp_path: Path) -> None:
    search(plan(tmp_path, trials=1))
    with pytest.raises(UserError, match="--study: 'searched' is a study of another recipe"):
        search(plan(tmp_path, "intervention.lr=0.4", trials=2))
    assert len(log(tmp_path, "start")) == 1


def test_a_damaged_journal(tmp_path: Path) -> None:
    search(plan(tmp_path, trials=1))
    journal = tmp_path / "optuna" / "searched.journal"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:3], lines[3][:9], *lines[4:]]) + "\n")
    with pytest.raises(UserError, match="is damaged"):
        search(plan(tmp_path, trials=2))


def test_a_line_that_is_torn_while_others_write(tmp_path: Path) -> None:
    place = open_place(None, folder=tmp_path, study="s")
    study = optuna.create_study(storage=place.storage, study_name="s")
    with (tmp_path / "s.journal").open("ab") as stream:
        stream.write(b'{"op_code": 4')
    study.set_user_attr("a", 1)
    fresh = open_place(None, folder=tmp_path, study="s")
    assert optuna.load_study(storage=fresh.storage, study_name="s").user_attrs == {"a": 1}


def test_another_storage(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    whole = plan(tmp_path, trials=3, storage=url)
    search(plan(tmp_path, trials=1, storage=url))
    assert search(whole).finished == 3
    journal = plan(tmp_path / "journal", trials=3)
    search(journal)
    assert path_of(whole) == path_of(journal)


def test_the_study_that_is_shown_is_the_one_that_was_searched(tmp_path: Path) -> None:
    from gapeval_lab.search_report import summary
    from gapeval_lab.search_study import load_study

    done = search(plan(tmp_path, trials=5))
    place = open_place(None, folder=tmp_path / "optuna", study="searched")
    shown = load_study(place, "searched")
    assert isinstance(shown, SearchStudy) and summary(shown) == done
    with pytest.raises(UserError, match=r"no study 'other' .*there are: searched"):
        load_study(place, "other")


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(6))
    monkeypatch.setenv(THREADS, "5")
    with shared_threads(2):
        assert os.environ[THREADS] == "5"
    monkeypatch.delenv(THREADS)
    for workers, threads in ((2, "3"), (4, "1"), (9, "1")):
        with shared_threads(workers):
            assert os.environ[THREADS] == threads
    with shared_threads(1):
        assert THREADS not in os.environ


def test_killed_workers_are_replaced_and_failed_ones_are_told() -> None:
    with crew(functools.partial(time.sleep, 60), 1) as beside:
        for _ in range(RESPAWNS):
            (process,) = beside._processes
            process.kill()
            process.join()
            assert beside.tend()
        (process,) = beside._processes
        process.kill()
        process.join()
        assert not beside.tend()
    with crew(functools.partial(int, "no number"), 1) as beside, pytest.raises(WorkerFailed, match="code 1"):
        beside._processes[0].join()
        beside.tend()
