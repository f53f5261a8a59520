import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gapeval_lab.errors import UserError
from gapeval_lab.gap import official
from gapeval_lab.gap.official_batch import FitError
from gapeval_lab.gap.records import Cells
from gapeval_lab.gap.resample import bootstrap, estimate, stream
from gapeval_lab.gap.score import accuracies, gap, gap_report, overlap, phi, point_gap, signed_gap
from gapeval_lab.gap.shift import mcnemar
from gapeval_lab.gap.table import Rows, counts_array

COUNT = st.integers(0, 60)
CELLS = st.builds(Cells, COUNT, COUNT, COUNT, COUNT).filter(lambda c: c.n > 0)
FAST = settings(deadline=None, max_examples=40)


def row(cells):
    return counts_array([cells])[0]


def report(table, seed=0, replicates=500):
    return gap_report(table, seed=seed, replicates=replicates, official=False)


def test_formula_by_hand():
    # n = 10: U = 7, G = 4.  D = log(7.5 / 3.5) - log(4.5 / 6.5)
    d = math.log(7.5 / 3.5) - math.log(4.5 / 6.5)
    a = d / (1 + d)
    expected = 1 / (1 + math.exp(-(math.log(a / (1 - a)) + 2.7 * 0.2 - 1.05 * 0.3)))
    cells = Cells(3, 4, 1, 2)
    assert float(signed_gap(row(cells))) == pytest.approx(d, rel=1e-12)
    assert float(gap(row(cells))) == pytest.approx(expected, rel=1e-12)


def test_agreement_by_hand():
    cells = Cells(3, 4, 1, 2)
    assert phi(cells) == pytest.approx(np.corrcoef([1] * 7 + [0] * 3, [1, 1, 1, 0, 0, 0, 0, 1, 0, 0])[0, 1])
    assert overlap(cells) == 3 / 8
    assert phi(Cells(3, 4, 0, 0)) is None
    assert overlap(Cells(0, 0, 0, 5)) is None
    assert overlap(Cells(0, 2, 0, 5)) == 0.0


@given(CELLS)
@FAST
def test_swapping_the_directions_flips_the_signed_gap_only(cells):
    swapped = Cells(cells.both, cells.gen_only, cells.und_only, cells.neither)
    assert signed_gap(row(swapped)) == -signed_gap(row(cells))
    assert gap(row(swapped)) == gap(row(cells))
    assert 0 <= gap(row(cells)) < 1
    assert (gap(row(cells)) == 0) == (cells.und_only == cells.gen_only)


@given(CELLS, CELLS, CELLS)
@FAST
def test_one_category_leaves_the_others_exactly_equal(a, b, c):
    first, second = report({"a": a, "b": b}, replicates=50), report({"b": b, "c": c, "a": c}, replicates=50)
    assert first.categories["b"] == second.categories["b"]


@given(CELLS)
@FAST
def test_intervals_hold_their_values_and_null_p_is_the_sign_test(cells):
    part = report({"a": cells}, replicates=50).categories["a"]
    for x in (part.gap, part.signed_gap, part.understanding, part.generation):
        assert x.low <= x.value <= x.high
    assert part.null_p == pytest.approx(mcnemar(cells.und_only, cells.gen_only), abs=1e-9)


def test_null_equals_exchanging_every_subset_of_items():
    cells = Cells(4, 5, 2, 3)
    pairs = [(True, False)] * 5 + [(False, True)] * 2
    gaps = []
    for flips in itertools.product([False, True], repeat=7):
        und_only = sum(flip != pair[0] for flip, pair in zip(flips, pairs, strict=True))
        gaps.append(float(gap(row(Cells(4, und_only, 7 - und_only, 3)))))
    part = report({"a": cells}).categories["a"]
    assert part.null_gap == pytest.approx(np.mean(gaps))
    assert part.null_p == pytest.approx(np.mean(np.array(gaps) >= part.gap.value - 1e-12))


def test_a_model_without_a_gap_scores_its_null_and_its_p_values_are_honest():
    rng = np.random.default_rng(5)
    table = rng.multinomial(161, [0.4, 0.15, 0.15, 0.3], size=400)
    parts = [report({"a": Cells(*counts.tolist())}, replicates=2).categories["a"] for counts in table]
    excess = np.array([part.gap.value - part.null_gap for part in parts])
    assert abs(excess.mean()) < 3 * excess.std() / math.sqrt(len(excess))
    assert np.mean([part.null_gap for part in parts]) > 0.1
    p = np.array([part.null_p for part in parts])
    for level in (0.05, 0.2):
        assert np.mean(p <= level) <= level + 3 * math.sqrt(level / len(p))
    assert np.mean(p <= 0.2) > 0.1


def test_overall_null_sees_gaps_in_any_direction():
    even = {name: Cells(50, 30, 30, 50) for name in "abcd"}
    opposed = {"a": Cells(50, 50, 10, 50), "b": Cells(50, 10, 50, 50)}
    assert report(even).null_p > 0.9
    assert report(even).gap.value == 0
    found = report(opposed)
    assert found.null_p == 1 / 501
    assert found.gap.value > found.null_gap > 0


