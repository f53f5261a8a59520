"""Models and items that know one direction: accuracies, shifts and whole runs, without a gap."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_run import bench, go, scripted_umm

from gapeval_lab.errors import UserError
from gapeval_lab.gap.one_sided import state_report, state_shift
from gapeval_lab.gap.score import gap_report
from gapeval_lab.gap.shift import holm, mcnemar, shift_report
from gapeval_lab.gap.table import ItemVerdict, cells
from gapeval_lab.items import Direction
from gapeval_lab.outcome import Outcome
from gapeval_lab.repeats import repeats_data
from gapeval_lab.report import draw_outcome
from gapeval_lab.tracking_figure import gap_shift_data
from gapeval_lab.tracking_scalars import scalars
from gapeval_lab.tracking_tables import pairs, tables
from gapeval_lab.tracking_values import curves, headline, note, tags

RNG = np.random.default_rng(3)


def state(told: float | None, drawn: float | None, n: int = 30) -> list[ItemVerdict]:
    def draw(share: float | None) -> bool | None:
        return None if share is None else bool(RNG.random() < share)

    return [ItemVerdict(name, draw(told), draw(drawn)) for name in ("a", "b") for _ in range(n)]


def test_where_both_sides_are_scored_nothing_is_different() -> None:
    before, after = state(0.5, 0.6), state(0.7, 0.6)
    assert state_report(before, seed=1, replicates=200) == gap_report(cells(before), seed=1, replicates=200)
    assert state_shift(before, after, seed=1, replicates=200) == shift_report(
        before, after, seed=1, replicates=200
    )


@pytest.mark.parametrize("side", ["understanding", "generation"])
def test_one_side_alone(side: str) -> None:
    shares = (0.5, None) if side == "understanding" else (None, 0.5)
    before = state(*shares)
    after = [item._replace(**{side: True}) if n % 3 == 0 else item for n, item in enumerate(before)]
    before[1] = before[1]._replace(**{side: None})
    report = state_report(before, seed=1, replicates=400)
    assert (report.gap, report.null_gap, report.official) == (None, None, None)
    a, b = report.one_sided["a"], report.one_sided["b"]
    assert (a.direction, a.n, a.unscored, b.n) == (side, 29, 1, 30)
    right = [getattr(item, side) for item in before if item.category == "b"]
    assert b.accuracy.value == pytest.approx(np.mean(right))
    assert b.accuracy.low < b.accuracy.value < b.accuracy.high
    mean, other = report.understanding, report.generation
    if side == "generation":
        mean, other = other, mean
    assert other is None and mean is not None
    assert mean.value == pytest.approx((a.accuracy.value + b.accuracy.value) / 2)
    assert mean.high - mean.low < b.accuracy.high - b.accuracy.low

    shift = state_shift(before, after, seed=1, replicates=400)
    moved = shift.one_sided["b"]
    gained = sum(
        getattr(y, side) and not getattr(x, side) for x, y in zip(before[30:], after[30:], strict=True)
    )
    assert (moved.accuracy.gained, moved.accuracy.lost, moved.n) == (gained, 0, 30)
    assert moved.accuracy.shift.value == pytest.approx(gained / 30)
    assert moved.accuracy.p == mcnemar(gained, 0)
    assert [one.accuracy.p_holm for one in shift.one_sided.values()] == holm(
        [one.accuracy.p for one in shift.one_sided.values()]
    )
    assert shift.gap is None and shift.changed_items == gained + shift.one_sided["a"].accuracy.gained
    assert getattr(shift, side).low > 0
    same = state_shift(before, before, seed=1, replicates=50)
    assert (getattr(same, side).low, getattr(same, side).high, same.changed_items) == (0.0, 0.0, 0)


def test_sides_beside_each_other() -> None:
    """As in RealUnify: some categories are told, some drawn; a mixed one stands there once per side."""
    items = [ItemVerdict("told", True, None)] * 4 + [ItemVerdict("drawn", None, False)] * 6
    items += [ItemVerdict("mixed", True, None), ItemVerdict("mixed", None, True)]
    report = state_report(items, seed=0, replicates=20)
    assert {name: one.direction for name, one in report.one_sided.items()} == {
        "told": "understanding",
        "drawn": "generation",
        "mixed/understanding": "understanding",
        "mixed/generation": "generation",
    }
    assert report.understanding is not None and report.understanding.value == 1.0
    assert report.generation is not None and report.generation.value == 0.5
    both = [*items, ItemVerdict("both", True, False)]
    beside = state_report(both, seed=0, replicates=20, official=False)
    assert beside.gap is not None and set(beside.one_sided) == set(report.one_sided)
    assert beside.understanding is not None and beside.understanding.value == 1.0, "of the two-sided alone"
    with pytest.raises(UserError, match="none of 2 items"):
        state_report([ItemVerdict("a", None, None)] * 2, seed=0, replicates=20)
    with pytest.raises(UserError, match="none of 2 items"):
        state_shift(*[[ItemVerdict("a", None, None)] * 2] * 2, seed=0, replicates=20)


@pytest.mark.parametrize("stages", [True, False])
def test_a_whole_run_of_a_model_that_only_tells(tmp_path: Path, stages: bool) -> None:
    umm = scripted_umm()
    umm.directions = frozenset({Direction.UNDERSTANDING})
    parts = bench(umm)
    if not stages:
        parts.stages = []
    outcome = go(tmp_path, parts)
    report = (outcome.after or outcome.before).gap
    assert report.gap is None and report.generation is None and report.understanding is not None
    assert report.understanding.value == (0.125 if stages else 0.0)
    assert Outcome.model_validate_json(outcome.model_dump_json()) == outcome

    metrics = scalars(outcome)
    assert metrics["before/understanding"] == 0.0 and "before/gap_score" not in metrics
    assert curves(outcome)["understanding/overall"][-1][1] == report.understanding.value
    assert "gap/overall" not in curves(outcome) and gap_shift_data(outcome) is None
    if stages:
        assert metrics["delta/understanding"] == 0.125 and metrics["delta/a"] == 0.25
        assert outcome.identity_shift is not None and outcome.identity_shift.changed_items == 0
        assert dict((name, value) for name, value, _ in repeats_data([outcome, outcome]))
    shown = {table.name: table for table in tables(outcome, pairs(outcome))}["2_category_shift"]
    assert [row[0] for row in shown.rows] == ["a", "b"]
    assert all(len(row) == len(shown.columns) for row in shown.rows)
    (told,) = {row[shown.columns.index("und_before")] for row in shown.rows}
    assert told == 0.0 and all(row[shown.columns.index("gen_before")] is None for row in shown.rows)
    assert "No gap, nothing is scored in both directions; understanding" in headline(outcome)
    assert "n/a" in note(outcome, links={}) and "verdict" not in tags(outcome)
    console = Console(width=150, record=True, quiet=False, file=(tmp_path / "shown").open("w"))
    console.print(draw_outcome(outcome))
    text = console.export_text()
    assert "No gap can be told" in text and "n/a" in text and ("What shifted" in text) == stages
