import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gapeval_lab.errors import UserError
from gapeval_lab.gap.records import Estimate
from gapeval_lab.gap.score import gap_report
from gapeval_lab.gap.shift import holm, mcnemar, shift_report
from gapeval_lab.gap.table import ItemVerdict, cells

VERDICT = st.sampled_from([True, False, None])
PAIRS = st.lists(
    st.tuples(st.sampled_from("ab"), VERDICT, VERDICT, VERDICT, VERDICT), min_size=1, max_size=40
).filter(lambda rows: any(None not in row for row in rows))
FAST = settings(deadline=None, max_examples=40)
CELL = [(True, True), (True, False), (False, True), (False, False)]


def states(rows):
    return [ItemVerdict(c, u, g) for c, u, g, _, _ in rows], [ItemVerdict(c, u, g) for c, _, _, u, g in rows]


def from_table(table, name="a"):
    """Items before and after from a (4, 4) table of transitions."""
    moves = [(i, j) for i in range(4) for j in range(4) for _ in range(table[i][j])]
    return [ItemVerdict(name, *CELL[i]) for i, _ in moves], [ItemVerdict(name, *CELL[j]) for _, j in moves]


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (1, 8, 20 / 512), (8, 1, 20 / 512), (0, 5, 2 / 32), (3, 3, 1.0), (10, 2, 2 * 79 / 4096)],
)
def test_mcnemar_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_holm_by_hand():
    # sorted: .005 x 4 = .02, .01 x 3 = .03, .03 x 2 = .06, .04 x 1 = .04 -> raised to .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_shift_by_hand():
    table = [[20, 1, 0, 0], [6, 8, 0, 2], [1, 0, 4, 0], [0, 0, 3, 5]]
    found = shift_report(*from_table(table), seed=0, replicates=500)
    part = found.categories["a"]
    assert part.n == 50
    assert part.transitions == table
    # Generation: right before 21 + 5, after 27 + 7; gained 6 + 0 (und_only) and 0 + 3 (neither), lost 1.
    assert (part.generation.gained, part.generation.lost) == (9, 1)
    assert part.generation.shift.value == pytest.approx(8 / 50)
    assert part.generation.p == pytest.approx(2 * 11 / 1024)
    # Understanding: gained 1 (gen_only -> both), lost 2 (und_only -> neither).
    assert (part.understanding.gained, part.understanding.lost) == (1, 2)
    assert part.understanding.shift.value == pytest.approx(-1 / 50)
    assert part.understanding.p == part.understanding.p_holm == 1.0
    assert found.changed_items == 13


def test_holm_runs_over_the_categories_of_one_direction():
    up = [[10, 0, 0, 0], [8, 5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 9]]
    still = [[10, 0, 0, 0], [0, 5, 0, 0], [0, 0, 3, 0], [0, 0, 0, 9]]
    (b1, a1), (b2, a2), (b3, a3) = from_table(up, "x"), from_table(still, "y"), from_table(still, "z")
    found = shift_report(b1 + b2 + b3, a1 + a2 + a3, seed=0, replicates=50).categories
    assert found["x"].generation.p == pytest.approx(2 / 256)
    assert found["x"].generation.p_holm == pytest.approx(6 / 256)
    assert found["x"].understanding.p_holm == found["y"].generation.p_holm == 1.0


@given(PAIRS)
@FAST
def test_margins_and_marginal_shifts_match(rows):
    before, after = states(rows)
    found = shift_report(before, after, seed=0, replicates=50)
    for name, part in found.categories.items():
        own = [row for row in rows if row[0] == name and None not in row]
        assert part.n == len(own) == sum(map(sum, part.transitions))
        assert part.generation.shift.value * part.n == pytest.approx(
            part.generation.gained - part.generation.lost
        )
        first = cells([ItemVerdict(c, u, g) for c, u, g, _, _ in own])[name]
        assert [sum(line) for line in part.transitions] == [
            first.both,
            first.und_only,
            first.gen_only,
            first.neither,
        ]
        assert part.gap.low <= part.gap.value <= part.gap.high
    counted = sum(None not in row for row in rows)
    assert counted == sum(part.n for part in found.categories.values())
    assert found.changed_items == sum(row[1:3] != row[3:] for row in rows if None not in row)


@given(PAIRS)
@FAST
def test_nothing_changed_is_exactly_nothing(rows):
    before = [ItemVerdict(c, u, g) for c, u, g, _, _ in rows if None not in (u, g)]
    found = shift_report(before, list(before), seed=0, replicates=50)
    zero = Estimate(0.0, 0.0, 0.0)
    assert found.changed_items == 0
    assert (found.gap, found.understanding, found.generation) == (zero, zero, zero)
    for part in found.categories.values():
        assert (part.gap, part.signed_gap, part.understanding.shift, part.generation.shift) == (zero,) * 4
        assert part.understanding.p == part.generation.p_holm == 1.0


