"""The published model of the gap, made identified and fitted until it has converged.

Same likelihood, same priors, same 1,000 items per row as in `official.py`; two things differ. A common
shift of theta, mu and beta leaves the published loss all but unchanged, and yet moves its answer, since
beta is not subtracted: here beta is 0, where the published fit starts, so that theta are log odds. And
the fit ends where the gradient is 0, in double precision, not after so many steps in single precision.

    theta_k = mu + L z_k;   P = sigmoid(theta)
    loss    = -sum [s log(P + 1e-8) + f log(1 - P + 1e-8)] + 1/2 sum_k |z_k|^2 + K sum log diag L
              + 1e-3 |mu|^2

in (z, mu, L): the published loss at beta = 0, in coordinates in which a small L is not ill-conditioned.
With both shifts free the anchor alone decides: its least is at mu = -beta, so that the published loss
has its own optimum where half of the mean difference of log odds is taken away (`Converged.unfixed`).

The loss has no least value where the rows spread little: it falls without end, or down to the floor of
L's diagonal, as all rows become alike. What is looked for is the optimum at which they still differ; where
there is none, `Converged.pooled` says so.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gapeval_lab.errors import UserError
from gapeval_lab.gap.official_batch import PUBLISHED, FitError, FitSettings, Floats, gaps_of

GRADIENT = 1e-6
"""Largest entry of the gradient of a loss of thousands at which a fit counts as converged."""

POOLED = 1e-2
"""Diagonal of L, in log odds, below which the model takes rows as alike; its floor is 1e-4."""

_POLISH = 20  # Newton steps at the end, at most
_STEP = 1e-5  # of the differences of the exact gradient that make the Hessian


@dataclass(frozen=True)
class Converged:
    """An optimum.

    Attributes:
        log_odds: (K, 2) of the columns understanding, generation.
        gaps: (K,), as the published score takes them from theta.
        unfixed: (K,) the same at the optimum of the published loss with beta free.
        gradient: largest entry of the gradient, by size.
        pooled: True where no optimum keeps the rows apart in both directions.
        loss: the loss there.
    """

    log_odds: Floats
    gaps: Floats
    unfixed: Floats
    gradient: float
    pooled: bool
    loss: float


def converge(table: Floats, *, settings: FitSettings = PUBLISHED, start: Floats | None = None) -> Converged:
    """Fit the rows of one model.

    Args:
        table: (K, 4) proportions [p11, p10, p01, p00], rows summing to 1.
        settings: constants of the published model; those of its optimiser play no part.
        start: (K, 2) log odds to start from; by default those of the rows.

    Raises:
        FitError: no point with a gradient below `GRADIENT` was found.
        UserError: the table has no row.
    """
    from scipy import optimize  # takes a third of a second to import

    if not len(table):
        raise UserError("rows: there are none; give one [p11, p10, p01, p00] per category")
    counts = table * settings.counts
    right = np.stack([counts[:, 0] + counts[:, 1], counts[:, 0] + counts[:, 2]], axis=1)
    wrong = settings.counts - right
    if start is None:
        start = np.log(right + 0.5) - np.log(wrong + 0.5)
    value_and_gradient = _objective(right, wrong, settings)

    def hessian(x: Floats) -> Floats:
        steps = _STEP * np.eye(len(x))
        ahead, behind = value_and_gradient(x + np.stack([steps, -steps]))[1]
        found = (ahead - behind) / (2 * _STEP)
        symmetric: Floats = (found + found.T) / 2
        return symmetric

    found = optimize.minimize(
        value_and_gradient,
        _packed(start, settings),
        jac=True,
        hess=hessian,
        method="trust-exact",
        options={"gtol": GRADIENT / 10, "maxiter": 500, "initial_trust_radius": 0.5, "max_trust_radius": 5.0},
    )
    x, (value, gradient) = found.x, value_and_gradient(found.x)
    # A loss of thousands shows no fall below 1e-12 of it, and the search ends there; its gradient goes on.
    for _ in range(_POLISH):
        if not np.abs(gradient).max() > GRADIENT / 1000:
            break
        nearer = x - np.linalg.solve(hessian(x), gradient)
        then = value_and_gradient(nearer)
        if not np.abs(then[1]).max() < np.abs(gradient).max():
            break
        x, (value, gradient) = nearer, then
    size = float(np.abs(gradient).max())
    if not np.isfinite(value) or size > GRADIENT:
        raise FitError(f"the published model did not converge: gradient {size:.1e} after {found.nit} steps")
    z, mu, lower = _unpacked(x, len(table), settings)
    log_odds = mu + z @ lower.T
    return Converged(
        log_odds=log_odds,
        gaps=gaps_of(log_odds, table, settings),
        unfixed=gaps_of(log_odds - mu / 2, table, settings),
        gradient=size,
        pooled=bool(lower.diagonal().min() < POOLED),
        loss=float(value),
    )


def _packed(log_odds: Floats, settings: FitSettings) -> Floats:
    """The free values of a start: y, z, mu, L's raw diagonal and t; see `_unpacked`."""
    mu = log_odds.mean(axis=0)
    spread = np.cov(log_odds.T, bias=True) if len(log_odds) > 1 else np.zeros((2, 2))
    lower = np.linalg.cholesky(spread + 0.05 * np.eye(2))  # not too near singular, whatever the rows
    z = np.linalg.solve(lower, (log_odds - mu).T).T
    t = np.arcsinh(lower[1, 0])
    raw = np.log(np.expm1(lower.diagonal() - settings.diagonal))
    return np.concatenate([z[:, 0] * np.cosh(t), z[:, 1], mu, raw, [t]])


