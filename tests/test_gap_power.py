"""Power: exact sums against enumeration, the gap's answers against drawn runs, and what a run could tell."""

import itertools

import numpy as np
import pytest
from scipy import stats

from gapeval_lab.gap.design import Design, Together, design, smoothed
from gapeval_lab.gap.detectable import detectable
from gapeval_lab.gap.power import (
    Budget,
    drawn_power,
    gap_items,
    gap_shift,
    interval,
    mcnemar_items,
    mcnemar_power,
    mcnemar_shift,
    near_power,
)
from gapeval_lab.gap.score import gap, gap_report
from gapeval_lab.gap.shift import mcnemar, shift_report
from gapeval_lab.gap.table import ItemVerdict, cells
from gapeval_lab.planning import cells_of_accuracies

NOISE = (0.03, 0.03)
PLAIN = design(cells_of_accuracies(0.8, 0.5, 0.2), NOISE, "closes")
SMALL = design(cells_of_accuracies(0.72, 0.7, 0.2), NOISE, "widens")  # a gap near 0
TOLD = {"alpha": 0.05, "power": 0.8}


@pytest.mark.parametrize(
    ("n", "gain", "lose", "alpha"), [(12, 0.3, 0.1, 0.05), (30, 0.25, 0.0, 0.0125), (9, 0.6, 0.4, 0.2)]
)
def test_the_power_is_the_sum_over_all_outcomes(n, gain, lose, alpha) -> None:
    total = sum(
        stats.multinomial.pmf([g, lost, n - g - lost], n, [gain, lose, 1 - gain - lose])
        for g, lost in itertools.product(range(n + 1), repeat=2)
        if g + lost <= n and mcnemar(g, lost) <= alpha
    )
    assert mcnemar_power(n, gain=gain, lose=lose, alpha=alpha) == pytest.approx(total, abs=1e-8)


def test_without_a_shift_the_test_keeps_its_level_and_with_none_flipped_it_tells_nothing() -> None:
    for n in (10, 57, 400):
        assert mcnemar_power(n, gain=0.1, lose=0.1, alpha=0.05) <= 0.05
    assert mcnemar_power(50, gain=0.0, lose=0.0, alpha=0.05) == 0.0


@pytest.mark.parametrize("shift", [0.05, 0.1, 0.3])
def test_the_items_are_enough_and_fewer_are_not(shift) -> None:
    n = mcnemar_items(shift, noise=0.02, alpha=0.0125, power=0.8)
    reach = [mcnemar_power(m, gain=0.02 + shift, lose=0.02, alpha=0.0125) for m in (n - 1, n, n + 1, n + 9)]
    assert reach[0] < 0.8 <= min(reach[1:])
    least = mcnemar_shift(n, noise=0.02, alpha=0.0125, power=0.8)
    assert least == pytest.approx(shift, abs=0.01) and least <= shift


def test_what_no_items_can_tell_is_none() -> None:
    assert mcnemar_items(0.5, noise=0.3, alpha=0.05, power=0.8) is None
    assert mcnemar_shift(5, noise=0.0, alpha=0.05, power=0.8) is None
    assert mcnemar_shift(30, noise=0.0, alpha=0.05, power=0.8, room=0.1) is None
    still = Together((Design((0.5, 0.0, 0.0, 0.5), (0.02, 0.02), (1, 0)),))
    assert still.widest == 0 and still.joints(0.1) is None and gap_shift(still, [100], **TOLD) is None
    few = Together((PLAIN,))
    assert gap_shift(few, [10], **TOLD) is None
    assert few.joints(few.gap + 0.01) is None


def test_the_interval_s_rule_is_that_of_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    for n, gain, lose in ((300, 0.02, 0.0), (300, 0.06, 0.03)):
        drawn = rng.multinomial(n, [gain, lose, 1 - gain - lose], size=400)
        again = rng.multinomial(n, drawn / n, size=(800, 400))
        limits = np.percentile(again[..., 0] - again[..., 1], [2.5, 97.5], axis=0)
        told = ((limits[0] > 0) | (limits[1] < 0)).mean()
        power = mcnemar_power(n, gain=gain, lose=lose, alpha=0.05, needs=interval)
        assert power == pytest.approx(told, abs=0.07)


