"""The published Gap Score (arXiv 2602.02140): the authors' joint fit, operation for operation.

Knows rows of one model and torch; knows no closed form (`score.py`), no items and no files.

Per row k of K: counts (p11, p10, p01, p00) x 1000, s right and f wrong in a direction. Parameters
theta (K x 2; columns understanding, generation), beta (2), mu (2), L_raw (2 x 2), and

    L      lower triangle of L_raw, its diagonal replaced by softplus(diagonal) + 1e-4;  Sigma = L L^T
    P      sigmoid(theta - beta)
    loss   -sum [s log(P + 1e-8) + f log(1 - P + 1e-8)]
           + 1/2 sum_k (theta_k - mu)^T Sigma^-1 (theta_k - mu) + K sum log diag L + 1e-3 (|beta|^2 + |mu|^2)

are fitted by 2,000 steps of AdamW; theta of the step with the lowest loss gives, with
a = |theta_k0 - theta_k1| / (1 + |theta_k0 - theta_k1|), the gap sigmoid(logit a + 2.7 p00 - 1.05 p11).

The value is an artefact of rounding as well as of the rows: the loss is flat along a common shift
of theta, mu and beta, and float32 decides which step is lowest. Nor is the start safe: theta starts
where the likelihood is flat, so the first gradient of beta is rounding noise, which AdamW turns into
a full step. So `fit` keeps the order of operations, and no number of it is shown without its band.

The gradient is written out with the kernels that autograd would call, on the same shapes and in its
order of accumulation. It gives the same bits (a test compares them with autograd and torch's own
AdamW) in less than half the time, and needs no gradient mode of the caller.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from gapeval_lab.errors import UserError
from gapeval_lab.gap.official_batch import PUBLISHED, FitError, FitSettings, Floats, gaps_of, refit, start
from gapeval_lab.gap.records import Estimate, OfficialGap
from gapeval_lab.gap.resample import bootstrap, estimate, stream
from gapeval_lab.gap.table import SUM_TOLERANCE

PERTURBATION = 1e-6
"""Size of the input noise behind the rounding band; far below what any benchmark can resolve."""

_L_START = ((0.1, 0.0), (0.05, 0.1))

__all__ = [
    "PERTURBATION",
    "FitError",
    "bootstrap_interval",
    "fit",
    "official_gap",
    "perturbed",
    "rounding_moves",
]


def official_gap(rows: Mapping[str, Sequence[float]], *, seed: int, repeats: int = 8) -> OfficialGap:
    """The published score of one model, with its rounding band.

    Takes about a second; the same rows are fitted once in a process, since a model is the same before
    each of its edits.

    Args:
        rows: category -> [p11, p10, p01, p00]. All rows of the model: the fit is joint over them.
        seed: of the band's perturbations.
        repeats: perturbed fits behind the band.

    Raises:
        UserError: a row is not four proportions with sum 1.
        FitError: the fit gave no finite number.
    """
    shares = tuple(tuple(row) for row in _checked(rows).tolist())
    gaps, mean, moved = _fitted(shares, seed, repeats)
    return OfficialGap(
        gaps=dict(zip(rows, gaps, strict=True)),
        mean=mean,
        band=moved[-1],
        bands=dict(zip(rows, moved, strict=False)),
    )


@lru_cache(maxsize=64)
def _fitted(
    shares: tuple[tuple[float, ...], ...], seed: int, repeats: int
) -> tuple[tuple[float, ...], float, tuple[float, ...]]:
    """Gaps (K,), their mean and what noise moves (K + 1,) of the same rows."""
    table = np.array(shares)
    gaps = fit(table)
    moved = rounding_moves(table, gaps, seed=seed, repeats=repeats)
    return tuple(gaps.tolist()), float(gaps.mean()), tuple(moved)


def rounding_moves(table: Floats, gaps: Floats, *, seed: int, repeats: int = 8) -> list[float]:
    """The largest move of each row's gap, then of their mean, under input noise of `PERTURBATION`.

    Args:
        table: (K, 4) proportions.
        gaps: (K,) of the exact fit of this table.
        seed: of the noise.
        repeats: noisy copies, each fitted anew.

    Raises:
        FitError: a refit gave no finite number.
    """
    found = refit(perturbed(table, seed=seed, repeats=repeats))
    rows = np.abs(found - gaps).max(axis=0).tolist()
    return [*rows, float(np.abs(found.mean(axis=1) - gaps.mean()).max())]


def perturbed(table: Floats, *, seed: int, repeats: int) -> Floats:
    """(repeats, K, 4) copies of a table with noise of `PERTURBATION`, non-negative, rows summing to 1."""
    noise = stream(seed, "rounding").normal(scale=PERTURBATION, size=(repeats, *table.shape))
    copies = np.abs(table + noise)
    shares: Floats = copies / copies.sum(axis=-1, keepdims=True)
    return shares


def bootstrap_interval(
    counts: NDArray[np.int64], *, value: float, seed: int, replicates: int = 1000
) -> Estimate:
    """Approximate bootstrap interval (95 %) of the published mean gap, by batched refits.

    It holds the noise of sampling and of rounding together; the latter alone is the rounding band.

    Args:
        counts: (K, 4) real counts; items are resampled within their row.
        value: mean gap of the exact fit.
        seed: of the resampling.
        replicates: refits.

    Raises:
        FitError: a refit gave no finite number.
    """
    draws = [
        bootstrap(row, rng=stream(seed, "official", str(i)), replicates=replicates) / row.sum()
        for i, row in enumerate(counts)
    ]
    return estimate(value, refit(np.stack(draws, axis=1)).mean(axis=1))


def fit(table: Floats, *, settings: FitSettings = PUBLISHED) -> Floats:
    """The published gaps of one model: (K, 4) proportions, rows summing to 1 -> (K,).

    Takes one to two seconds. Neither the number of threads nor any random state is changed for the
    caller, whose gradient, autocast and default-device modes play no part.

    Raises:
        FitError: the fit gave no finite number.
    """
    counts, rates = start(table, settings)
    # Each new tensor says that it is on the CPU: a default device, even that one, doubles the cost of a call.
    with _single_threaded(), torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            theta = _lowest_theta(_float32(counts), _float32(rates), settings)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise FitError(f"Sigma became singular ({error})") from error
    return gaps_of(theta.double().numpy(), table, settings)


def _lowest_theta(counts: Tensor, rates: Tensor, settings: FitSettings) -> Tensor:
    """Theta (K, 2), after the update, of the step with the lowest loss before it.

    Args:
        counts: (K, 4), float32. rates: (K, 2), float32, the success rates to start from.
    """
    k = len(counts)
    n11, n10, n01, n00 = counts.unbind(1)
    right_u, wrong_u, right_g, wrong_g = n11 + n10, n01 + n00, n11 + n01, n10 + n00
    theta = torch.log(rates / (1 - rates))
    beta = torch.zeros(2, dtype=torch.float32, device="cpu")
    mu = theta.mean(0)
    raw = _float32(_L_START)
    d_raw, lower = torch.zeros_like(raw), torch.zeros_like(raw)  # lower is L
    optimiser = _AdamW((theta, beta, mu, raw), settings)

    # Constants as tensors and views taken once: the same kernels and bits, at half the cost of a call
    # with a number or of an index.
    one, eps, half, floor, anchor, anchor2 = (
        _float32(x)
        for x in (1.0, settings.log_eps, 0.5, settings.diagonal, settings.anchor, 2 * settings.anchor)
    )
    theta_u, theta_g, beta_u, beta_g = theta[:, 0], theta[:, 1], beta[0], beta[1]
    raw_diagonal, raw_below = raw.diagonal(), raw[1, 0]
    diagonal, below, upper = lower.diagonal(), lower[1, 0], lower.t()
    d_raw_diagonal, d_raw_below = d_raw.diagonal(), d_raw[1, 0]

    lowest, best = math.inf, theta.clone()
    for step in range(1, settings.steps + 1):
        p_u = torch.sigmoid(theta_u - beta_u)
        p_g = torch.sigmoid(theta_g - beta_g)
        s_u, f_u, s_g, f_g = p_u + eps, one - p_u + eps, p_g + eps, one - p_g + eps
        likelihood = (
            right_u * torch.log(s_u)
            + wrong_u * torch.log(f_u)
            + right_g * torch.log(s_g)
            + wrong_g * torch.log(f_g)
        ).sum()
        diagonal.copy_(softplus(raw_diagonal) + floor)
        below.copy_(raw_below)
        inverse = torch.linalg.inv(lower @ upper)
        inverse_t = inverse.t()
        offset = theta - mu
        projected = offset @ inverse
        loss = (
            -likelihood
            + half * (projected * offset).sum()
            + k * torch.log(diagonal).sum()
            + anchor * ((beta**2).sum() + (mu**2).sum())
        )

        d_u = torch.ops.aten.sigmoid_backward(wrong_u / f_u - right_u / s_u, p_u)
        d_g = torch.ops.aten.sigmoid_backward(wrong_g / f_g - right_g / s_g, p_g)
        d_projected = half * offset
        d_offset = half * projected + d_projected @ inverse_t
        d_inverse = (d_projected.t() @ offset).t()
        d_sigma = -(inverse_t @ (d_inverse @ inverse_t))
        # Three gradients meet on L; autograd adds them in this order.
        d_lower = d_sigma @ lower
        d_diagonal = d_lower.diagonal()
        d_diagonal += k / diagonal
        d_lower += d_sigma.t() @ lower
        d_raw_diagonal.copy_(torch.ops.aten.softplus_backward(d_diagonal, raw_diagonal, 1, 20))
        d_raw_below.copy_(d_lower[1, 0])
        d_mu = anchor2 * mu - d_offset.sum(0)
        d_beta = anchor2 * beta - torch.stack([d_u.sum(), d_g.sum()])
        d_offset += torch.stack([d_u, d_g], dim=1)
        optimiser.step(step, (d_offset, d_beta, d_mu, d_raw))

        value = loss.item()
        if value < lowest:
            lowest, best = value, theta.clone()
    if not (math.isfinite(lowest) and torch.isfinite(best).all()):
        raise FitError(f"no step had a finite loss (lowest: {lowest})")
    return best


def _float32(values: Any) -> Tensor:
    """A tensor on the CPU, whatever device the caller made the default."""
    return torch.tensor(values, dtype=torch.float32, device="cpu")


class _AdamW:
    """torch.optim.AdamW's unfused update of plain tensors, without its bookkeeping.

    The fused and the flattened (one tensor for all parameters) variants are faster still but take
    other vector paths, and so may give other bits.
    """

    def __init__(self, parameters: Sequence[Tensor], settings: FitSettings) -> None:
        self._settings = settings
        self._state = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self._keep = _float32(1 - settings.rate * settings.decay)
        self._beta2 = _float32(settings.beta2)
        self._eps = _float32(settings.adam_eps)

    def step(self, number: int, gradients: Sequence[Tensor]) -> None:
        """Update in place; `number` counts from 1."""
        s = self._settings
        rate = s.rate / (1 - s.beta1**number)
        root_correction = _float32((1 - s.beta2**number) ** 0.5)
        for (parameter, first, second), gradient in zip(self._state, gradients, strict=True):
            parameter.mul_(self._keep)
            first.lerp_(gradient, 1 - s.beta1)
            second.mul_(self._beta2).addcmul_(gradient, gradient, value=1 - s.beta2)
            root = (second.sqrt() / root_correction).add_(self._eps)
            parameter.addcdiv_(first, root, value=-rate)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """One torch thread inside, the caller's number again outside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _checked(rows: Mapping[str, Sequence[float]]) -> Floats:
    """(K, 4) rows divided by their sums."""
    bad = [
        f"category '{name}': {list(row)} (sum {sum(row):g})"
        for name, row in rows.items()
        if len(row) != 4 or not min(row) >= 0 or not abs(sum(row) - 1) <= SUM_TOLERANCE
    ]
    if bad or not rows:
        raise UserError(
            "rows: " + ("; ".join(bad) or "there are none") + "; "
            "give one [p11, p10, p01, p00] per category, proportions that sum to 1"
        )
    table = np.array(list(rows.values()), dtype=np.float64)
    shares: Floats = table / table.sum(axis=1, keepdims=True)
    return shares
