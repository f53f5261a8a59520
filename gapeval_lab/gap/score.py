"""The Gap Score of this project: closed form, one category at a time, always with its uncertainty.

Knows cells and nothing of where they came from. It is a different estimator of the published
quantity (see `official.py`), and the two are never mixed.

Notation, per category with n items scored in both directions:

    U, G          items right in understanding, in generation
    theta_u       log((U + 1/2) / (n - U + 1/2)); theta_g likewise  (Jeffreys-smoothed logits)
    D             theta_u - theta_g, the signed gap: positive where the model tells better than it draws
    p11, p00      share of items right in both, in neither
    gap           sigmoid(logit(|D| / (1 + |D|)) + 2.7 p00 - 1.05 p11)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.errors import UserError
from gapeval_lab.gap.records import CategoryGap, Cells, Estimate, GapReport, OfficialGap
from gapeval_lab.gap.resample import bootstrap, estimate, stream
from gapeval_lab.gap.table import ASSUMED_N, Rows, counts_array, proportions

NEITHER_WEIGHT = 2.7
"""Weight of p00 in the exponent of the gap, as in the published estimator."""

BOTH_WEIGHT = 1.05
"""Weight of p11 in the exponent of the gap, as in the published estimator."""

SMOOTHING = 0.5
"""Items added to the right and to the wrong ones before the log odds are taken (Jeffreys)."""

Floats = NDArray[np.float64]
Counts = NDArray[np.int64] | NDArray[np.float64]


@dataclass(frozen=True)
class PointGap:
    """Closed-form scores without uncertainty, for rows that somebody else has counted.

    Attributes:
        gaps, signed_gaps: one per row. mean: plain mean of `gaps`.
        n: items per row that the formula was given.
        n_assumed: True where the file gave no n and `n` is a convention.
    """

    gaps: tuple[float, ...]
    signed_gaps: tuple[float, ...]
    mean: float
    n: tuple[int, ...]
    n_assumed: bool


def signed_gap(counts: Counts, *, smoothing: float = SMOOTHING) -> Floats:
    """D of each row of cells, in logits: (..., 4) -> (...)."""
    n, understood, drawn = (
        counts.sum(axis=-1),
        counts[..., 0] + counts[..., 1],
        counts[..., 0] + counts[..., 2],
    )
    return _logit(understood, n, smoothing) - _logit(drawn, n, smoothing)


def gap(
    counts: Counts,
    *,
    smoothing: float = SMOOTHING,
    neither: float = NEITHER_WEIGHT,
    both: float = BOTH_WEIGHT,
) -> Floats:
    """Gap of each row of cells, in [0, 1): (..., 4) -> (...). Every row must hold an item.

    The logit of |D| / (1 + |D|) is log |D|, so the gap is x / (1 + x) with
    x = |D| exp(2.7 p00 - 1.05 p11): the same value, and exactly 0 at D = 0. Other constants than the
    default ones show how much they matter; see `audit.py`.
    """
    exponent = (neither * counts[..., 3] - both * counts[..., 0]) / counts.sum(axis=-1)
    x: Floats = np.abs(signed_gap(counts, smoothing=smoothing)) * np.exp(exponent)
    return x / (1 + x)


def accuracies(counts: Counts) -> tuple[Floats, Floats]:
    """Shares of items right in understanding and in generation: (..., 4) -> two of (...)."""
    n = counts.sum(axis=-1)
    return (counts[..., 0] + counts[..., 1]) / n, (counts[..., 0] + counts[..., 2]) / n


def phi(cells: Cells) -> float | None:
    """Correlation of the two directions over items; None where a direction is all right or all wrong."""
    understood, drawn = cells.both + cells.und_only, cells.both + cells.gen_only
    margins = understood * (cells.n - understood) * drawn * (cells.n - drawn)
    if margins == 0:
        return None
    return (cells.both * cells.neither - cells.und_only * cells.gen_only) / math.sqrt(margins)


def overlap(cells: Cells) -> float | None:
    """Of the items right in some direction, the share right in both; None where there are none."""
    some = cells.both + cells.und_only + cells.gen_only
    return cells.both / some if some else None


def point_gap(rows: Rows) -> PointGap:
    """Score rows of a published file, without intervals.

    Proportions have no n, so the closed form takes `ASSUMED_N` items per row and says so; an
    interval from an n that was never counted would be invented. Counts can have intervals: give
    them to `gap_report`.
    """
    if rows.counts is None:
        shares = np.array(rows.proportions)
        counts: Counts = ASSUMED_N * shares / shares.sum(axis=1, keepdims=True)
    else:
        counts = counts_array(rows.counts)
    gaps = gap(counts)
    n = [ASSUMED_N] * len(gaps) if rows.counts is None else [cells.n for cells in rows.counts]
    return PointGap(
        tuple(gaps.tolist()),
        tuple(signed_gap(counts).tolist()),
        float(gaps.mean()),
        tuple(n),
        n_assumed=rows.counts is None,
    )


def gap_report(
    table: Mapping[str, Cells], *, seed: int, replicates: int = 10_000, official: bool = True
) -> GapReport:
    """Everything about one state of one model.

    Intervals are percentile intervals (95 %) of a bootstrap that resamples items within their
    category; a category's numbers depend on its own cells, its name and the seed only. Where every
    item fell in one cell, resampling can show no other outcome and the interval has no width.

    Args:
        table: cells per category, in the order of the report. A category with no item scored in
            both directions has no numbers: it stands in `left_out` and in no mean.
        seed: all randomness comes from it.
        replicates: bootstrap replicates, and exchanges for the overall null.
        official: whether to run the published fit as well (one to two seconds).

    Raises:
        UserError: no category has an item scored in both directions.
    """
    kept = {name: cells for name, cells in table.items() if cells.n}
    left_out = {name: cells.unscored for name, cells in table.items() if not cells.n}
    if not kept:
        raise UserError(
            f"verdicts: none of {sum(left_out.values())} items in {len(left_out)} categories is scored in "
            "both directions; a gap needs a model that answers and draws, and a judge that scores both"
        )
    parts = [_category(name, cells, seed=seed, replicates=replicates) for name, cells in kept.items()]
    records = {name: part.record for name, part in zip(kept, parts, strict=True)}
    observed = float(np.mean([record.gap.value for record in records.values()]))
    null = np.mean([part.null for part in parts], axis=0)
    fit, note = _official(kept, left_out, seed=seed) if official else (None, "not asked for")
    return GapReport(
        categories=records,
        gap=estimate(observed, np.mean([part.gap for part in parts], axis=0)),
        null_gap=float(np.mean([record.null_gap for record in records.values()])),
        # The observed arrangement is one of the possible exchanges, so p is never 0.
        null_p=(1 + _at_least(null, observed)) / (1 + replicates),
        understanding=_mean_of([record.understanding for record in records.values()], [p.und for p in parts]),
        generation=_mean_of([record.generation for record in records.values()], [p.gen for p in parts]),
        official=fit,
        official_note=note,
        left_out=left_out,
    )


@dataclass(frozen=True)
class _Part:
    """One category's record and the draws, (replicates,) each, from which means get intervals."""

    record: CategoryGap
    gap: Floats
    und: Floats
    gen: Floats
    null: Floats


