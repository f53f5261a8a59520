"""Differences of differences, and ranks that claim no more than the data hold."""

import numpy as np
import pytest

from gapeval_lab.gap.contrast import contrast
from gapeval_lab.gap.ranks import code, draw, rank_ranges, standard_errors
from gapeval_lab.gap.score import gap
from gapeval_lab.gap.shift import shift_report
from gapeval_lab.gap.table import ItemVerdict

CELLS = ((True, True), (True, False), (False, True), (False, False))


def state(*cells: int | None, category: str = "a") -> list[ItemVerdict]:
    """Items by cell: both, told only, drawn only, neither; None is not scored."""
    return [ItemVerdict(category, *((None, None) if c is None else CELLS[c])) for c in cells]


def test_a_difference_of_differences_by_hand() -> None:
    before, after, placebo = state(1, 1, 1, 3), state(0, 0, 1, 3), state(1, 0, 1, 1)
    found = contrast([(1, after), (-1, before), (-1, placebo), (1, before)], seed=0, replicates=200)

    def score(*counts: int) -> float:
        return float(gap(np.array(counts)))

    assert found.gap is not None and found.understanding is not None and found.generation is not None
    assert found.gap.value == pytest.approx(score(2, 1, 0, 1) - score(1, 3, 0, 0))
    assert found.understanding.value == pytest.approx(3 / 4 - 4 / 4)
    assert found.generation.value == pytest.approx(2 / 4 - 1 / 4)
    assert found.n == 4
    assert found.gap.low <= found.gap.value <= found.gap.high


def test_an_item_counts_only_if_all_states_have_scored_it_and_alike_states_differ_by_exactly_0() -> None:
    before, after, other = state(0, 1, 2, 3), state(0, None, 1, 3), state(0, 1, 2, None)
    found = contrast([(1, after), (-1, before), (-1, other), (1, before)], seed=0, replicates=50)
    assert found.n == 2
    nothing = contrast([(1, after), (-1, before), (-1, after), (1, before)], seed=0, replicates=50)
    assert nothing.gap is not None and (nothing.gap.value, nothing.gap.low, nothing.gap.high) == (0, 0, 0)


def test_two_states_are_the_shift_that_a_run_reports() -> None:
    rng = np.random.default_rng(1)
    before = state(*rng.integers(0, 4, 40).tolist()) + state(*rng.integers(0, 4, 30).tolist(), category="b")
    after = state(*rng.integers(0, 4, 40).tolist()) + state(*rng.integers(0, 4, 30).tolist(), category="b")
    found, shift = contrast([(1, after), (-1, before)], seed=3), shift_report(before, after, seed=3)
    for mine, its in ((found.gap, shift.gap), (found.generation, shift.generation)):
        assert mine is not None and its is not None
        assert mine.value == pytest.approx(its.value)
        # Other draws of the same distribution.
        assert (mine.low, mine.high) == pytest.approx((its.low, its.high), abs=0.01)


def test_models_of_one_direction_have_no_gap() -> None:
    tells = [
        [ItemVerdict("a", told, None) for told in verdicts] for verdicts in ((True, False), (True, True))
    ]
    found = contrast([(1, tells[1]), (-1, tells[0])], seed=0, replicates=50)
    assert found.gap is None and found.generation is None and found.n == 2
    assert found.understanding is not None and found.understanding.value == 0.5


