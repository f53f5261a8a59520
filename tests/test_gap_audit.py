"""The audit of the score: the converged estimator, the variants, and what is warned of."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import optimize

from gapeval_lab.gap.audit import MEAN, OFFICIAL, OURS, audit
from gapeval_lab.gap.converged import GRADIENT, _objective, _packed, converge
from gapeval_lab.gap.official import perturbed, rounding_moves
from gapeval_lab.gap.official_batch import PUBLISHED, refit
from gapeval_lab.gap.records import CONVERGED, OfficialGap
from gapeval_lab.gap.score import gap, gap_report
from gapeval_lab.gap.shift import shift_report
from gapeval_lab.gap.table import ItemVerdict, cells

NAMES = ("facts", "counting", "orders", "reasoning")
APART = np.array(
    [[0.30, 0.35, 0.05, 0.30], [0.60, 0.10, 0.20, 0.10], [0.15, 0.60, 0.05, 0.20], [0.8, 0.1, 0.04, 0.06]]
)
CELLS = [(True, True), (True, False), (False, True), (False, False)]


def log_odds(table: np.ndarray) -> np.ndarray:
    right = np.stack([table[:, 0] + table[:, 1], table[:, 0] + table[:, 2]], axis=1)
    return np.log(right / (1 - right))


def published_loss(x: np.ndarray, table: np.ndarray) -> float:
    """The loss of METRICS written out anew: theta, beta, mu, and the Cholesky factor's logs and corner."""
    theta, beta, mu, (a, b, c) = x[:8].reshape(4, 2), x[8:10], x[10:12], x[12:]
    p = 1 / (1 + np.exp(-(theta - beta)))
    right = 1000 * np.stack([table[:, 0] + table[:, 1], table[:, 0] + table[:, 2]], axis=1)
    lower = np.array([[np.exp(a) + 1e-4, 0.0], [c, np.exp(b) + 1e-4]])
    offset = theta - mu
    return float(
        -(right * np.log(p + 1e-8) + (1000 - right) * np.log(1 - p + 1e-8)).sum()
        + 0.5 * np.einsum("ki,ij,kj->", offset, np.linalg.inv(lower @ lower.T), offset)
        + 4 * np.log(np.diag(lower)).sum()
        + 1e-3 * ((beta**2).sum() + (mu**2).sum())
    )


def test_the_gradient_is_that_of_the_loss() -> None:
    right = 1000 * np.stack([APART[:, 0] + APART[:, 1], APART[:, 0] + APART[:, 2]], axis=1)
    function = _objective(right, 1000 - right, PUBLISHED)
    x = _packed(log_odds(APART), PUBLISHED) + np.random.default_rng(0).normal(size=13) * 0.3
    numeric = optimize.approx_fprime(x, lambda point: function(point)[0], 1e-6)
    assert np.allclose(function(x)[1], numeric, rtol=1e-3, atol=1e-2)


def test_scipy_finds_the_same_optimum_of_the_published_loss_with_beta_held() -> None:
    found = converge(APART)
    start = np.concatenate([log_odds(APART).ravel(), log_odds(APART).mean(axis=0), [-0.3, -0.3, 0.0]])
    anew = optimize.minimize(
        lambda x: published_loss(np.concatenate([x[:8], [0.0, 0.0], x[8:]]), APART), start, method="BFGS"
    )
    assert found.gradient < GRADIENT and not found.pooled
    assert found.loss == pytest.approx(anew.fun, abs=1e-4)
    assert np.allclose(found.log_odds, anew.x[:8].reshape(4, 2), atol=2e-4)


def test_the_optimum_does_not_depend_on_where_the_fit_starts() -> None:
    found, rng = converge(APART), np.random.default_rng(1)
    for _ in range(6):
        other = converge(APART, start=log_odds(APART) + rng.normal(scale=0.4, size=(4, 2)))
        assert np.allclose(other.gaps, found.gaps, atol=1e-8)


def shown(theta: np.ndarray) -> np.ndarray:
    """The published gaps of theta."""
    x = np.abs(theta[:, 0] - theta[:, 1]) * np.exp(2.7 * APART[:, 3] - 1.05 * APART[:, 0])
    return x / (1 + x)


def test_a_long_published_run_in_double_precision_stays_at_our_log_odds_while_its_answer_drifts() -> None:
    found = converge(APART)
    early, beta = adamw(APART, steps=500)
    assert np.allclose(early - beta, found.log_odds, atol=1e-5)
    assert np.allclose(shown(early), found.gaps, atol=2e-3)
    late, beta = adamw(APART, steps=8000)
    assert np.allclose(late - beta, found.log_odds, atol=5e-3)
    share = (shown(late) - found.gaps) / (found.unfixed - found.gaps)
    assert (share > 0.2).all() and (share < 0.8).all()  # on its way to where beta is free