def _logit(right: Counts, n: Counts, smoothing: float) -> Floats:
    return np.log(right + smoothing) - np.log(n - right + smoothing)


def _category(name: str, cells: Cells, *, seed: int, replicates: int) -> _Part:
    counts = counts_array([cells])[0]
    draws = bootstrap(counts, rng=stream(seed, "state", name), replicates=replicates)
    gaps = gap(draws)
    und, gen = accuracies(draws)
    understanding, generation = accuracies(counts)
    observed = float(gap(counts))
    exchanged, weights = _exchanges(cells)
    swaps = stream(seed, "null", name).binomial(cells.und_only + cells.gen_only, 0.5, size=replicates)
    record = CategoryGap(
        cells=cells,
        understanding=estimate(float(understanding), und),
        generation=estimate(float(generation), gen),
        gap=estimate(observed, gaps),
        signed_gap=estimate(float(signed_gap(counts)), signed_gap(draws)),
        null_gap=float(weights @ exchanged),
        null_p=min(1.0, float(weights[exchanged >= observed - 1e-12].sum())),
        phi=phi(cells),
        overlap=overlap(cells),
    )
    return _Part(record, gaps, und, gen, exchanged[swaps])


def _exchanges(cells: Cells) -> tuple[Floats, Floats]:
    """The exact null of a category: gaps with 0 to m of the m discordant items, and their probabilities.

    Exchanging the directions of an item changes nothing unless just one of them is right, so the
    number of items right in understanding only is binomial (m, 1/2).
    """
    # Takes most of a second to import, and who ranks or lists runs needs the formula above alone.
    from scipy import stats

    m = cells.und_only + cells.gen_only
    und_only = np.arange(m + 1)
    counts = np.stack(
        [np.full(m + 1, cells.both), und_only, m - und_only, np.full(m + 1, cells.neither)], axis=1
    )
    weights: Floats = stats.binom.pmf(und_only, m, 0.5)
    return gap(counts), weights


def _at_least(values: Floats, threshold: float) -> int:
    return int(np.count_nonzero(values >= threshold - 1e-12))


def _mean_of(estimates: list[Estimate], draws: list[Floats]) -> Estimate:
    return estimate(float(np.mean([e.value for e in estimates])), np.mean(draws, axis=0))


def _official(
    kept: Mapping[str, Cells], left_out: Mapping[str, int], *, seed: int
) -> tuple[OfficialGap | None, str]:
    """The published fit, or why there is none: it is joint over the rows and needs them all."""
    # torch takes seconds to import, and only this function needs it.
    from gapeval_lab.gap.official import FitError, official_gap

    if left_out:
        return None, f"the published fit needs every category; none is scored in {', '.join(left_out)}"
    try:
        return official_gap(dict(zip(kept, proportions(kept).tolist(), strict=True)), seed=seed), ""
    except FitError as error:
        return None, f"the published fit failed: {error}"
