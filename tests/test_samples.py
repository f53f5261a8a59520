"""Means of samples with paired intervals, against the Gap Score's own report and against plain counting."""

import itertools
from statistics import fmean

import numpy as np
import pytest

from gapeval_lab.gap.samples import SIDES, Sampled
from gapeval_lab.gap.score import gap_report
from gapeval_lab.gap.table import ItemVerdict, cells

RNG = np.random.default_rng(7)


def sample(told: float, drawn: float, n: int = 40, rng: np.random.Generator = RNG) -> list[ItemVerdict]:
    return [
        ItemVerdict(category, bool(rng.random() < told), bool(rng.random() < drawn))
        for category in ("a", "b", "c")
        for _ in range(n)
    ]


def test_of_one_sample_the_values_are_the_reports() -> None:
    one = sample(0.8, 0.5)
    found = Sampled({"now": [one]}, sides=SIDES, seed=0, replicates=400)
    report = gap_report(cells(one), seed=0, replicates=400, official=False)
    for what in ("understanding", "generation", "gap"):
        ours, theirs = found.of("now", what), getattr(report, what)
        assert ours is not None and ours.value == pytest.approx(theirs.value, abs=1e-12)
        assert ours.low == pytest.approx(theirs.low, abs=0.03)
        assert ours.high == pytest.approx(theirs.high, abs=0.03)
    assert (found.n, found.unscored) == (120, 0)


def test_of_several_samples_means_and_pass_at_k_are_counted() -> None:
    samples = [sample(0.6, 0.3) for _ in range(3)]
    found = Sampled({"now": samples}, sides=SIDES, seed=0, replicates=100)
    shares = [fmean(bool(item.generation) for item in one) for one in samples]
    gaps = [gap_report(cells(one), seed=0, replicates=2, official=False).gap.value for one in samples]
    drawn, gap, passed = (
        found.of("now", "generation"),
        found.of("now", "gap"),
        found.passed("now", "generation"),
    )
    assert drawn is not None and drawn.value == pytest.approx(fmean(shares))
    assert gap is not None and gap.value == pytest.approx(fmean(gaps))
    once = [any(one[place].generation for one in samples) for place in range(120)]
    assert passed is not None and passed.value == pytest.approx(fmean(once))
    assert passed.low < passed.value < passed.high and passed.value > drawn.value


def test_differences_are_paired() -> None:
    one = sample(0.7, 0.5)
    better = [item._replace(generation=True) if n % 4 == 0 else item for n, item in enumerate(one)]
    states = {"one": [one], "same": [list(one)], "better": [better]}
    found = Sampled(states, sides=SIDES, seed=0, replicates=500)
    none, some = found.minus("same", "one", "gap"), found.minus("better", "one", "generation")
    apart = Sampled({"one": [sample(0.7, 0.5)], "better": [better]}, sides=SIDES, seed=0, replicates=500)
    unpaired = apart.minus("better", "one", "generation")
    assert none is not None and (none.value, none.low, none.high) == (0.0, 0.0, 0.0)
    assert some is not None and some.low > 0
    assert unpaired is not None and unpaired.high - unpaired.low > 1.3 * (some.high - some.low)


def test_items_that_lack_a_verdict_anywhere_are_left_out() -> None:
    one, other = sample(0.5, 0.5, n=2), sample(0.5, 0.5, n=2)
    one[0] = one[0]._replace(understanding=None)
    other[1] = other[1]._replace(generation=None)
    found = Sampled({"one": [one], "other": [other]}, sides=SIDES, seed=0, replicates=10)
    assert (found.n, found.unscored) == (4, 2)
    told = found.of("one", "understanding")
    assert told is not None and told.value == fmean(
        fmean(bool(item.understanding) for item in group)
        for _, group in itertools.groupby(one[2:], key=lambda item: item.category)
    )
    drawn_only = Sampled({"one": [one]}, sides=("generation",), seed=0, replicates=10)
    assert drawn_only.n == 6 and drawn_only.of("one", "gap") is None
    assert drawn_only.of("one", "understanding") is None and drawn_only.of("one", "generation") is not None
    unscored = one[0]._replace(generation=None)
    nothing = Sampled({"one": [[unscored]]}, sides=SIDES, seed=0, replicates=10)
    assert nothing.of("one", "gap") is None and nothing.passed("one", "generation") is None
    with pytest.raises(ValueError, match="the same items"):
        Sampled({"one": [one], "other": [other[:-1]]}, sides=SIDES, seed=0, replicates=10)


