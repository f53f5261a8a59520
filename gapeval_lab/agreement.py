"""How far judges agree beyond chance: per cent, Cohen's kappa for two, Fleiss' for more, with intervals.

Knows verdicts as right, wrong and None; knows no judges. Items are resampled, not judges.

    two judges    observed p_o = share of items on which both say the same; expected
                  p_e = p_1 p_2 + (1 - p_1)(1 - p_2) from their shares of "right" (Cohen 1960)
    r judges      p_o = mean over items of the share of agreeing pairs of judges; with p the share of
                  "right" among all verdicts, p_e = p^2 + (1 - p)^2 (Fleiss 1971)
    kappa         (p_o - p_e) / (1 - p_e); not defined where p_e = 1
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.gap.records import Estimate
from gapeval_lab.gap.resample import bootstrap, estimate, stream
from gapeval_lab.items import Direction, Item, Response, Verdict

REPLICATES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How far judges agree on some items.

    Attributes:
        n: items that all of them scored; unscored: those that one or more did not, left out.
        percent: agreeing pairs of judges, as a share from 0 to 1; None where n is 0.
        kappa: None where n is 0, or where one verdict is the only one ever given. Its interval is over
            the resamples in which it is defined.
        kind: which kappa.
    """

    n: int
    unscored: int
    percent: Estimate | None
    kappa: Estimate | None
    kind: str


def agreement(votes: Sequence[Sequence[bool | None]], *, seed: int = 0, name: str = "") -> Agreement:
    """Agreement of two or more judges.

    Args:
        votes: one sequence per judge, of the same items in the same order.
        seed, name: of the resampling.

    Raises:
        ValueError: fewer than two judges, or sequences of different lengths.
    """
    if len(votes) < 2 or len({len(one) for one in votes}) != 1:
        raise ValueError("agreement is of two or more judges on the same items")
    pair = len(votes) == 2
    kind = "cohen" if pair else "fleiss"
    scored = [row for row in zip(*votes, strict=True) if None not in row]
    unscored = len(votes[0]) - len(scored)
    if not scored:
        return Agreement(0, unscored, None, None, kind)
    if pair:  # cells: neither says right, the second, the first, both
        codes = [2 * bool(first) + bool(second) for first, second in scored]
        counts, measure = np.bincount(codes, minlength=4), _cohen
    else:  # cells: how many of the judges say right
        counts, measure = (
            np.bincount([sum(map(bool, row)) for row in scored], minlength=len(votes) + 1),
            _fleiss,
        )
    draws = bootstrap(counts, rng=stream(seed, "agreement", name), replicates=REPLICATES)
    share, kappa = measure(np.concatenate([counts[None], draws]).astype(float))
    defined = kappa[1:][~np.isnan(kappa[1:])]
    return Agreement(
        n=len(scored),
        unscored=unscored,
        percent=estimate(float(share[0]), share[1:]),
        kappa=None if np.isnan(kappa[0]) or not len(defined) else estimate(float(kappa[0]), defined),
        kind=kind,
    )


def agreement_table(
    pairs: Sequence[tuple[Item, Response]], votes: Mapping[str, Sequence[Verdict]], *, seed: int = 0
) -> dict[str, Agreement]:
    """Agreement per direction, and per direction and category: "generation", "generation/reasoning".

    Args:
        pairs: what was judged.
        votes: judge -> one verdict per pair.
        seed: of the resampling.
    """
    groups: dict[str, list[int]] = {}
    for direction in Direction:
        for index, (item, response) in enumerate(pairs):
            if response.direction is direction:
                groups.setdefault(str(direction), []).append(index)
                groups.setdefault(f"{direction}/{item.category}", []).append(index)
    return {
        name: agreement(
            [[cast[index].correct for index in members] for cast in votes.values()], seed=seed, name=name
        )
        for name, members in groups.items()
    }


def _cohen(counts: Floats) -> tuple[Floats, Floats]:
    """Observed agreement and kappa of (rows, 4) counts."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    first, second = shares[:, 2] + shares[:, 3], shares[:, 1] + shares[:, 3]
    return _kappa(shares[:, 0] + shares[:, 3], first * second + (1 - first) * (1 - second))


def _fleiss(counts: Floats) -> tuple[Floats, Floats]:
    """Observed agreement and kappa of (rows, r + 1) counts of items by the number that say right."""
    r = counts.shape[1] - 1
    right = np.arange(r + 1)
    agreeing = (right * (right - 1) + (r - right) * (r - right - 1)) / (r * (r - 1))
    shares = counts / counts.sum(axis=1, keepdims=True)
    p = shares @ right / r
    return _kappa(shares @ agreeing, p**2 + (1 - p) ** 2)


def _kappa(observed: Floats, expected: Floats) -> tuple[Floats, Floats]:
    rest = 1 - expected
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = np.where(rest > 1e-12, (observed - expected) / rest, np.nan)
    return observed, kappa
