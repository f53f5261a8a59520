"""Rates of a noisy judge, corrected: by hand, by simulation, and where nothing can be corrected."""

from pathlib import Path

import numpy as np
import pytest

from gapeval_lab import calibration
from gapeval_lab.calibration import (
    Calibration,
    Confusion,
    confusion,
    corrected_rate,
    corrected_shift,
    rates,
)
from gapeval_lab.errors import UserError

PERFECT = Confusion(right_right=50, wrong_wrong=50)


def test_a_rate_worked_by_hand() -> None:
    # Se 0.8, Sp 0.9: of 200 items with 100 right, 80 + 10 are called right; (0.45 + 0.9 - 1) / 0.7 = 0.5.
    known = Confusion(right_right=40, right_wrong=10, wrong_right=5, wrong_wrong=45)
    found = corrected_rate(90, 200, known)
    assert found.raw == 0.45 and found.value is not None
    assert found.value.value == pytest.approx(0.5)
    assert found.value.low < 0.5 < found.value.high
    assert found == corrected_rate(90, 200, known)
    assert found != corrected_rate(90, 200, known, seed=1)
    more = known.plus(known).plus(known.plus(known))
    narrower = corrected_rate(360, 800, more).value
    assert narrower is not None
    assert narrower.high - narrower.low < 0.6 * (found.value.high - found.value.low)


def test_a_shift_is_widened_by_what_the_judge_misses() -> None:
    known = Confusion(right_right=40, right_wrong=10, wrong_right=5, wrong_wrong=45)
    pairs = [(False, True)] * 30 + [(True, False)] * 9 + [(True, True)] * 61
    found = corrected_shift(pairs, known)
    assert found.raw == pytest.approx(0.21) and found.value is not None
    assert found.value.value == pytest.approx(0.21 / 0.7)
    assert 0 < found.value.low < 0.3 < found.value.high
    still = corrected_shift([(True, True)] * 10, known).value
    assert still is not None and (still.value, still.low, still.high) == (0, 0, 0)


def test_a_judge_without_mistakes_leaves_rates_alone_but_not_sure() -> None:
    found = corrected_rate(30, 100, PERFECT)
    assert found.value is not None and found.value.value == 0.3
    few = corrected_rate(30, 100, Confusion(right_right=5, wrong_wrong=5))
    assert few.value is not None
    assert few.value.high - few.value.low > found.value.high - found.value.low


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (Confusion(), "lacks scored answers"),
        (Confusion(right_right=9, right_wrong=1), "lacks scored answers"),
        (Confusion(right_right=5, right_wrong=5, wrong_right=5, wrong_wrong=5), "better than a coin"),
        (Confusion(right_right=2, right_wrong=8, wrong_right=8, wrong_wrong=2), "better than a coin"),
    ],
)
def test_where_nothing_can_be_corrected_there_is_no_value(known: Confusion, said: str) -> None:
    for found in (corrected_rate(3, 10, known), corrected_shift([(True, False)], known)):
        assert found.value is None and said in found.note


def test_a_judge_hardly_better_than_a_coin_is_doubted() -> None:
    found = corrected_rate(5, 10, Confusion(right_right=6, right_wrong=4, wrong_right=4, wrong_wrong=6))
    assert found.value is not None and "resamples the judge tells nothing" in found.note


def test_a_corrected_rate_is_a_rate() -> None:
    known = Confusion(right_right=18, right_wrong=2, wrong_right=4, wrong_wrong=16)
    for right in (0, 1, 49, 50):
        value = corrected_rate(right, 50, known).value
        assert value is not None
        assert 0 <= value.low <= value.value <= value.high <= 1
    with pytest.raises(ValueError, match="3 of 2"):
        corrected_rate(3, 2, known)


@pytest.mark.parametrize(
    ("share", "se", "sp", "items", "known"),
    [(0.7, 0.8, 0.7, 120, 60), (0.05, 0.9, 0.95, 120, 60), (0.5, 0.7, 0.6, 200, 100)],
)
def test_the_intervals_hold_the_truth_as_often_as_they_say(
    share: float, se: float, sp: float, items: int, known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "REPLICATES", 600)
    rng = np.random.default_rng(5)
    repeats, held, held_shift, naive = 400, 0, 0, 0
    keeps, learns = 0.95, 0.25
    shift = share * keeps + (1 - share) * learns - share
    for seed in range(repeats):
        before = rng.random(items) < share
        after = rng.random(items) < np.where(before, keeps, learns)
        said = [np.where(state, rng.random(items) < se, rng.random(items) >= sp) for state in (before, after)]
        right, wrong = int(rng.binomial(known, se)), int(rng.binomial(known, sp))
        cell = Confusion(
            right_right=right, right_wrong=known - right, wrong_right=known - wrong, wrong_wrong=wrong
        )
        rate = corrected_rate(int(said[0].sum()), items, cell, seed=seed).value
        moved = corrected_shift(
            list(zip(*(one.tolist() for one in said), strict=True)), cell, seed=seed
        ).value
        assert rate is not None and moved is not None
        held += rate.low <= share <= rate.high
        held_shift += moved.low <= shift <= moved.high
        error = 1.96 * np.sqrt(said[0].mean() * (1 - said[0].mean()) / items)
        naive += abs(said[0].mean() - share) <= error
    # 95 % of 400, give or take three standard errors; the uncorrected interval shows that this can fail.
    assert 0.917 <= held / repeats <= 0.983
    assert 0.917 <= held_shift / repeats <= 0.983
    assert naive / repeats < 0.9


def test_confusion_counts_what_was_said_of_what_is_true() -> None:
    found = confusion([True, True, False, False, None, True], [True, False, True, False, True, None])
    assert found == Confusion(right_right=1, right_wrong=1, wrong_right=1, wrong_wrong=1, unscored=1)
    assert (found.sensitivity, found.specificity, found.whole) == (0.5, 0.5, True)
    assert Confusion().sensitivity is None and Confusion(right_right=1).specificity is None
    shown = rates(PERFECT)
    assert shown.sensitivity is not None and shown.sensitivity.value == 1 and shown.sensitivity.low < 1
    assert rates(Confusion(right_right=1)).specificity is None


def test_a_category_without_both_kinds_takes_its_directions(tmp_path: Path) -> None:
    known = Calibration(
        judge="x",
        node={"use": "x"},
        settings={},
        truth="exact",
        source="here",
        cells={"generation": PERFECT, "generation/a": PERFECT, "generation/b": Confusion(right_right=3)},
    )
    assert known.of("generation", "a") == (PERFECT, True)
    assert known.of("generation", "b") == known.of("generation", "c") == (PERFECT, False)
    assert known.of("understanding", "a") == (Confusion(), False)
    assert Calibration.load(known.save(tmp_path / "known.json")) == known
    (tmp_path / "bad.json").write_text('{"judge": 3}')
    with pytest.raises(UserError, match="is no calibration"):
        Calibration.load(tmp_path / "bad.json")
