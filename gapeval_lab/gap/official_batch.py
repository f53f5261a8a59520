"""The published fit for many tables at once: same algorithm, another order of operations.

Knows arrays only (numpy; no torch, so that a bootstrap costs no import). Approximate: each value is
right up to the rounding band of the published estimator, no better. Headlines come from
`official.fit`; bands and bootstraps from here, at about a thousandth of the cost per table.

The model and its notation stand in `official.py`; here the last axis runs over B tables.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


class FitError(Exception):
    """The published fit gave no finite number for these rows."""


@dataclass(frozen=True)
class FitSettings:
    """Constants of the published estimator. Other values show how much each one matters."""

    steps: int = 2000
    counts: float = 1000.0  # items that every row is taken to have
    rate: float = 0.05  # AdamW
    decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    log_eps: float = 1e-8  # inside each logarithm of the likelihood
    anchor: float = 1e-3  # weight of |beta|^2 + |mu|^2
    diagonal: float = 1e-4  # least diagonal of L
    start_clamp: float = 1e-5  # of the success rates that theta starts from
    gap_clamp: float = 1e-6
    neither_weight: float = 2.7
    both_weight: float = 1.05


PUBLISHED = FitSettings()


def start(table: Floats, settings: FitSettings) -> tuple[Floats, Singles]:
    """Counts (..., K, 4) in double precision, and the success rates (..., K, 2) theta starts from.

    Both are rounded to single precision only after this, which is where the rounding of the
    published numbers begins.
    """
    counts = table * settings.counts
    right = np.stack([counts[..., 0] + counts[..., 1], counts[..., 0] + counts[..., 2]], axis=-1)
    wrong = np.stack([counts[..., 2] + counts[..., 3], counts[..., 1] + counts[..., 3]], axis=-1)
    rates = np.clip(right / (right + wrong + 1e-8), settings.start_clamp, 1 - settings.start_clamp)
    return counts, rates.astype(np.float32)


def gaps_of(theta: Floats, table: Floats, settings: FitSettings) -> Floats:
    """Gaps (..., K) from fitted theta (..., K, 2) and the rows (..., K, 4) they belong to."""
    difference = np.abs(theta[..., 0] - theta[..., 1])
    a = np.clip(difference / (1 + difference), settings.gap_clamp, 1 - settings.gap_clamp)
    exponent = (
        np.log(a / (1 - a)) + settings.neither_weight * table[..., 3] - settings.both_weight * table[..., 0]
    )
    result: Floats = 1 / (1 + np.exp(-exponent))
    return result


def refit(tables: Floats, *, settings: FitSettings = PUBLISHED) -> Floats:
    """Approximate published gaps of many tables: (B, K, 4) proportions -> (B, K).

    Raises:
        FitError: a fit gave no finite number.
    """
    return gaps_of(_fit_many(tables, settings).astype(np.float64), tables, settings)


def _fit_many(tables: Floats, settings: FitSettings) -> Singles:
    """Theta (B, K, 2) of the step with each table's lowest loss."""
    one = np.float32
    batch, k, _ = tables.shape
    counts, rates = start(tables, settings)
    # Axes from here on: direction, row, table.
    c = counts.astype(np.float32).transpose(2, 1, 0)
    right = np.stack([c[0] + c[1], c[0] + c[2]])
    wrong = np.stack([c[2] + c[3], c[1] + c[3]])
    rates = np.ascontiguousarray(rates.transpose(2, 1, 0))

    # All parameters in one array, so that AdamW is a few operations: theta, beta and mu, L_raw
    # (two diagonal entries, then the one below; the one above never gets a gradient).
    values, gradient, first, second = (np.zeros((2 * k + 7, batch), np.float32) for _ in range(4))
    theta, d_theta = (x[: 2 * k].reshape(2, k, batch) for x in (values, gradient))
    anchored, d_anchored = (x[2 * k : 2 * k + 4].reshape(2, 2, batch) for x in (values, gradient))
    raw, d_raw = values[2 * k + 4 :], gradient[2 * k + 4 :]
    beta, mu = anchored[0][:, None], anchored[1][:, None]
    theta[:] = np.log(rates / (1 - rates))
    mu[:] = theta.mean(axis=1, keepdims=True)
    raw[:] = np.array([0.1, 0.1, 0.05], np.float32)[:, None]

    lowest = np.full(batch, np.inf, np.float32)
    best = theta.copy()
    for step in range(1, settings.steps + 1):
        success = 1 / (1 + np.exp(beta - theta))
        failure = 1 - success
        p, q = success + one(settings.log_eps), failure + one(settings.log_eps)
        exp_raw = np.exp(raw[:2])
        diagonal, below = np.log1p(exp_raw) + one(settings.diagonal), raw[2]
        # z = L^-1 (theta - mu), w = L^-T z: the quadratic form is |z|^2, its gradient 2 w.
        offset = theta - mu
        z0 = offset[0] / diagonal[0]
        z1 = (offset[1] - below * z0) / diagonal[1]
        w1 = z1 / diagonal[1]
        w0 = (z0 - below * w1) / diagonal[0]
        loss = (
            -(right * np.log(p) + wrong * np.log(q)).sum(axis=(0, 1))
            + one(0.5) * (z0 * z0 + z1 * z1).sum(axis=0)
            + k * np.log(diagonal).sum(axis=0)
            + one(settings.anchor) * (anchored * anchored).sum(axis=(0, 1))
        )
        np.multiply((wrong / q - right / p) * success, failure, out=d_theta)
        d_anchored[0] = -d_theta.sum(axis=1)
        d_anchored[1] = -w0.sum(axis=0), -w1.sum(axis=0)
        d_anchored += one(2 * settings.anchor) * anchored
        d_theta[0] += w0
        d_theta[1] += w1
        d_raw[0] = k / diagonal[0] - (w0 * z0).sum(axis=0)
        d_raw[1] = k / diagonal[1] - (w1 * z1).sum(axis=0)
        d_raw[:2] *= exp_raw / (1 + exp_raw)
        d_raw[2] = -(w1 * z0).sum(axis=0)

        values *= one(1 - settings.rate * settings.decay)
        first += (gradient - first) * one(1 - settings.beta1)
        second += (gradient * gradient - second) * one(1 - settings.beta2)
        root = np.sqrt(second) / one((1 - settings.beta2**step) ** 0.5) + one(settings.adam_eps)
        values -= one(settings.rate / (1 - settings.beta1**step)) * first / root
        # The loss belongs to the values before the update, the theta kept to those after it.
        lower = loss < lowest
        lowest[lower] = loss[lower]
        best[:, :, lower] = theta[:, :, lower]
    lost = ~np.isfinite(lowest) | ~np.isfinite(best).all(axis=(0, 1))
    if lost.any():
        raise FitError(f"{int(lost.sum())} of {batch} refits never had a finite loss")
    return best.transpose(2, 1, 0)