def test_where_beta_is_free_the_whole_published_loss_has_the_other_optimum() -> None:
    odds = log_odds(APART)
    start = np.concatenate([odds.ravel(), [0, 0], odds.mean(axis=0), [-0.3, -0.3, 0.0]])
    whole = optimize.minimize(
        lambda x: published_loss(x, APART), start, method="BFGS", options={"gtol": 1e-7}
    )
    found = converge(APART)
    assert np.allclose(shown(whole.x[:8].reshape(4, 2)), found.unfixed, atol=5e-3)
    assert np.abs(found.unfixed - found.gaps).max() > 0.1


def adamw(table: np.ndarray, *, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Theta and beta of the published algorithm in double precision, after so many steps."""
    right = 1000 * np.stack([table[:, 0] + table[:, 1], table[:, 0] + table[:, 2]], axis=1)
    theta0 = log_odds(table)
    x = np.concatenate([theta0.ravel(), [0, 0], theta0.mean(axis=0), [0.1, 0.1, 0.05]])
    first, second = np.zeros_like(x), np.zeros_like(x)
    for step in range(1, steps + 1):
        theta, beta, mu, raw = x[:8].reshape(4, 2), x[8:10], x[10:12], x[12:]
        p = 1 / (1 + np.exp(beta - theta))
        d = ((1000 - right) / (1 - p + 1e-8) - right / (p + 1e-8)) * p * (1 - p)
        diagonal = np.log1p(np.exp(raw[:2])) + 1e-4
        lower = np.array([[diagonal[0], 0], [raw[2], diagonal[1]]])
        z = np.linalg.solve(lower, (theta - mu).T)
        w = np.linalg.solve(lower.T, z)
        d_lower = -(w @ z.T)
        slope = 1 / (1 + np.exp(-raw[:2]))
        gradient = np.concatenate(
            [
                (d + w.T).ravel(),
                2e-3 * beta - d.sum(axis=0),
                2e-3 * mu - w.sum(axis=1),
                (np.diag(d_lower) + 4 / diagonal) * slope,
                [d_lower[1, 0]],
            ]
        )
        x = x * (1 - 0.05 * 1e-4)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        root = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        x = x - 0.05 * first / (1 - 0.9**step) / root
    return x[:8].reshape(4, 2), x[8:10]


@pytest.mark.parametrize(
    "table", [[[0.4, 0.3, 0.1, 0.2]] * 4, [[0.3, 0.4, 0.1, 0.2]], [[1, 0, 0, 0], [0, 0, 0, 1]]]
)
def test_rows_that_are_alike_or_few_are_drawn_together_and_said_to_be(table) -> None:
    found = converge(np.array(table, dtype=float))
    assert found.pooled and np.isfinite(found.gaps).all() and found.gradient < GRADIENT


def verdicts(tables, names=NAMES) -> list[ItemVerdict]:
    return [
        ItemVerdict(name, *CELLS[cell])
        for name, row in zip(names, tables, strict=True)
        for cell, count in enumerate(row)
        for _ in range(count)
    ]


def paired(before, after):
    """Verdicts of both states in one order of categories."""
    return verdicts(before), verdicts(after)


def official(tables) -> OfficialGap:
    """The published numbers by the batched fit: as good as the fit itself, up to its rounding."""
    return _official(tuple(map(tuple, tables)))


@cache
def _official(tables) -> OfficialGap:
    shares = np.array(tables) / np.sum(tables, axis=1, keepdims=True)
    gaps = refit(shares[None])[0]
    *bands, band = rounding_moves(shares, gaps, seed=0)
    names = dict(zip(NAMES, gaps.tolist(), strict=True))
    return OfficialGap(names, float(gaps.mean()), band, dict(zip(NAMES, bands, strict=True)))


def test_where_all_agree_nothing_is_warned_of() -> None:
    before = [[40, 40, 5, 15], [35, 35, 5, 25], [55, 30, 5, 10], [20, 45, 5, 30]]
    after = [[b + 20, u - 20, g, n] for b, u, g, n in before]
    found = audit(
        *paired(before, after), official_before=official(before), official_after=official(after), seed=0
    )
    assert (found.said, found.disputes, found.unsure) == ("agree", [], [])
    assert {variant.shift < 0 for variant in found.variants} == {True}
    families = {variant.family for variant in found.variants}
    assert families == {"estimator", "weights", "smoothing", "weighting"}


def test_a_sign_that_input_noise_turns_is_within_rounding() -> None:
    before = [[15, 8, 1, 16], [23, 5, 1, 11], [1, 12, 10, 17], [12, 21, 3, 4]]
    after = [*before[:3], [13, 20, 3, 4]]
    first, second = official(before), official(after)
    found = audit(*paired(before, after), official_before=first, official_after=second, seed=0)
    published = next(one for one in found.variants if one.name == OFFICIAL)
    assert MEAN in found.unsure and found.said == "within rounding"
    assert published.band == first.band + second.band > abs(published.shift) > 0
    # ... and so it is: the same two tables with noise of a millionth give both signs.
    means = [refit(perturbed(np.array(t) / 40, seed=0, repeats=6)).mean(axis=1) for t in (before, after)]
    assert (means[1] - means[0]).min() < -0.01 < 0.01 < (means[1] - means[0]).max()
    # Nothing changed in three categories, and it moved them.
    assert any("though its cells did not change" in note for note in found.notes)
    assert {d.where for d in found.disputes} <= {MEAN, "reasoning"}


def test_a_sign_that_the_constants_turn_is_a_dispute_that_names_them() -> None:
    # Telling and drawing come nearer to each other, and both get worse.
    before = [[50, 40, 2, 8]] * 4
    after = [[10, 30, 2, 58]] * 4
    found = audit(*paired(before, after), seed=0)
    by_name = {variant.name: variant for variant in found.variants}
    assert by_name[OURS].shift > 0 > by_name["ours with both weights 0"].shift
    assert found.said == "disagree"
    overall = found.disputes[0]
    assert overall.where == MEAN
    assert OURS in overall.wider and "ours with both weights 0" in overall.closed
    assert {d.where for d in found.disputes} == {MEAN, *NAMES}


def test_ours_is_the_report_s_and_the_published_is_taken_over() -> None:
    before, after = [[12, 9, 2, 7]] * 4, [[15, 6, 2, 7]] * 4
    old, new = paired(before, after)
    # A number that no fit gives: it can only have been taken over.
    given = OfficialGap(dict.fromkeys(NAMES, 0.125), 0.125, 0.01, dict.fromkeys(NAMES, 0.01))
    found = audit(old, new, official_before=given, official_after=given, seed=0)
    by_name = {variant.name: variant for variant in found.variants}
    report, shift = gap_report(cells(old), seed=0, official=False), shift_report(old, new, seed=0)
    assert by_name[OURS].before == report.gap.value and by_name[OURS].shift == pytest.approx(shift.gap.value)
    assert by_name[OURS].moved("facts") == pytest.approx(shift.categories["facts"].gap.value)
    assert (by_name[OFFICIAL].before, by_name[OFFICIAL].shift) == (0.125, 0.0)
    shares = np.array(before) / 30
    assert list(by_name[CONVERGED].categories_before.values()) == converge(shares).gaps.tolist()
    pooled = by_name["ours with items pooled"]
    assert pooled.before == float(gap(np.sum(before, axis=0))) and not pooled.categories_before


def test_older_records_get_their_bands_per_category() -> None:
    before = [[15, 8, 1, 16], [23, 5, 1, 11], [1, 12, 10, 17], [12, 21, 3, 4]]
    whole = official(before)
    found = audit(verdicts(before), official_before=replace(whole, bands={}), seed=0)
    published = next(one for one in found.variants if one.name == OFFICIAL)
    assert published.bands == pytest.approx(whole.bands)
    assert found.said is None and published.shift is None


def test_missing_verdicts_give_bounds_and_turn_a_sign() -> None:
    before, after = paired([[12, 9, 2, 7]] * 4, [[13, 8, 2, 7]] * 4)
    whole = audit(before, after, seed=0)
    assert all(variant.family != "unscored" for variant in whole.variants)
    lacking = [v._replace(generation=None) if i % 7 == 0 else v for i, v in enumerate(after)]
    found = audit(before, lacking, seed=0)
    bounds = next(one for one in found.variants if one.family == "unscored")
    true = next(one for one in whole.variants if one.name == OURS).shift
    assert bounds.of == "shift" and bounds.low < true < bounds.high and bounds.low < 0 < bounds.high
    assert any(note.startswith("18 items are unscored") for note in found.notes)
    state = audit(lacking, seed=0)
    ranged = next(one for one in state.variants if one.family == "unscored")
    full = next(one for one in whole.variants if one.name == OURS).after
    assert ranged.of == "gap" and ranged.low < full < ranged.high


def test_nothing_that_can_be_audited_is_said_by_none_and_steps_are_fits_of_their_own() -> None:
    told = [ItemVerdict("facts", True, None)] * 5
    assert audit(told, told, seed=0) is None
    before, after = paired([[12, 9, 2, 7]] * 4, [[15, 6, 2, 7]] * 4)
    found = audit(before, after, seed=0, steps=(5, 50))
    short, longer = (one for one in found.variants if one.family == "steps")
    assert (short.name, longer.name) == ("published (5 steps)", "published (50 steps)")
    assert short.before != longer.before
    same = audit(before, before, seed=0)
    assert same.said == "agree" and all(variant.shift == 0 for variant in same.variants)
