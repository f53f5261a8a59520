"""An Outcome as metrics without steps. Plain values: knows nothing of MLflow's client.

The order of `scalars` is the order in which MLflow shows metrics; the first one is what its compare
page opens with. Whatever is finer than about 60 numbers belongs in tables. Names and roundings of what
a search reports on its way are the same, so the parts are functions of their own.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from statistics import fmean

from gapeval_lab.gap.records import CONVERGED, Estimate, GapReport, OfficialGap, ShiftReport
from gapeval_lab.outcome import QUALITIES, EditQuality, Outcome, ProtocolResult, QualityCell
from gapeval_lab.tracking_values import clean_key

MANY_CATEGORIES = 6  # above it, intervals per category are left to the table


def delta_norms(norms: Mapping[str, float]) -> dict[str, float]:
    """Norms per site: 'model.layers.2.mlp.down_proj.weight' counts for 'mlp.down_proj'.

    Layers are taken together (root of the sum of squares); every single one stands in a table.
    """
    squares: dict[str, float] = defaultdict(float)
    for name, norm in norms.items():
        words = [word for word in name.split(".") if not word.isdigit() and word not in ("weight", "bias")]
        squares[clean_key(".".join(words[-2:]))] += norm**2
    return {site: math.sqrt(square) for site, square in squares.items()}


def scalars(outcome: Outcome) -> dict[str, float]:
    """Metrics without steps, in the order in which they are to be shown, rounded to 4 decimals."""
    return rounded(unrounded(outcome))


def unrounded(outcome: Outcome) -> dict[str, float | None]:
    """`scalars` with all their digits; None where there is no value."""
    before, after, shift = outcome.before.gap, outcome.after, outcome.shift
    found: dict[str, float | None] = dict(
        gap_scalars(before, after.gap if after else None, shift, targets=outcome.target_categories)
    )
    if outcome.quality:
        found |= quality_scalars(outcome.quality)
    for protocol in outcome.protocols:
        found |= protocol_scalars(protocol)
    if outcome.placebo:
        found["placebo/gap_score"] = _value(outcome.placebo.gap.gap)
    for control, control_shift in (("placebo", outcome.placebo_shift), ("identity", outcome.identity_shift)):
        if control_shift:
            found[f"{control}/delta_gap_score"] = _value(control_shift.gap)
    found |= _official(before.official, after.gap.official if after else None)
    found |= _audited(outcome)
    found["merge_error"] = outcome.merge_error
    for family, emergence in outcome.trainings().items():
        for side, levels in emergence.crossings.items():
            found |= {f"{family}/crosses_{level}/{side}": step for level, step in levels.items()}
        found |= {f"{family}/lag_{level}": lag for level, lag in emergence.lag.items()}
    if outcome.delta_norms:
        found["delta_norm/total"] = outcome.delta_norm()
    found |= {f"delta_norm/{site}": norm for site, norm in delta_norms(outcome.delta_norms).items()}
    if ranks := outcome.stable_ranks():
        found["delta_rank/stable_mean"] = fmean(ranks.values())
    if outcome.after:
        found["cost/seconds"] = sum(s for phase, s in outcome.seconds.items() if phase.startswith("fit"))
    found |= {f"time/{phase}": seconds for phase, seconds in outcome.seconds.items()}
    found["memory/peak_gib"] = outcome.peak_memory_gib
    return found


def gap_scalars(
    before: GapReport, after: GapReport | None, shift: ShiftReport | None, *, targets: Collection[str]
) -> dict[str, float | None]:
    """The gap and both accuracies: before, after and shifted, with the shifts' intervals.

    Args:
        before, after, shift: of the same items.
        targets: the categories that the facts belong to.
    """
    categories = list(before.categories)
    found: dict[str, float | None] = {
        "delta/gap_score": _value(shift.gap) if shift else None,
        "before/gap_score": _value(before.gap),
        "after/gap_score": _value(after.gap) if after else None,
    }
    if before.gap is None:  # accuracies stand in the place of the gap where there is one direction alone
        found |= {"before/understanding": _value(before.understanding)}
        found |= {"before/generation": _value(before.generation)}
        if after:
            found |= {"after/understanding": _value(after.understanding)}
            found |= {"after/generation": _value(after.generation)}
        for state, report in (("before", before), ("after", after)):
            if report:
                found |= {f"{state}/{name}": one.accuracy.value for name, one in report.one_sided.items()}
    if shift:
        on = [c.gap.value for name, c in shift.categories.items() if name in targets]
        off = [c.gap.value for name, c in shift.categories.items() if name not in targets]
        found["delta/on_target"] = fmean(on) if on else None
        found["delta/off_target"] = fmean(off) if off else None
    for name in categories:
        if shift and name in shift.categories:
            found[f"delta/{name}"] = shift.categories[name].gap.value
        found[f"before/{name}"] = before.categories[name].gap.value
        if after and name in after.categories:
            found[f"after/{name}"] = after.categories[name].gap.value
    if shift:
        found["delta/understanding"] = _value(shift.understanding)
        found["delta/generation"] = _value(shift.generation)
        found |= {f"delta/{name}": one.accuracy.shift.value for name, one in shift.one_sided.items()}
        intervals = {
            "gap_score": shift.gap,
            "understanding": shift.understanding,
            "generation": shift.generation,
        }
        if len(categories) <= MANY_CATEGORIES:
            intervals |= {name: category.gap for name, category in shift.categories.items()}
        for name, estimate in intervals.items():
            if estimate is not None:
                found[f"low/{name}"] = estimate.low
                found[f"high/{name}"] = estimate.high
    return found


def quality_scalars(quality: EditQuality) -> dict[str, float | None]:
    """Edit quality after the edit, told and drawn apart."""
    found: dict[str, float | None] = {}
    for name in (*QUALITIES, "target_logprob"):
        cells: Mapping[str, QualityCell] = getattr(quality, name)
        found |= {f"edit/{name}/{side}": cell.after.value for side, cell in cells.items()}
    for protocol in quality.protocols[1:]:  # drawing directly is `image`; intervals stand in a table
        found |= {f"edit/{name}/{protocol.name}": cell.after.value for name, cell in protocol.cells.items()}
        over = protocol.over_direct.get("reliability")
        found[f"edit/over_direct/{protocol.name}"] = over.value if over else None
    found["edit/locality_pixel_distance"] = quality.locality_pixel_distance
    found["edit/transfer_ratio"] = quality.transfer_ratio.value if quality.transfer_ratio else None
    return found


def protocol_scalars(protocol: ProtocolResult) -> dict[str, float | None]:
    """One protocol's last state and shift; intervals, and the state before, stand in a table."""
    now, name = protocol.after or protocol.before, f"protocol/{protocol.name}"
    gap, told, drawn = now.gap, now.understanding, now.generation
    found = {
        f"{name}/gap_score": gap.value if gap else None,
        f"{name}/understanding": told.value if told else None,
        f"{name}/generation": drawn.value if drawn else None,
    }
    found |= {f"{name}/pass_{side}": share.value for side, share in now.passed.items()}
    found |= {f"{name}/agreement_{side}": share.value for side, share in now.agreement.items()}
    return found | {f"{name}/delta_{what}": shift.value for what, shift in protocol.shift.items()}