@given(PAIRS)
@FAST
def test_going_back_reverses_the_shift(rows):
    before, after = states(rows)
    there = shift_report(before, after, seed=0, replicates=2)
    back = shift_report(after, before, seed=0, replicates=2)
    assert there.gap.value == -back.gap.value
    for name, part in there.categories.items():
        assert part.signed_gap.value == -back.categories[name].signed_gap.value
        assert (part.generation.gained, part.generation.lost) == (
            back.categories[name].generation.lost,
            back.categories[name].generation.gained,
        )
        assert part.generation.p == pytest.approx(back.categories[name].generation.p)


def test_shift_is_the_difference_of_the_reports_where_all_is_scored():
    before, after = from_table([[20, 1, 0, 0], [6, 8, 0, 2], [1, 0, 4, 0], [0, 0, 3, 5]])
    shift = shift_report(before, after, seed=0, replicates=50)
    first, second = (
        gap_report(cells(state), seed=0, replicates=50, official=False) for state in (before, after)
    )
    assert shift.gap.value == pytest.approx(second.gap.value - first.gap.value)
    assert shift.categories["a"].signed_gap.value == pytest.approx(
        second.categories["a"].signed_gap.value - first.categories["a"].signed_gap.value
    )


def test_one_category_leaves_the_others_exactly_equal():
    kept = from_table([[20, 1, 0, 0], [6, 8, 0, 2], [1, 0, 4, 0], [0, 0, 3, 5]], "kept")
    other = from_table([[2, 1, 3, 0], [0, 8, 4, 2], [1, 0, 4, 0], [0, 5, 3, 5]], "other")
    alone = shift_report(*kept, seed=0, replicates=200).categories["kept"]
    beside = shift_report(other[0] + kept[0], other[1] + kept[1], seed=0, replicates=200).categories["kept"]
    assert (beside.gap, beside.signed_gap, beside.generation.shift) == (
        alone.gap,
        alone.signed_gap,
        alone.generation.shift,
    )


def test_coverage_of_the_paired_intervals():
    p = np.array([[0.3, 0.01, 0.01, 0], [0.1, 0.22, 0, 0.02], [0.02, 0, 0.06, 0.01], [0.01, 0.01, 0.03, 0.2]])
    first, second = p.sum(axis=1), p.sum(axis=0)

    def truth(cell):
        d = stats.logistic.ppf(cell[0] + cell[1]) - stats.logistic.ppf(cell[0] + cell[2])
        return stats.logistic.cdf(np.log(abs(d)) + 2.7 * cell[3] - 1.05 * cell[0]), d

    (gap_1, d_1), (gap_2, d_2) = truth(first), truth(second)
    wanted = {
        "gap": gap_2 - gap_1,
        "signed_gap": d_2 - d_1,
        "generation": second[[0, 2]].sum() - first[[0, 2]].sum(),
    }
    hits = {name: [] for name in wanted}
    draws = np.random.default_rng(4).multinomial(300, p.ravel(), size=600).reshape(-1, 4, 4)
    for i, table in enumerate(draws):
        part = shift_report(*from_table(table), seed=i, replicates=400).categories["a"]
        found = {"gap": part.gap, "signed_gap": part.signed_gap, "generation": part.generation.shift}
        for name, value in wanted.items():
            hits[name].append(found[name].low <= value <= found[name].high)
    coverage = {name: float(np.mean(found)) for name, found in hits.items()}
    assert all(0.93 <= share <= 0.97 for share in coverage.values()), coverage


def test_the_same_seed_gives_the_same_report_and_another_does_not():
    pair = from_table([[20, 1, 0, 0], [6, 8, 0, 2], [1, 0, 4, 0], [0, 0, 3, 5]])
    assert shift_report(*pair, seed=1, replicates=200) == shift_report(*pair, seed=1, replicates=200)
    assert shift_report(*pair, seed=1, replicates=200).gap != shift_report(*pair, seed=2, replicates=200).gap


def test_unscored_items_do_not_count_and_empty_categories_are_named():
    before = [ItemVerdict("a", True, True), ItemVerdict("a", True, None), ItemVerdict("b", None, True)]
    after = [ItemVerdict("a", True, False), ItemVerdict("a", True, True), ItemVerdict("b", True, True)]
    found = shift_report(before, after, seed=0, replicates=20, categories=["b", "a", "c"])
    assert list(found.categories) == ["a"]
    assert found.categories["a"].n == 1
    assert found.left_out == {"b": 1, "c": 0}
    with pytest.raises(UserError, match="none of 1 items"):
        shift_report(before[2:], after[2:], seed=0, replicates=20)


def test_different_items_are_our_mistake():
    items = [ItemVerdict("a", True, True), ItemVerdict("b", True, True)]
    with pytest.raises(ValueError, match="the same"):
        shift_report(items, items[::-1], seed=0)
    with pytest.raises(ValueError, match="the same"):
        shift_report(items, items[:1], seed=0)
