"""Whose a study is, and which trials keep their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from search_fake import FakeTrials, plan
from test_search import log, path_of, plug_ins, search, search_with  # noqa: F401 (a fixture)

from gapeval_lab.errors import UserError
from gapeval_lab.search_storage import open_place
from gapeval_lab.search_study import TRIES, open_study, working
from gapeval_lab.tracking_stop import Stopped

TWO_GOALS = "search.goal={score: maximize, cost/seconds: minimize}"


def made_elsewhere(folder: Path, *directions: str) -> Any:
    """A study of Optuna's in the journal that a search would use."""
    place = open_place(None, folder=folder / "optuna", study="searched")
    return optuna.create_study(storage=place.storage, study_name="searched", directions=directions)


@pytest.mark.parametrize("directions", [["maximize"], ["minimize"], ["maximize", "minimize"]])
def test_a_study_that_is_not_ours_is_not_taken_over(directions: list[str], tmp_path: Path) -> None:
    study = made_elsewhere(tmp_path, *directions)
    if directions == ["maximize"]:
        study.enqueue_trial({"x": 1})
    journal = tmp_path / "optuna" / "searched.journal"
    before, found = journal.read_bytes(), plan(tmp_path, trials=2)
    said = "--study: 'searched' was not made by a search of ours; give another name"
    with pytest.raises(UserError, match=said):
        search(found)
    place = open_place(None, folder=found.folder, study="searched")
    with pytest.raises(UserError, match=said):  # it may be there only since the first look
        open_study(place, "searched", found.loaded, found.section)
    assert journal.read_bytes().startswith(before) and "recipe" not in attributes(place)
    assert log(tmp_path, "start") == []


def attributes(place: Any) -> dict[str, Any]:
    return dict(optuna.load_study(storage=place.storage, study_name="searched").user_attrs)


@pytest.mark.parametrize(
    ("directions", "more"), [(["maximize"], []), (["maximize", "minimize"], [TWO_GOALS])]
)
def test_a_study_whose_maker_was_killed_is_ours(
    directions: list[str], more: list[str], tmp_path: Path
) -> None:
    made_elsewhere(tmp_path, *directions)
    assert search(plan(tmp_path, *more, trials=1)).finished == 1


def test_a_study_whose_trials_are_in_another_mlflow_store(tmp_path: Path) -> None:
    class Elsewhere(FakeTrials):
        parent_id = "another"

    search(plan(tmp_path, trials=1))
    said = "--study: the trials of 'searched' are in another MLflow store; set MLFLOW_TRACKING_URI"
    with pytest.raises(UserError, match=said):
        search_with(plan(tmp_path, trials=2), Elsewhere(tmp_path, 0.0))
    assert len(log(tmp_path, "start")) == 1
    assert search(plan(tmp_path, trials=2)).finished == 2


STOPS: list[BaseException] = [KeyboardInterrupt(), Stopped(143), UserError("MLFLOW_TRACKING_URI: none")]


def test_a_trial_that_was_stopped_often_keeps_its_place(tmp_path: Path) -> None:
    class Stopping(FakeTrials):
        def run(self, overrides: Any, *, number: int, **more: Any) -> Any:
            if left and number > 0:
                raise left.pop()
            return super().run(overrides, number=number, **more)

    left, found = [*STOPS], plan(tmp_path, trials=3)
    for stop in reversed(STOPS):
        with pytest.raises(type(stop)):
            search_with(found, Stopping(tmp_path, 0.0))
    summary = search_with(found, Stopping(tmp_path, 0.0))
    assert not left and len(STOPS) == TRIES
    assert (summary.finished, summary.lost, summary.running) == (3, TRIES, 0)
    search(plan(tmp_path / "whole", trials=3))
    assert path_of(found) == path_of(plan(tmp_path / "whole", trials=3))


def test_only_deaths_count_as_tries(tmp_path: Path) -> None:
    found = plan(tmp_path, trials=1)
    study = found.open()
    for _ in range(TRIES):
        for died in (False, True):
            with working(found.locks, "searched") as worker:
                assert study.take(1, worker=worker) is not None
                if not died:
                    study.give_back(worker)
    with working(found.locks, "searched") as worker:
        assert study.take(1, worker=worker) is None
