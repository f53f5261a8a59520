"""What the figures of a study show of the runs that it knew from before."""

from __future__ import annotations

from pathlib import Path

from search_fake import FakeTrials, plan
from test_search import plug_ins, search_with  # noqa: F401 (a fixture)

from gapeval_lab.search_figures import draw_history, draw_parallel, draw_pareto, points_data

GOALS = "search.goal={score: maximize, cost/seconds: minimize}"


def test_past_runs_are_shown_and_never_as_the_best(tmp_path: Path) -> None:
    trials = FakeTrials(tmp_path, 0.0)
    unbeaten = {"score": 5.0, "locality": 1.0, "cost/seconds": 0.0}
    trials.earlier = [({"intervention.lr": 0.25}, unbeaten)]
    found = plan(tmp_path, GOALS, "search.warm_start=true", "search.constraints=[]", trials=6)
    summary = search_with(found, trials)
    assert (summary.past, summary.finished) == (1, 6)
    data = points_data(found.open().optuna, found.section)
    assert data.past == [True] + 6 * [False] and data.kept == 7 * [True]
    fronts = {number for number, front in zip(data.numbers, data.front, strict=True) if front}
    assert fronts == {best.number for best in summary.best}
    score, cost = (goal.positions for goal in data.goals)
    history = draw_history(data)
    for axes, goal, pick in zip(history.axes, (score, cost), (max, min), strict=True):
        (line,) = axes.lines
        assert list(line.get_xdata()) == data.numbers[1:]
        assert line.get_ydata()[-1] == pick(value for value in goal[1:] if value is not None)
    shown = {drawn.get_label(): drawn.get_offsets() for drawn in draw_pareto(data).axes[0].collections}
    assert shown["past run"].tolist() == [[score[0], cost[0]]] == [[5.0, 0.0]]
    assert {len(points) for label, points in shown.items() if label == "best"} == {len(fronts)}
    assert sum(map(len, shown.values())) == 7
    lines = [line.get_color() for line in draw_parallel(data).axes[0].lines[:7]]
    assert lines[0] == "#999999" and lines.count("#d55e00") == len(fronts)