def test_items_of_one_side_each_have_accuracies_and_no_gap() -> None:
    """As in RealUnify, where protocols are what is asked for: no item is scored in both directions."""
    one = [ItemVerdict("told", bool(n % 2), None) for n in range(8)]
    one += [ItemVerdict("drawn", None, n < 2) for n in range(8)]
    two = list(one)
    two[0], two[1] = two[0]._replace(understanding=True), two[1]._replace(understanding=None)
    found = Sampled({"one": [one], "two": [two]}, sides=SIDES, seed=0, replicates=200)
    assert (found.n, found.unscored) == (15, 1)
    told, drawn = found.of("one", "understanding"), found.of("one", "generation")
    assert told is not None and told.value == pytest.approx(3 / 7) and told.low < told.value < told.high
    assert drawn is not None and drawn.value == pytest.approx(2 / 8)
    moved, passed = found.minus("two", "one", "understanding"), found.passed("two", "understanding")
    assert moved is not None and moved.value == pytest.approx(1 / 7)
    assert passed is not None and passed.value == pytest.approx(4 / 7)
    assert found.of("one", "gap") is None and found.minus("two", "one", "gap") is None
    beside = Sampled({"one": [[*one, ItemVerdict("both", True, False)]]}, sides=SIDES, seed=0, replicates=20)
    both = beside.of("one", "understanding")
    assert both is not None and (both.value, beside.n) == (1.0, 1), "of the two-sided alone, as in the report"


def test_the_interval_of_a_mean_over_samples_covers_it() -> None:
    """Items differ in how hard they are; the mean over two samples is covered about 95 times in 100."""
    rng, covered, runs = np.random.default_rng(0), 0, 200
    for _ in range(runs):
        ease = {category: rng.beta(2, 2, size=60) for category in "ab"}
        samples = [
            [ItemVerdict(c, bool(rng.random() < p), bool(rng.random() < p)) for c in "ab" for p in ease[c]]
            for _ in range(2)
        ]
        found = Sampled({"now": samples}, sides=SIDES, seed=0, replicates=300).of("now", "generation")
        assert found is not None
        covered += found.low <= 0.5 <= found.high
    assert 0.90 <= covered / runs <= 0.99


def test_where_every_item_has_one_side_each_side_has_its_own_items() -> None:
    told = [ItemVerdict("told", bool(RNG.random() < 0.6), None) for _ in range(30)]
    drawn = [ItemVerdict("drawn", None, bool(RNG.random() < 0.3)) for _ in range(20)]
    direct = [*told, *drawn, ItemVerdict("drawn", None, None)]
    better = [item._replace(generation=True) if item.generation is False else item for item in direct]
    found = Sampled({"direct": [direct], "better": [better]}, sides=SIDES, seed=0, replicates=200)
    assert (found.n, found.unscored) == (50, 1)
    assert found.of("direct", "gap") is None and found.minus("better", "direct", "gap") is None
    for what, items in (("understanding", told), ("generation", drawn)):
        share = found.of("direct", what)
        assert share is not None and share.low < share.value < share.high
        assert share.value == pytest.approx(fmean(bool(getattr(item, what)) for item in items))
    same, more = (found.minus("better", "direct", what) for what in ("understanding", "generation"))
    assert same is not None and (same.low, same.value, same.high) == (0, 0, 0)
    shares = found.of("direct", "generation")
    assert more is not None and shares is not None and more.value == pytest.approx(1 - shares.value)
    # One item of both sides makes a gap, and all numbers are then of such items.
    both = Sampled({"now": [[*direct, ItemVerdict("both", True, False)]]}, sides=SIDES, seed=0, replicates=10)
    assert (both.n, both.unscored) == (1, 51) and both.of("now", "gap") is not None