def _official(before: OfficialGap | None, after: OfficialGap | None) -> dict[str, float | None]:
    bands = [report.band for report in (before, after) if report]
    return {
        "official/before": before.mean if before else None,
        "official/after": after.mean if after else None,
        "official/rounding_band": max(bands) if bands else None,
    }


def _audited(outcome: Outcome) -> dict[str, float | None]:
    """The shift by the converged estimator, the range over all ways of computing it, what could be told."""
    found: dict[str, float | None] = {}
    if outcome.audit is not None:
        shifts = {one.name: one.shift for one in outcome.audit.variants if one.shift is not None}
        if shifts:
            found["audit/converged"] = shifts.get(CONVERGED)
            found["audit/lowest"], found["audit/highest"] = min(shifts.values()), max(shifts.values())
    if outcome.detectable is not None:
        found["detectable/gap_score"] = outcome.detectable.gap
        found["detectable/understanding"] = outcome.detectable.understanding
        found["detectable/generation"] = outcome.detectable.generation
    return found


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def rounded(found: Mapping[str, float | None]) -> dict[str, float]:
    """What can be logged of it: without what is missing or not finite, to 4 decimals."""
    return {
        clean_key(key): round(float(value), 4)
        for key, value in found.items()
        if value is not None and math.isfinite(value)
    }