def test_flips_of_noise_leave_the_cells_and_the_moves_make_the_shift() -> None:
    q = PLAIN.joint(0.1)
    assert q.sum() == pytest.approx(1) and (q >= 0).all()
    assert np.allclose(q.sum(axis=1), PLAIN.cells)
    shift = gap(q.sum(axis=0), smoothing=0) - gap(q.sum(axis=1), smoothing=0)
    assert float(shift) == pytest.approx(-0.1, abs=1e-4)
    still = PLAIN.joint(0.0)
    assert np.allclose(still.sum(axis=0), PLAIN.cells)
    right = np.array([True, True, False, False])
    assert still[right][:, ~right].sum() == pytest.approx(0.03)  # told: right to wrong
    assert still[~right][:, right].sum() == pytest.approx(0.03)


def test_a_gap_closes_to_0_and_not_across_it_and_widens_from_there() -> None:
    assert PLAIN.way == "closes" and PLAIN.widest == pytest.approx(PLAIN.gap)
    after = PLAIN.joint(PLAIN.widest).sum(axis=0)
    assert after[1] == pytest.approx(after[2], abs=1e-3)  # as many told only as drawn only
    assert SMALL.way == "widens" and SMALL.gap < 0.1 < 0.4 < SMALL.widest
    counts = [83, 15, 16, 6]
    assert sum(smoothed(counts)) == pytest.approx(1)
    assert design(smoothed(counts), NOISE, "closes").gap == pytest.approx(gap(np.array(counts)), abs=0.002)


def test_a_mean_closes_in_proportion_and_widens_alike() -> None:
    small = design(SMALL.cells, NOISE, "closes")
    both = Together((PLAIN, small))
    assert both.widest == pytest.approx(both.gap)
    left = [float(gap(q.sum(axis=0), smoothing=0)) for q in both.joints(both.gap / 2)]
    assert left == pytest.approx([PLAIN.gap / 2, small.gap / 2], abs=1e-4)
    wider = Together((design(PLAIN.cells, NOISE, "widens"), SMALL))
    grown = [float(gap(q.sum(axis=0), smoothing=0)) for q in wider.joints(0.1)]
    assert grown == pytest.approx([PLAIN.gap + 0.1, SMALL.gap + 0.1], abs=1e-4)
    assert Together((PLAIN, SMALL)).widest == 0  # one closes, one widens


