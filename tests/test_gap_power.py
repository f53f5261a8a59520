"""Power: exact sums against enumeration, the gap's answers against drawn runs, and what a run could tell."""

import itertools

import numpy as np
import pytest
from scipy import stats

from gapeval_lab.gap.detectable import detectable
from gapeval_lab.gap.power import (
    LEAST_ITEMS,
    Design,
    bootstrapped_power,
    gap_items,
    gap_shift,
    mcnemar_items,
    mcnemar_power,
    mcnemar_shift,
    shift_variance,
)
from gapeval_lab.gap.score import gap, gap_report
from gapeval_lab.gap.shift import mcnemar, shift_report
from gapeval_lab.gap.table import ItemVerdict, cells
from gapeval_lab.planning import cells_of_accuracies

PLAIN = Design(cells_of_accuracies(0.8, 0.5, 0.2), (0.03, 0.03), (1, 0), 300)


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
    assert gap_items([PLAIN], 0.9, alpha=0.05, power=0.8) is None
    flat = Design((0.5, 0.0, 0.0, 0.5), (0.02, 0.02), (1, 0), 100)
    assert gap_shift([flat], [100], alpha=0.05, power=0.8) is None


def test_flips_of_noise_leave_the_cells_and_the_moves_make_the_shift() -> None:
    q = PLAIN.joint(0.1)
    assert q.sum() == pytest.approx(1) and (q >= 0).all()
    assert np.allclose(q.sum(axis=1), PLAIN.cells)
    assert float(gap(300 * q.sum(axis=1)) - gap(300 * q.sum(axis=0))) == pytest.approx(0.1, abs=1e-4)
    still = PLAIN.joint(0.0)
    assert np.allclose(still.sum(axis=0), PLAIN.cells)
    right = np.array([True, True, False, False])
    assert still[right][:, ~right].sum() == pytest.approx(0.03)  # told: right to wrong
    assert still[~right][:, right].sum() == pytest.approx(0.03)


def test_the_delta_method_s_error_is_that_of_drawn_runs() -> None:
    q, n = PLAIN.joint(0.1), 300
    draws = np.random.default_rng(0).multinomial(n, q.ravel() / q.sum(), size=20_000).reshape(-1, 4, 4)
    shifts = gap(draws.sum(axis=1)) - gap(draws.sum(axis=2))
    assert shifts.std() == pytest.approx((shift_variance(q, n=n) / n) ** 0.5, rel=0.03)


@pytest.mark.parametrize("count", [1, 3])
def test_the_gap_s_items_have_the_power_when_reports_are_drawn(count) -> None:
    designs = [PLAIN] * count
    n = gap_items(designs, 0.1, alpha=0.05, power=0.8)
    assert n == gap_items(designs, 0.1, alpha=0.05, power=0.8)  # seeded
    reached = bootstrapped_power(designs, 0.1, [n] * count, alpha=0.05, seed=5, runs=400, replicates=150)
    assert reached == pytest.approx(0.8, abs=0.07)
    assert (
        bootstrapped_power(designs, 0.1, [n // 3] * count, alpha=0.05, seed=5, runs=200, replicates=100) < 0.6
    )
    assert gap_shift(designs, [n] * count, alpha=0.05, power=0.8) == pytest.approx(0.1, abs=0.015)
    assert gap_items(designs, 0.2, alpha=0.05, power=0.8) >= LEAST_ITEMS


def test_the_bootstrapped_power_is_that_of_the_report_itself() -> None:
    # 25 drawn runs, each as a report has it, against the share that the simulation gives.
    q, told = PLAIN.joint(0.1), 0
    rng, codes = (
        np.random.default_rng(3),
        np.array([(True, True), (True, False), (False, True), (False, False)]),
    )
    for seed in range(25):
        pairs = rng.choice(16, size=150, p=q.ravel() / q.sum())
        before, after = (
            [ItemVerdict("a", *map(bool, codes[i])) for i in one] for one in (pairs // 4, pairs % 4)
        )
        shift = shift_report(before, after, seed=seed, replicates=400).gap
        told += shift.low > 0 or shift.high < 0
    share = bootstrapped_power([PLAIN], 0.1, [150], alpha=0.05, seed=1, runs=500, replicates=200)
    assert told / 25 == pytest.approx(share, abs=0.25)


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
    found = detectable(report, shift, placebo, seed=0)
    moved = found.categories["a"]
    assert moved.generation.noise == 3 / 2 / 100 and moved.generation.source == "placebo"
    assert moved.generation.alpha == 0.025  # two categories
    assert moved.generation.shift == mcnemar_shift(100, noise=0.015, alpha=0.025, power=0.8, room=0.6 - 0.015)
    # 2.8 standard errors: the report's interval is 3.92 of them wide.
    width = shift.categories["a"].gap.high - shift.categories["a"].gap.low
    assert moved.gap == pytest.approx(2.8 * width / 3.92, rel=0.05)
    mean = shift.gap.high - shift.gap.low
    assert found.gap == pytest.approx(2.8 * mean / 3.92, rel=0.05)
    # Nothing changed in b: its gap has no error to tell, its test still has its number of items.
    assert found.categories["b"].gap is None
    assert found.categories["b"].generation.shift == mcnemar_shift(50, noise=0.0, alpha=0.025, power=0.8)
    alone = detectable(report, shift, None, seed=0).categories["a"].generation
    assert (alone.noise, alone.source) == (0.0, "before and after")  # 20 gained, none lost


def test_a_run_that_changed_nothing_has_no_smallest_gap_shift() -> None:
    same = items("a", (40, True, True), (40, True, False))
    report, shift = gap_report(cells(same), seed=0, official=False), shift_report(same, same, seed=0)
    found = detectable(report, shift, None, seed=0)
    assert found.gap is None and found.understanding is None
    assert found.categories["a"].understanding.shift is not None