def _unpacked(x: Floats, k: int, settings: FitSettings) -> tuple[Floats, Floats, Floats]:
    """z (..., K, 2), mu (..., 2) and L (..., 2, 2) of values (..., 2 K + 5).

    The entry of L below the diagonal is sinh t, and the first column of z is y / cosh t: where rows
    become alike in understanding, that entry grows without bound, and these still move evenly.
    """
    t = x[..., -1]
    z = np.stack([x[..., :k] / np.cosh(t)[..., None], x[..., k : 2 * k]], axis=-1)
    lower = np.zeros((*t.shape, 2, 2))
    lower[..., [0, 1], [0, 1]] = np.logaddexp(0, x[..., 2 * k + 2 : 2 * k + 4]) + settings.diagonal
    lower[..., 1, 0] = np.sinh(t)
    return z, x[..., 2 * k : 2 * k + 2], lower


def _objective(
    right: Floats, wrong: Floats, settings: FitSettings
) -> Callable[[Floats], tuple[Floats, Floats]]:
    """The loss (...) and its gradient (..., 2 K + 5), in the free values of one point or of many at once."""
    k, eps, anchor = len(right), settings.log_eps, settings.anchor

    def value_and_gradient(x: Floats) -> tuple[Floats, Floats]:
        z, mu, lower = _unpacked(x, k, settings)
        t, diagonal = x[..., -1], lower.diagonal(axis1=-2, axis2=-1)
        theta = mu[..., None, :] + z @ lower.swapaxes(-1, -2)
        # Both tails exactly, so that a row without a failure has a gradient.
        p, q = _sigmoid(theta), _sigmoid(-theta)
        value = (
            -(right * np.log(p + eps) + wrong * np.log(q + eps)).sum(axis=(-2, -1))
            + 0.5 * (z * z).sum(axis=(-2, -1))
            + k * np.log(diagonal).sum(axis=-1)
            + anchor * (mu * mu).sum(axis=-1)
        )
        d_theta = (wrong / (q + eps) - right / (p + eps)) * p * q
        d_lower = d_theta.swapaxes(-1, -2) @ z
        d_z = d_theta @ lower + z
        slopes = d_lower.diagonal(axis1=-2, axis2=-1) + k / diagonal
        d_raw = slopes * _sigmoid(x[..., 2 * k + 2 : 2 * k + 4])
        d_mu = d_theta.sum(axis=-2) + 2 * anchor * mu
        d_t = d_lower[..., 1, 0] * np.cosh(t) - np.tanh(t) * (d_z[..., 0] * z[..., 0]).sum(axis=-1)
        d_y = d_z[..., 0] / np.cosh(t)[..., None]
        return value, np.concatenate([d_y, d_z[..., 1], d_mu, d_raw, d_t[..., None]], axis=-1)

    return value_and_gradient


def _sigmoid(x: Floats) -> Floats:
    result: Floats = np.where(x >= 0, 1.0, np.exp(-np.abs(x))) / (1 + np.exp(-np.abs(x)))
    return result
