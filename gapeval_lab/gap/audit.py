"""Does a conclusion depend on how the gap is computed? The score by other estimators and constants.

Works from verdicts alone. The published numbers are taken over where a run has them: nothing is fitted
twice. What is compared is the sign of a shift, of the mean and of every category: an estimator of
another scale may differ in size and still say the same.

    ours        the closed form of `score.py`
    published   the authors' fit, with its rounding band (`official.py`)
    converged   the published model, identified and fitted to its optimum (`converged.py`)
    weights     ours with each of 2.7 and 1.05 halved or doubled, or both 0: the signed difference alone
    smoothing   ours with other items added than Jeffreys' half
    weighting   ours of the pooled items, instead of the mean over categories
    unscored    ours between the extremes that all missing verdicts of a direction can give
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gapeval_lab.gap.converged import converge
from gapeval_lab.gap.official_batch import PUBLISHED, FitError
from gapeval_lab.gap.records import CONVERGED, Audit, Dispute, OfficialGap, Variant
from gapeval_lab.gap.score import BOTH_WEIGHT, NEITHER_WEIGHT, Counts, Floats, gap, signed_gap
from gapeval_lab.gap.table import ItemVerdict, cells_of, counts_array, encode

MEAN = "mean"
OURS, OFFICIAL = "ours", "published"
SMALLEST = 5e-4
"""A shift that is 0.000 to three decimals is taken to have no sign."""

STEPS = (500, 2000, 20000)
"""Numbers of steps of the published fit that show how far from its optimum it stops."""

_CONSTANTS: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("weights", "ours with 2.7 halved", {"neither": NEITHER_WEIGHT / 2}),
    ("weights", "ours with 2.7 doubled", {"neither": NEITHER_WEIGHT * 2}),
    ("weights", "ours with 1.05 halved", {"both": BOTH_WEIGHT / 2}),
    ("weights", "ours with 1.05 doubled", {"both": BOTH_WEIGHT * 2}),
    ("weights", "ours with both weights 0", {"neither": 0.0, "both": 0.0}),
    ("smoothing", "ours with smoothing 0.1", {"smoothing": 0.1}),
    ("smoothing", "ours with smoothing 1", {"smoothing": 1.0}),
    ("smoothing", "ours with smoothing 0.000001", {"smoothing": 1e-6}),
)
_COUNTED = ("estimator", "weights", "smoothing", "weighting", "steps")  # families whose sign is a claim


def audit(
    before: Sequence[ItemVerdict],
    after: Sequence[ItemVerdict] | None = None,
    *,
    official_before: OfficialGap | None = None,
    official_after: OfficialGap | None = None,
    seed: int,
    steps: Sequence[int] = (),
) -> Audit | None:
    """Compute the gap in every way, and compare what the ways say.

    Args:
        before, after: verdicts of the same items in the same order.
        official_before, official_after: the published numbers of the two states.
        seed: of the noise behind rounding bands per category, which older records lack.
        steps: fit the published model with so many steps, too; seconds each.

    Returns:
        None where no category has an item scored in both directions, in both states.
    """
    tables = _tables(before, after)
    if not tables:
        return None
    names = list(tables)
    states: list[Counts] = [np.stack(rows) for rows in zip(*tables.values(), strict=True)]
    notes: list[str] = []
    found = [_of(OURS, "estimator", names, [gap(counts) for counts in states])]
    officials = [one for one in (official_before, official_after if after else None) if one is not None]
    if len(officials) == len(states):
        found.append(_published(before, after, officials, names, seed=seed))
        if sum(int(c.sum()) for c in states) < _scored(before) + _scored(after):
            notes.append(
                "The published numbers are of the items scored in each state, all others of those scored in "
                "both states."
            )
    shares: list[Floats] = [counts / counts.sum(axis=1, keepdims=True) for counts in states]
    try:
        optima = [converge(share) for share in shares]
        found.append(_of(CONVERGED, "estimator", names, [optimum.gaps for optimum in optima]))
        pooled = [state for state, one in zip(("before", "after"), optima, strict=False) if one.pooled]
        if pooled:
            notes.append(
                f"{CONVERGED}, {' and '.join(pooled)}: at its optimum the published model no longer lets the "
                "categories differ freely (their covariance becomes singular), so that its gap of a single "
                "category says little."
            )
    except FitError as error:
        notes.append(f"{str(error).capitalize()}.")
    for family, name, constants in _CONSTANTS:
        found.append(_of(name, family, names, [gap(counts, **constants) for counts in states]))
    pool = [float(gap(counts.sum(axis=0))) for counts in states]
    found.append(_with_means("ours with items pooled", "weighting", pool))
    if (missing := _unscored(before, after, names)) is not None:
        found.append(missing[0])
        notes += _turned(found[0], *missing)
    for count in steps:
        found.append(_stepped(count, names, shares))
    if after is None:
        return Audit(found, notes=notes)
    changed = [name for name, rows in tables.items() if (rows[0] != rows[1]).any()]
    still = {name: abs(found[1].moved(name) or 0.0) for name in names if name not in changed}
    if found[1].name == OFFICIAL and still and max(still.values()) > SMALLEST:
        worst = max(still, key=lambda name: still[name])
        notes.append(
            f"The published fit is joint: it moved '{worst}' by {still[worst]:.3f}, though its cells did not "
            "change; that is no finding."
        )
    return _judged(found, changed, notes)


def _tables(
    before: Sequence[ItemVerdict], after: Sequence[ItemVerdict] | None
) -> dict[str, list[NDArray[np.int64]]]:
    """Per category the counts of cells, before and after, of the items scored in every state."""
    states = [encode(before)] + ([encode(after)] if after is not None else [])
    tables = {}
    for name in states[0]:
        codes = [state[name] for state in states]
        scored = np.all([code >= 0 for code in codes], axis=0)
        if scored.any():
            tables[name] = [np.bincount(code[scored], minlength=4) for code in codes]
    return tables


def _of(name: str, family: str, names: Sequence[str], states: Sequence[Floats]) -> Variant:
    """A variant from its gaps per category, in one state or two."""
    parts = [dict(zip(names, gaps.tolist(), strict=True)) for gaps in states]
    variant = _with_means(name, family, [float(gaps.mean()) for gaps in states])
    return replace(variant, categories_before=parts[0], categories_after=parts[1] if len(parts) > 1 else {})


def _with_means(name: str, family: str, means: Sequence[float]) -> Variant:
    after = means[1] if len(means) > 1 else None
    return Variant(
        name,
        family,  # type: ignore[arg-type]
        before=means[0],
        after=after,
        shift=None if after is None else after - means[0],
    )


def _published(
    before: Sequence[ItemVerdict],
    after: Sequence[ItemVerdict] | None,
    officials: Sequence[OfficialGap],
    names: Sequence[str],
    *,
    seed: int,
) -> Variant:
    """The published numbers; a shift is as uncertain as its two ends together."""
    bands = []
    for verdicts, official in zip((before, after), officials, strict=False):
        bands.append(official.bands or _moves(verdicts or (), official, seed=seed))
    parts = [{name: one.gaps[name] for name in names if name in one.gaps} for one in officials]
    return replace(
        _with_means(OFFICIAL, "estimator", [one.mean for one in officials]),
        categories_before=parts[0],
        categories_after=parts[1] if len(parts) > 1 else {},
        band=sum(one.band for one in officials),
        bands={name: sum(band.get(name, 0.0) for band in bands) for name in names},
    )


def _moves(verdicts: Sequence[ItemVerdict], official: OfficialGap, *, seed: int) -> Mapping[str, float]:
    """Rounding bands per category, as `official_gap` measures them."""
    from gapeval_lab.gap.official import rounding_moves  # torch takes seconds to import

    rows = {name: cells_of(codes) for name, codes in encode(verdicts).items()}
    counts = counts_array(rows[name] for name in official.gaps)
    shares: Floats = counts / counts.sum(axis=1, keepdims=True)
    moves = rounding_moves(shares, np.array(list(official.gaps.values())), seed=seed)
    return dict(zip(official.gaps, moves, strict=False))


def _stepped(count: int, names: Sequence[str], shares: Sequence[Floats]) -> Variant:
    """The published fit, stopped elsewhere."""
    from gapeval_lab.gap.official import fit

    settings = replace(PUBLISHED, steps=count)
    return _of(
        f"{OFFICIAL} ({count} steps)", "steps", names, [fit(share, settings=settings) for share in shares]
    )


def _scored(verdicts: Sequence[ItemVerdict] | None) -> int:
    return sum(v.understanding is not None and v.generation is not None for v in verdicts or ())


def _unscored(
    before: Sequence[ItemVerdict], after: Sequence[ItemVerdict] | None, names: Sequence[str]
) -> tuple[Variant, int] | None:
    """Bounds over all missing verdicts of a direction being right, or wrong; and how many items lack one.

    None where none is missing. Where the signed gap changes its sign between two such ways, the gap is
    0 somewhere between them.
    """
    states = [[v for v in state if v.category in names] for state in (before, after) if state is not None]
    lacking = [
        any(v.understanding is None or v.generation is None for v in rows)
        for rows in zip(*states, strict=True)
    ]
    if not any(lacking):
        return None
    ranges = []
    for verdicts in states:
        ways = [
            counts_array(cells_of(codes) for codes in encode(_filled(verdicts, *way)).values())
            for way in itertools.product((True, False), repeat=2)
        ]
        gaps, signs = np.array([gap(w) for w in ways]), np.array([signed_gap(w) for w in ways])
        crosses = (signs.min(axis=0) < 0) & (signs.max(axis=0) > 0)
        ranges.append((np.where(crosses, 0.0, gaps.min(axis=0)), gaps.max(axis=0)))
    (low, high), *rest = ranges
    if rest:
        low, high = rest[0][0] - high, rest[0][1] - low
    bounds = Variant(
        "ours with unscored right or wrong",
        "unscored",
        low=float(low.mean()),
        high=float(high.mean()),
        of="shift" if rest else "gap",
    )
    return bounds, sum(lacking)


def _filled(verdicts: Sequence[ItemVerdict], understanding: bool, generation: bool) -> list[ItemVerdict]:
    return [
        ItemVerdict(
            v.category,
            understanding if v.understanding is None else v.understanding,
            generation if v.generation is None else v.generation,
        )
        for v in verdicts
    ]


def _turned(ours: Variant, bounds: Variant, items: int) -> list[str]:
    """A note where the missing verdicts could turn the sign of the shift."""
    if ours.shift is None or bounds.low is None or bounds.high is None or not _sign(ours.shift):
        return []
    if bounds.low >= 0 or bounds.high <= 0:
        return []
    noun = "item is" if items == 1 else "items are"
    return [
        f"{items} {noun} unscored: were they all right, or all wrong, in a direction, the shift could be "
        f"anything between {bounds.low:+.3f} and {bounds.high:+.3f}.".replace("-", "−")
    ]


def _sign(shift: float, band: float = 0.0) -> int:
    """-1 closed, 1 wider, 0 where the shift is too small to have a sign, or within its rounding."""
    return 0 if abs(shift) <= max(SMALLEST, band) else 1 if shift > 0 else -1


def _judged(found: Sequence[Variant], changed: Sequence[str], notes: list[str]) -> Audit:
    """What the variants say about the mean, and about each category in which an item moved."""
    disputes, unsure = [], []
    for where in (MEAN, *changed) if changed else ():
        signs: dict[str, int] = {}
        for variant in found:
            shift = variant.shift if where == MEAN else variant.moved(where)
            if shift is None or variant.family not in _COUNTED:
                continue
            band = variant.band if where == MEAN else variant.bands.get(where, 0.0)
            signs[variant.name] = _sign(shift, band)
            if variant.name == OFFICIAL and abs(shift) <= band:
                unsure.append(where)
        wider = [name for name, sign in signs.items() if sign > 0]
        closed = [name for name, sign in signs.items() if sign < 0]
        if wider and closed:
            disputes.append(Dispute(where, wider, closed))
    said = "disagree" if disputes else "within rounding" if MEAN in unsure else "agree"
    return Audit(list(found), said, disputes, unsure, notes)  # type: ignore[arg-type]