@pytest.mark.parametrize(("one", "size"), [(PLAIN, 0.1), (PLAIN, 0.9 * PLAIN.gap), (SMALL, 0.2)])
def test_the_items_have_the_power_when_reports_are_drawn_and_so_have_more(one, size) -> None:
    found = Together((one,))
    joints, budget = found.joints(size), Budget(400, 4)
    answer = gap_items(joints, way=found.way, budget=budget, **TOLD)
    assert answer == gap_items(joints, way=found.way, budget=budget, **TOLD)  # seeded
    assert 0.8 <= answer.power <= 0.9

    def told(n: int) -> float:
        return drawn_power(joints, [n], way=found.way, alpha=0.05, budget=budget, seed=5)

    assert told(answer.n // 2) < 0.72
    assert [told(answer.n), told(2 * answer.n)] > [0.74, 0.78]
    assert near_power(joints, [answer.n], way=found.way, alpha=0.05) == pytest.approx(0.8, abs=0.08)


def test_a_power_that_cannot_be_reached_is_known_to_be_too_small_without_resamples() -> None:
    spared = 0
    for one, n in itertools.product((PLAIN, SMALL), (10, 60)):
        found = Together((one, one))
        for size in (0.1 * found.widest, 0.5 * found.widest, found.widest):
            asked = {"way": found.way, "alpha": 0.05}
            joints = found.joints(size)
            whole = near_power(joints, [n, n], **asked)
            for power in (0.3, 0.6, 0.9):
                quick = near_power(joints, [n, n], least=power, **asked)
                assert quick == whole if whole >= power else whole <= quick < power
                spared += quick != whole
    assert 0 < spared < 36


def test_the_smallest_shift_of_so_many_items_is_the_shift_that_takes_so_many() -> None:
    found = Together((PLAIN, PLAIN))
    answer = gap_items(found.joints(0.1), way="closes", budget=Budget(400, 4), **TOLD)
    assert gap_shift(found, [answer.n] * 2, **TOLD) == pytest.approx(0.1, abs=0.015)
    assert answer.n < gap_items(Together((PLAIN,)).joints(0.1), way="closes", budget=Budget(400, 4), **TOLD).n


def test_a_drawn_power_is_that_of_the_report_itself() -> None:
    # 60 drawn runs, each as a report has it, against the share that the simulation gives.
    rng, told = np.random.default_rng(3), 0
    codes = np.array([(True, True), (True, False), (False, True), (False, False)])
    q = PLAIN.joint(0.1)
    for seed in range(60):
        pairs = rng.choice(16, size=150, p=q.ravel() / q.sum())
        before, after = (
            [ItemVerdict("a", *map(bool, codes[i])) for i in one] for one in (pairs // 4, pairs % 4)
        )
        told += shift_report(before, after, seed=seed, replicates=400).gap.high < 0
    share = drawn_power([q], [150], way="closes", alpha=0.05, budget=Budget(400, 5), seed=1)
    assert told / 60 == pytest.approx(share, abs=0.15)
    assert drawn_power([q], [150], way="widens", alpha=0.05, budget=Budget(400, 5)) < 0.01


def items(name: str, *groups: tuple[int, bool | None, bool | None]) -> list[ItemVerdict]:
    return [ItemVerdict(name, told, drawn) for count, told, drawn in groups for _ in range(count)]


def test_a_run_s_smallest_shifts_come_from_its_own_flips_and_its_bootstrap() -> None:
    before = items("a", (40, True, True), (40, True, False), (20, False, False)) + items(
        "b", (50, True, False)
    )
    after = items(
        "a", (40, True, True), (20, True, True), (20, True, False), (15, False, False), (5, True, False)
    )
    after += items("b", (50, True, False))
    control = [*before[:37], *[v._replace(generation=False) for v in before[37:40]], *before[40:]]
    report, shift = gap_report(cells(before), seed=0, official=False), shift_report(before, after, seed=0)
    placebo = shift_report(before, control, seed=0)
    found = detectable(report, shift, placebo)
    moved = found.categories["a"]
    assert moved.generation.noise == 3 / 2 / 100 and moved.generation.source == "placebo"
    assert moved.generation.alpha == 0.025  # two categories
    assert moved.generation.shift == mcnemar_shift(100, noise=0.015, alpha=0.025, power=0.8, room=0.6 - 0.015)
    # The shift promised is told in so many drawn runs.
    counts = smoothed([40, 40, 0, 20])
    for way, size in (("closes", moved.closing), ("widens", moved.widening)):
        joint = design(counts, (moved.understanding.noise, 0.015), way).joint(size)
        share = drawn_power([joint], [100], way=way, alpha=0.05, budget=Budget(400, 4), seed=9)
        assert 0.74 < share < 0.9
    assert moved.gap == max(moved.closing, moved.widening)
    assert found.gap is not None and found.generation < moved.generation.shift
    # Nothing changed in b, and it has its numbers.
    assert found.categories["b"].generation.shift == mcnemar_shift(50, noise=0.0, alpha=0.025, power=0.8)
    assert found.categories["b"].gap is not None
    alone = detectable(report, shift, None).categories["a"].generation
    assert (alone.noise, alone.source) == (0.0, "before and after")  # 20 gained, none lost


def test_flips_against_a_run_s_shift_count_where_they_are_more_than_the_placebo_s() -> None:
    before = items("a", (50, True, True), (50, True, False))
    after = items("a", (40, True, True), (10, True, False), (30, True, True), (20, True, False))
    report, shift = gap_report(cells(before), seed=0, official=False), shift_report(before, after, seed=0)
    still = shift_report(before, before, seed=0)
    found = detectable(report, shift, still).categories["a"].generation
    assert (found.noise, found.source) == (0.1, "before and after")
    assert detectable(report, still, still).categories["a"].generation.source == "placebo"
