"""Several runs of one recipe as one table: means over seeds with t-intervals."""

import math
from pathlib import Path

import pytest
from factories import make_outcome, with_protocols

from gapeval_lab.outcome import Emergence, EmergencePoint
from gapeval_lab.repeats import over_seeds, repeats_data


def test_the_interval_is_students() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # t(0.975, 2 degrees of freedom) times s / sqrt(n)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))


def test_a_single_run_has_no_interval_and_a_share_none_beyond_its_ends() -> None:
    assert math.isnan(over_seeds([0.5]).low)
    shares = over_seeds([0.8, 1.0, 1.0], share=True)
    assert shares.low < shares.value < shares.high == 1.0
    assert over_seeds([0.8, 1.0, 1.0]).high > 1.0


def test_the_lag_over_seeds_leaves_out_runs_that_never_crossed(tmp_path: Path) -> None:
    outcome = make_outcome(tmp_path)

    def run(lag: float | None) -> Emergence:
        points = [EmergencePoint(step=0, text=0.0, image=0.0)]
        return Emergence(points=points, crossings={"text": {"50": 2.0}, "image": {}}, lag={"50": lag})

    runs = [outcome.model_copy(update={"emergence": run(lag)}) for lag in (1.0, 3.0, None)]
    found = {name: (estimate, n) for name, estimate, n in repeats_data(runs)}
    lag, n = found["lag at 50 %, image after text"]
    assert (lag.value, n) == (2.0, 2)
    assert found["text crosses 50 %, updates"][1] == 3
    assert found["gap shift"][0].value == pytest.approx(outcome.shift.gap.value if outcome.shift else 0)


def test_protocols_are_taken_together_by_name(tmp_path: Path) -> None:
    outcome = with_protocols(make_outcome(tmp_path))
    found = {name: (estimate, n) for name, estimate, n in repeats_data([outcome, outcome])}
    assert found["reliability/whole"][0].value == 0.9
    over, runs = found["reliability/whole over direct"]
    assert (over.value, runs) == (pytest.approx(0.1), 2)
    assert "reliability/direct over direct" not in found