def test_states_of_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="same items"):
        contrast([(1, state(0, 1)), (-1, state(0))], seed=0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # Told right often, drawn less so: D stays away from 0, where the gap bends.
    chances = {"before": 0.35, "after": 0.6, "placebo": 0.38}
    told, items, rounds = 0.9, 150, 120
    rng = np.random.default_rng(7)

    def truth(drawn: float) -> float:
        many = 1_000_000
        shares = (told * drawn, told * (1 - drawn), (1 - told) * drawn, (1 - told) * (1 - drawn))
        return float(gap(np.array(shares) * many))

    expected = truth(chances["after"]) - truth(chances["placebo"])
    hits = 0
    for _ in range(rounds):
        luck, knows = rng.random(items), rng.random(items) < told  # items are hard or easy in every state
        states = {
            name: [ItemVerdict("a", bool(k), bool(u < chance)) for k, u in zip(knows, luck, strict=True)]
            for name, chance in chances.items()
        }
        before = states["before"]
        found = contrast(
            [(1, states["after"]), (-1, before), (-1, states["placebo"]), (1, before)], seed=0, replicates=300
        ).gap
        assert found is not None
        hits += found.low <= expected <= found.high
    assert 0.88 <= hits / rounds <= 0.99


def test_codes_are_cells_in_the_order_of_the_table() -> None:
    assert code("1100-1", "10101-").tolist() == [0, 1, 2, 3, -1, -1]


def test_draws_are_paired_and_start_with_the_value() -> None:
    before = np.stack([code("1111000011", "1010101010")] * 2)
    after = np.stack([code("1111000011", "1111101010"), code("1111000011", "1111101011")])
    places, chosen = [0] * 10, np.ones((2, 1), dtype=bool)
    drawn = draw([(1, after), (-1, before)], of=places, categories=["a"], what="generation").mean(chosen)
    assert drawn[0].tolist() == pytest.approx([0.2, 0.3])
    # The runs part on one item of ten: their difference is that of one item's share, not of two samples.
    errors = standard_errors(drawn[1:])
    assert errors[0, 1] == pytest.approx(np.sqrt(0.1 * 0.9 / 10), rel=0.1)
    assert errors[0, 0] == 0


def test_a_category_that_a_run_has_not_scored_is_in_none_of_its_means() -> None:
    codes = np.stack([code("11--", "10--"), code("1111", "1011")])
    drawn = draw([(1, codes)], of=[0, 0, 1, 1], categories=["a", "b"], what="generation", replicates=50)
    means = drawn.mean(np.ones((2, 2), dtype=bool))
    assert means[0].tolist() == [0.5, 0.75]
    none = drawn.mean(np.array([[False, True], [False, True]]))
    assert np.isnan(none[0, 0]) and none[0, 1] == 1.0


def test_of_many_runs_that_are_equal_each_range_is_whole_about_95_times_of_100() -> None:
    # Without a correction over the other 19, only about 60 of 100 would be.
    rng, runs, rounds = np.random.default_rng(2), 20, 60
    luck, whole = rng.random((rounds, 60)), 0
    for of_items in luck:
        told = np.where(rng.random((runs, 60)) < 0.3, rng.random((runs, 60)), of_items) < 0.6
        codes = np.where(told, 0, 2).astype(np.int8)
        draws = draw([(1, codes)], of=[0] * 60, categories=["a"], what="understanding", replicates=300)
        means = draws.mean(np.ones((runs, 1), dtype=bool))
        ranges = rank_ranges(means[0], standard_errors(means[1:]), lower_is_better=False)
        whole += sum(span == (1, runs) for span in ranges)
    assert 0.93 <= whole / rounds / runs <= 0.995


@pytest.mark.parametrize(
    ("values", "error", "lower", "expected"),
    [
        ([0.1, 0.2, 0.3], 0.0, True, [(1, 1), (2, 2), (3, 3)]),
        ([0.1, 0.2, 0.3], 0.0, False, [(3, 3), (2, 2), (1, 1)]),
        ([0.1, 0.2, 0.3], 0.06, True, [(1, 2), (1, 3), (2, 3)]),  # only the ends are told apart
        ([0.1, 0.2, 0.3], 9.0, True, [(1, 3)] * 3),
        # The first of three is 2.1 errors from the second: enough once the third is out of the way.
        ([0.0, 2.1, 9.0], 1.0, True, [(1, 1), (2, 2), (3, 3)]),
        ([0.0, 2.1, 2.1], 1.0, True, [(1, 3)] * 3),
        ([0.1, 0.1], 0.0, True, [(1, 2), (1, 2)]),
        ([0.1], 0.0, True, [(1, 1)]),
        ([], 0.0, True, []),
    ],
)
def test_rank_ranges(values, error, lower, expected) -> None:
    errors = np.full((len(values), len(values)), error)
    assert rank_ranges(np.array(values), errors, lower_is_better=lower) == expected
