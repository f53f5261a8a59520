"""Spectra, cosines and angles of deltas against what dense matrices give."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from gapeval_lab.delta import Dense, LowRank, Term, WeightDelta
from gapeval_lab.delta_measures import LEADING, interference, singular_values, spectrum, stable_rank
from gapeval_lab.errors import UserError


def low_rank(rows: int = 9, columns: int = 7, rank: int = 2, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    )


def dense(term: Term) -> torch.Tensor:
    if isinstance(term, LowRank):
        return term.up.double() @ term.down.double()
    return term.dense().double()


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(0, 12), seed=st.integers(0, 99))
def test_singular_values_are_those_of_the_product(rows: int, columns: int, rank: int, seed: int) -> None:
    term = low_rank(rows, columns, rank, seed)
    wanted = np.linalg.svd(dense(term).numpy(), compute_uv=False)
    found = singular_values(term).numpy()
    assert len(found) == min(rows, columns, rank)
    assert np.allclose(found, wanted[: len(found)], atol=1e-10)
    # Dense terms hold the same matrix in float32.
    whole = singular_values(Dense(dense(term))).numpy()
    assert np.allclose(whole, wanted, atol=1e-5 * max(1.0, float(wanted[:1].sum())))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (torch.tensor([3.0, 4.0]), [5.0]),
        (torch.tensor(2.0), [2.0]),
        (torch.zeros(3, 2), [0.0, 0.0]),
        (torch.zeros(0, 4), []),
        (torch.ones(2, 1, 2), [2.0, 0.0]),
    ],
)
def test_terms_of_any_number_of_dimensions(value: torch.Tensor, wanted: list[float]) -> None:
    assert singular_values(Dense(value)).tolist() == pytest.approx(wanted, abs=1e-7)


def test_a_spectrum_is_short_and_falls() -> None:
    delta = WeightDelta({"a": low_rank(40, 30, 20), "b": Dense(torch.randn(30, 20)), "c": low_rank(rank=2)})
    found = spectrum(delta)
    assert {name: len(values) for name, values in found.items()} == {"a": LEADING, "b": LEADING, "c": 2}
    assert all(values == sorted(values, reverse=True) for values in found.values())
    assert set(spectrum(delta, widest=10)) == {"a", "c"}
    assert set(spectrum(delta, widest=20)) == {"a", "b", "c"}


def test_a_stable_rank_counts_equal_directions() -> None:
    for k in (1, 3):
        delta = WeightDelta({"a": Dense(torch.eye(5)[:k])})
        assert stable_rank(delta.norm(), spectrum(delta)["a"][0]) == pytest.approx(k)
    assert stable_rank(0.0, 0.0) is None


@pytest.mark.parametrize("kinds", ["LL", "LD", "DL", "DD"])
def test_cosines_do_not_depend_on_how_terms_are_kept(kinds: str) -> None:
    terms = [low_rank(seed=seed) for seed in (1, 2)]
    one, other = (
        WeightDelta({"w": term if kind == "L" else Dense(term.dense())})
        for kind, term in zip(kinds, terms, strict=True)
    )
    first, second = (dense(term).flatten() for term in terms)
    wanted = float(first @ second / first.norm() / second.norm())
    found = interference(one, other)
    assert found.shared["w"].cosine == pytest.approx(wanted, abs=1e-6)
    assert found.cosine == pytest.approx(wanted, abs=1e-6)
    assert (found.shared["w"].columns is None) == ("D" in kinds)


def test_angles_are_those_of_the_spaces() -> None:
    one, other = low_rank(rank=2, seed=1), low_rank(rank=3, seed=2)
    overlap = interference(WeightDelta({"w": one}), WeightDelta({"w": other})).shared["w"]
    columns = np.rad2deg(subspace_angles(one.up.double().numpy(), other.up.double().numpy()))
    rows = np.rad2deg(subspace_angles(one.down.T.double().numpy(), other.down.T.double().numpy()))
    assert overlap.columns == pytest.approx(sorted(columns), abs=1e-5)
    assert overlap.rows == pytest.approx(sorted(rows), abs=1e-5)


def test_a_delta_meets_itself_and_its_opposite() -> None:
    delta = WeightDelta({"w": low_rank(), "b": Dense(torch.ones(3))})
    for scale, cosine in ((2.0, 1.0), (-0.5, -1.0)):
        found = interference(delta, delta.scaled(scale))
        assert found.cosine == pytest.approx(cosine)
        assert found.shared["w"].cosine == pytest.approx(cosine)
        assert found.shared["w"].columns == pytest.approx((0.0, 0.0), abs=1e-5)


def test_factors_that_say_one_direction_twice_have_one_angle() -> None:
    term = low_rank(rank=1)
    twice = WeightDelta({"w": term}).then(WeightDelta({"w": term}))
    overlap = interference(twice, WeightDelta({"w": low_rank(rank=4, seed=3)})).shared["w"]
    assert overlap.columns is not None and len(overlap.columns) == 1


def test_what_does_not_meet() -> None:
    apart = interference(WeightDelta({"a": low_rank()}), WeightDelta({"b": low_rank()}))
    assert (apart.cosine, apart.shared, apart.first_only, apart.second_only) == (0.0, {}, ("a",), ("b",))
    one, other = torch.zeros(4, 1), torch.zeros(4, 1)
    one[0], other[1] = 1.0, 1.0
    row = torch.ones(1, 3)
    square = interference(WeightDelta({"w": LowRank(one, row)}), WeightDelta({"w": LowRank(other, row)}))
    assert square.shared["w"].columns == pytest.approx((90.0,))
    assert square.shared["w"].rows == pytest.approx((0.0,), abs=1e-5)
    assert square.cosine == 0.0
    nothing = interference(WeightDelta({"w": low_rank()}), WeightDelta({"w": low_rank()}).scaled(0.0))
    assert nothing.cosine is None and nothing.shared["w"].columns == ()


def test_the_whole_cosine_weighs_parameters_by_their_norms() -> None:
    big, small = Dense(torch.full((2,), 10.0)), Dense(torch.ones(2))
    found = interference(WeightDelta({"a": big, "b": small}), WeightDelta({"a": big, "b": small.scaled(-1)}))
    assert found.cosine == pytest.approx((200 - 2) / 202)
    assert not math.isnan(found.cosine)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(UserError, match=r"w is \(9, 7\) in one delta and \(7, 9\)"):
        interference(WeightDelta({"w": low_rank()}), WeightDelta({"w": low_rank(7, 9)}))
