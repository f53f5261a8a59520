"""How large a delta is, in which directions it acts, and how much of that two deltas share.

    dW            a parameter's term as a matrix (rows, columns); of more dimensions, the last ones are
                  taken together; of fewer, it is one row
    s_1 >= s_2 .. its singular values; stable rank |dW|_F^2 / s_1^2
    cosine        <dW_1, dW_2>_F / (|dW_1|_F |dW_2|_F)
    angles        principal angles of two column spaces, or of two row spaces: arccos of the singular
                  values of Q_1^T Q_2, Q_i an orthonormal basis (Bjorck and Golub 1973)

Low-rank terms are measured by their factors, never by a matrix of dW's size; all in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gapeval_lab.delta import LowRank, Term, WeightDelta
from gapeval_lab.errors import UserError

LEADING = 8  # singular values that are kept


@dataclass(frozen=True)
class Overlap:
    """What two deltas share in one parameter.

    Attributes:
        cosine: None where one of the terms is 0.
        columns, rows: principal angles in degrees, smallest first: 0 is a direction that both have, 90
            one that they do not share. None where a term is dense: its spaces are everything.
    """

    cosine: float | None
    columns: tuple[float, ...] | None
    rows: tuple[float, ...] | None


@dataclass(frozen=True)
class Interference:
    """What two deltas share.

    Attributes:
        cosine: over all parameters at once; 0 where they touch none in common, None where one is 0.
        shared: parameter -> its overlap, for the parameters that both touch.
        first_only, second_only: parameters that one of them touches.
    """

    cosine: float | None
    shared: dict[str, Overlap]
    first_only: tuple[str, ...]
    second_only: tuple[str, ...]


def spectrum(delta: WeightDelta, *, widest: int | None = None) -> dict[str, list[float]]:
    """Parameter -> its leading singular values, at most `LEADING`, largest first.

    Args:
        delta: what to measure.
        widest: leave out dense terms whose smaller side is longer: each takes seconds and more.
    """
    return {
        name: singular_values(term)[:LEADING].tolist()
        for name, term in delta.terms.items()
        if widest is None or isinstance(term, LowRank) or min(_matrix_shape(term)) <= widest
    }


def singular_values(term: Term) -> Tensor:
    """The singular values of dW, largest first: (k,), float64.

    k is the number of ranks of a low-rank term, at most the smaller side. Dense terms go through the
    smaller Gram matrix, whose values below 1e-8 s_1 are noise; so are they in the term's float32.
    """
    if isinstance(term, LowRank):
        return _svd(term).values
    matrix = term.dense().double().reshape(_matrix_shape(term))
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values: Tensor = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()
    return values


def stable_rank(norm: float, largest: float) -> float | None:
    """|dW|_F^2 / s_1^2: 1 for one direction, k for k equal ones; None for a term of 0."""
    return (norm / largest) ** 2 if largest else None


def interference(one: WeightDelta, other: WeightDelta) -> Interference:
    """What two deltas share, parameter by parameter.

    Raises:
        UserError: two terms of one parameter differ in shape.
    """
    names = [name for name in one.terms if name in other.terms]
    for name in names:
        if one.terms[name].shape != other.terms[name].shape:
            raise UserError(
                f"delta: {name} is {one.terms[name].shape} in one delta and {other.terms[name].shape} in the "
                "other; compare deltas of one model"
            )
    inner = {name: _inner(one.terms[name], other.terms[name]) for name in names}
    norms = [delta.norms() for delta in (one, other)]
    shared = {}
    for name in names:
        first, second = one.terms[name], other.terms[name]
        columns = rows = None
        if isinstance(first, LowRank) and isinstance(second, LowRank):
            bases = [_svd(term).significant(term) for term in (first, second)]
            columns = _angles(bases[0].left, bases[1].left)
            rows = _angles(bases[0].right, bases[1].right)
        shared[name] = Overlap(_cosine(inner[name], norms[0][name], norms[1][name]), columns, rows)
    return Interference(
        cosine=_cosine(sum(inner.values()), one.norm(), other.norm()),
        shared=shared,
        first_only=tuple(name for name in one.terms if name not in other.terms),
        second_only=tuple(name for name in other.terms if name not in one.terms),
    )


@dataclass(frozen=True)
class _Svd:
    """left @ diag(values) @ right.T: (rows, k), (k,), (columns, k)."""

    left: Tensor
    values: Tensor
    right: Tensor

    def significant(self, term: LowRank) -> _Svd:
        """Without what float32 factors cannot tell from 0."""
        floor = float(self.values[:1].sum()) * max(term.shape) * torch.finfo(torch.float32).eps
        kept = self.values > floor
        return _Svd(self.left[:, kept], self.values[kept], self.right[:, kept])


def _svd(term: LowRank) -> _Svd:
    """With up = Q R and down^T = P S: up @ down = Q (R S^T) P^T, and R S^T is small."""
    q, r = torch.linalg.qr(term.up.double())
    p, s = torch.linalg.qr(term.down.double().T)
    left, values, right = torch.linalg.svd(r @ s.T, full_matrices=False)
    return _Svd(q @ left, values, p @ right.T)


def _matrix_shape(term: Term) -> tuple[int, int]:
    """The sides of dW as a matrix."""
    size = math.prod(term.shape)
    rows = term.shape[0] if len(term.shape) > 1 else 1
    return (rows, size // rows) if size else (0, 0)


def _inner(one: Term, other: Term) -> float:
    """<dW_1, dW_2>_F."""
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        up, down = one.up.double().T @ other.up.double(), one.down.double() @ other.down.double().T
        return float((up * down).sum())
    if isinstance(one, LowRank):
        return float((one.up.double().T @ other.dense().double() * one.down.double()).sum())
    if isinstance(other, LowRank):
        return _inner(other, one)
    return float((one.dense().double() * other.dense().double()).sum())


def _cosine(inner: float, norm: float, other: float) -> float | None:
    return max(-1.0, min(1.0, inner / norm / other)) if norm and other else None


def _angles(one: Tensor, other: Tensor) -> tuple[float, ...]:
    """Principal angles of two orthonormal bases, in degrees, smallest first."""
    cosines = torch.linalg.svdvals(one.T @ other).clamp(max=1)
    return tuple(torch.rad2deg(torch.arccos(cosines)).tolist())