def test_bootstrap_is_the_distribution_of_resampled_items():
    cells = Cells(20, 12, 5, 8)
    rng = np.random.default_rng(1)
    items = np.repeat(np.arange(4), row(cells))
    naive = np.stack([np.bincount(rng.choice(items, size=45), minlength=4) for _ in range(4000)])
    fast = bootstrap(row(cells), rng=stream(0, "test"), replicates=20_000)
    assert (fast.sum(axis=1) == 45).all()
    levels = [2.5, 25, 50, 75, 97.5]
    assert np.allclose(np.percentile(gap(naive), levels), np.percentile(gap(fast), levels), atol=0.02)
    assert np.allclose(np.cov(naive.T), np.cov(fast.T), atol=0.6)


def test_an_empty_cell_stays_empty_and_one_full_cell_gives_no_width():
    assert (bootstrap(np.array([3, 0, 4, 0]), rng=stream(0, "t"), replicates=99)[:, [1, 3]] == 0).all()
    part = report({"a": Cells(9, 0, 0, 0)}).categories["a"]
    assert (part.gap.low, part.gap.value, part.gap.high) == (0, 0, 0)
    assert (part.understanding.low, part.understanding.high) == (1, 1)


def test_estimate_is_widened_to_hold_its_value():
    found = estimate(0.0, np.linspace(0.1, 0.3, 100))
    assert (found.low, found.value) == (0.0, 0.0)
    assert found.high == pytest.approx(0.295)


def test_coverage_of_the_intervals():
    # 1,500 tables: a coverage of 0.945 is then measured to +- 0.006.
    p = np.array([0.35, 0.3, 0.1, 0.25])
    u, g = 0.65, 0.45
    d = stats.logistic.ppf(u) - stats.logistic.ppf(g)
    truth = [stats.logistic.cdf(math.log(d) + 2.7 * p[3] - 1.05 * p[0]), d, u, g]
    hits = []
    for i, counts in enumerate(np.random.default_rng(11).multinomial(250, p, size=1500)):
        draws = bootstrap(counts, rng=stream(i, "coverage"), replicates=1000)
        values = [(f(counts), f(draws)) for f in (gap, signed_gap)]
        values += zip(accuracies(counts), accuracies(draws), strict=True)
        found = [estimate(float(value), drawn) for value, drawn in values]
        hits.append([x.low <= true <= x.high for x, true in zip(found, truth, strict=True)])
    coverage = np.mean(hits, axis=0)
    assert ((coverage >= 0.93) & (coverage <= 0.97)).all(), coverage


def test_the_same_seed_gives_the_same_report_and_another_does_not():
    table = {"a": Cells(30, 20, 10, 15), "b": Cells(10, 20, 10, 5)}
    assert report(table, seed=3) == report(table, seed=3)
    assert report(table, seed=3).gap.low != report(table, seed=4).gap.low
    assert report(table, seed=3).gap.value == report(table, seed=4).gap.value


def test_means_are_plain_means_over_categories():
    found = report({"a": Cells(30, 20, 10, 15), "b": Cells(10, 200, 10, 5)})
    a, b = found.categories.values()
    assert found.gap.value == pytest.approx((a.gap.value + b.gap.value) / 2)
    assert found.understanding.value == pytest.approx((a.understanding.value + b.understanding.value) / 2)
    assert found.null_gap == pytest.approx((a.null_gap + b.null_gap) / 2)


def test_a_category_without_scored_items_is_left_out_and_named():
    found = gap_report(
        {"a": Cells(30, 20, 10, 15), "b": Cells(0, 0, 0, 0, unscored=7)}, seed=0, replicates=50
    )
    assert list(found.categories) == ["a"]
    assert found.left_out == {"b": 7}
    assert found.gap.value == found.categories["a"].gap.value
    assert found.official is None
    assert found.official_note == "the published fit needs every category; none is scored in b"


def test_nothing_scored_is_the_users_to_mend():
    with pytest.raises(UserError, match="none of 7 items in 1 categories"):
        report({"b": Cells(0, 0, 0, 0, unscored=7)})


def test_official_numbers_stand_beside_ours_and_a_failed_fit_leaves_its_reason(monkeypatch):
    table = {"a": Cells(30, 20, 10, 15), "b": Cells(10, 20, 10, 5)}
    given_rows = {}

    def fake(rows, *, seed):
        given_rows.update(rows)
        raise FitError("no step had a finite loss")

    monkeypatch.setattr(official, "official_gap", fake)
    found = gap_report(table, seed=0, replicates=50)
    assert given_rows["b"] == pytest.approx([10 / 45, 20 / 45, 10 / 45, 5 / 45])
    assert found.official is None
    assert found.official_note == "the published fit failed: no step had a finite loss"
    assert report(table).official_note == "not asked for"


def test_proportions_are_scored_with_an_assumed_n_and_counts_with_theirs():
    shares = Rows(((0.3, 0.4, 0.1, 0.2), (0.25, 0.25, 0.25, 0.25)), None)
    found = point_gap(shares)
    assert found.n == (1000, 1000)
    assert found.n_assumed
    assert found.gaps[0] == float(gap(np.array([300, 400, 100, 200])))
    assert found.gaps[1] == 0
    assert found.mean == found.gaps[0] / 2
    counted = point_gap(Rows(shares.proportions[:1], (Cells(3, 4, 1, 2),)))
    assert counted.n == (10,)
    assert not counted.n_assumed
    assert counted.gaps == (float(gap(row(Cells(3, 4, 1, 2)))),)
    assert counted.signed_gaps == (float(signed_gap(row(Cells(3, 4, 1, 2)))),)
