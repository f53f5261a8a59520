"""Outcomes as tables that a person reads in a terminal. `*_data` computes plain rows, `draw_*` lays out.

Reads Outcomes only, never a live model.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gapeval_lab.gap.records import DirectionShift, Estimate, GapReport, ShiftReport
from gapeval_lab.outcome import QUALITIES, EditQuality, Emergence, Outcome
from gapeval_lab.repeats import repeats_data
from gapeval_lab.report_audit import draw_detectable, estimators_note, firm
from gapeval_lab.report_cells import MINUS, Row, draw_rows, nats, percent, signed, spread
from gapeval_lab.report_protocols import (
    ITEM_PROTOCOL_COLUMNS,
    PROTOCOL_COLUMNS,
    item_protocol_data,
    item_protocol_note,
    protocol_data,
    protocol_note,
)

SIGNIFICANT = 0.05
NONE = "n/a"
NOTABLE_LOSS = 1e-3  # of a delta, in rounding


def verdict(shift: Estimate) -> str:
    """What the interval of the gap's shift says; a smaller gap is a negative shift."""
    if shift.high < 0:
        return "The gap closed"
    return "The gap widened" if shift.low > 0 else "No change of the gap can be told"


def headline(outcome: Outcome) -> str:
    """The answer in one sentence."""
    before = outcome.before.gap
    if before.gap is None or before.null_gap is None:
        return "No gap can be told: no item is scored in both directions"
    if outcome.after is None or outcome.shift is None:
        return (
            f"Gap Score {spread(before.gap, sign=False)}; a model without a gap would score "
            f"{before.null_gap:.3f} on these items"
        )
    after = outcome.after.gap.gap
    if after is None or outcome.shift.gap is None:
        return "No shift of the gap can be told: no item is scored in both directions, before and after"
    return (
        f"{verdict(outcome.shift.gap)}: {before.gap.value:.3f} before, {after.value:.3f} after, "
        f"shift {spread(outcome.shift.gap)}"
    )


def gap_data(report: GapReport) -> list[Row]:
    """One state, a row per category: items, accuracies, the gap, what chance alone would give."""
    rows = []
    for name, category in report.categories.items():
        cells = category.cells
        rows.append(
            Row(
                _words(name),
                (
                    f"{cells.n}" + (f" (+{cells.unscored} unscored)" if cells.unscored else ""),
                    percent(category.understanding),
                    percent(category.generation),
                    f"{cells.both}/{cells.und_only}/{cells.gen_only}/{cells.neither}",
                    spread(category.gap, sign=False),
                    f"{category.null_gap:.3f}",
                    spread(category.signed_gap),
                ),
            )
        )
    for name, one in report.one_sided.items():
        items = f"{one.n}" + (f" (+{one.unscored} unscored)" if one.unscored else "")
        share, told = percent(one.accuracy), one.direction == "understanding"
        rows.append(Row(_words(name), (items, share if told else NONE, NONE if told else share, *("",) * 4)))
    total = sum(category.cells.n for category in report.categories.values())
    total = total or sum(one.n for one in report.one_sided.values())
    means = (
        *(percent(one) if one else NONE for one in (report.understanding, report.generation)),
        *("", spread(report.gap, sign=False) if report.gap else NONE),
        "" if report.null_gap is None else f"{report.null_gap:.3f}",
    )
    rows.append(Row("mean", (str(total), *means, ""), strong=True))
    return rows


GAP_COLUMNS = (
    "items",
    "understanding",
    "generation",
    "both/und/gen/neither",
    "gap",
    "by chance",
    "signed gap",
)


def shift_data(outcome: Outcome, shift: ShiftReport) -> list[Row]:
    """After minus before, a row per category."""
    rows = []
    after = outcome.after.gap if outcome.after else outcome.before.gap
    for name, category in shift.categories.items():
        was, now = outcome.before.gap.categories[name], after.categories[name]
        rows.append(
            Row(
                _words(name) + (" (edited)" if name in outcome.target_categories else ""),
                (
                    f"{was.gap.value:.3f} → {now.gap.value:.3f}",
                    spread(category.gap),
                    _direction(category.understanding),
                    _direction(category.generation),
                ),
                strong=name in outcome.target_categories,
            )
        )
    for name, one in shift.one_sided.items():
        moved, told = _direction(one.accuracy), one.direction == "understanding"
        label = _words(name) + (" (edited)" if name in outcome.target_categories else "")
        rows.append(Row(label, ("", NONE, moved if told else NONE, NONE if told else moved)))
    first, last = outcome.before.gap.gap, after.gap
    gaps = f"{first.value:.3f} → {last.value:.3f}" if first and last else NONE
    rows.append(Row("mean", (gaps, *_shifts(shift)), strong=True))
    return rows


def _shifts(shift: ShiftReport) -> tuple[str, ...]:
    """The means' shifts: gap, told, drawn."""
    return tuple(spread(one) if one else NONE for one in (shift.gap, shift.understanding, shift.generation))


SHIFT_COLUMNS = ("gap before → after", "shift [95 %]", "understanding", "generation")


def _direction(shift: DirectionShift) -> str:
    """Accuracy's shift, items gained and lost, and a star where Holm's p is under 0.05."""
    star = " *" if shift.p_holm < SIGNIFICANT else ""
    return f"{signed(shift.shift.value)} (+{shift.gained} {MINUS}{shift.lost}){star}"


def control_data(outcome: Outcome) -> list[Row]:
    """The controls beside the edit."""
    rows = []
    for name, shift in (
        ("identity: a delta of zero", outcome.identity_shift),
        ("placebo: random, same norm", outcome.placebo_shift),
    ):
        if shift is not None:
            rows.append(
                Row(
                    name,
                    (*_shifts(shift), str(shift.changed_items)),
                )
            )
    return rows


CONTROL_COLUMNS = ("gap shift", "understanding", "generation", "items changed")


def quality_data(quality: EditQuality) -> list[Row]:
    """Edit quality, text and image apart."""
    rows = []
    for name in QUALITIES:
        cells = getattr(quality, name)
        for side in ("text", "image"):
            if side in cells:
                cell = cells[side]
                rows.append(Row(f"{name}/{side}", (str(cell.n), percent(cell.before), percent(cell.after))))
    for side, cell in quality.target_logprob.items():
        rows.append(
            Row(f"log p(target)/{side}", (str(cell.n), nats(cell.before.value), nats(cell.after.value)))
        )
    return rows


QUALITY_COLUMNS = ("probes", "before", "after")


def told_and_drawn(shares: Mapping[Literal["text", "image"], float | None]) -> str:
    """Both sides' shares in one cell."""
    sides = (shares.get("text"), shares.get("image"))
    return " / ".join("n/a" if share is None else f"{100 * share:.0f} %" for share in sides)


def written_data(emergence: Emergence) -> list[Row]:
    """What facts written one after the other still hold, told / drawn, and the gap of the subset."""
    return [
        Row(
            f"after {point.step}",
            (
                told_and_drawn(point.reliability),
                told_and_drawn(point.locality),
                "n/a" if point.gap is None else f"{point.gap:.3f}",
            ),
        )
        for point in emergence.points
    ]


WRITTEN_COLUMNS = ("reliability", "locality", "gap of a subset")


def emergence_data(emergence: Emergence) -> list[Row]:
    """When each direction crossed each level, in updates; a curve that never did shows where it ended."""
    ends = {"text": emergence.points[-1].text, "image": emergence.points[-1].image}
    rows = []
    for side, crossed in emergence.crossings.items():
        end = ends[side]
        cells = ["never" if step is None else f"{step:.1f}" for step in crossed.values()]
        rows.append(Row(side, (*cells, "n/a" if end is None else f"{100 * end:.0f} %")))
    lags = ["n/a" if lag is None else signed(lag) for lag in emergence.lag.values()]
    rows.append(Row("lag, image after text", (*lags, "")))
    return rows


EMERGENCE_COLUMNS = ("50 % after", "90 % after", "in the end")


def retention_data(outcome: Outcome) -> list[Row]:
    """Share of each fact set that is right in each state, told / drawn."""
    rows = [Row("before", tuple(told_and_drawn(shares) for shares in outcome.kept_before))]
    for number, stage in enumerate(outcome.stages, start=1):
        label = f"after {number}: {stage.method}, {stage.direction}"
        rows.append(Row(label, tuple(told_and_drawn(shares) for shares in stage.kept)))
    return rows


def draw_repeats(outcomes: Sequence[Outcome]) -> Table:
    """Runs of one recipe with several seeds: means with intervals over seeds."""
    rows = [
        Row(name, (_over_seeds(name, estimate, runs), str(runs)))
        for name, estimate, runs in repeats_data(outcomes)
    ]
    return draw_rows(f"Over {len(outcomes)} seeds", ("mean [95 %]", "runs"), rows)


SHIFTS = ("gap shift", "understanding shift", "generation shift", "lag at ")


def _over_seeds(name: str, estimate: Estimate, runs: int) -> str:
    sign = name.startswith(SHIFTS) or name.endswith(" over direct")
    if runs > 1:
        return spread(estimate, sign=sign)
    return signed(estimate.value) if sign else f"{estimate.value:.3f}"


def draw_outcome(outcome: Outcome) -> Group:
    """Everything that a person wants to see at the end of a run."""
    parts: list[Table | Text | Group] = [Text(headline(outcome), style="bold")]
    if warning := estimators_note(outcome):
        parts.append(Text(warning, style="yellow" if firm(outcome) else "dim"))
    parts.append(Text())
    if outcome.after is None or outcome.shift is None:
        parts.append(draw_rows("Both directions", GAP_COLUMNS, gap_data(outcome.before.gap)))
    else:
        parts.append(draw_rows("What shifted", SHIFT_COLUMNS, shift_data(outcome, outcome.shift)))
        parts.append(Text("* Holm-corrected exact McNemar p < 0.05; (+gained −lost items)", style="dim"))
        parts.append(Text())
        parts.append(draw_rows("Controls", CONTROL_COLUMNS, control_data(outcome)))
        if outcome.detectable is not None:
            parts += [Text(), draw_detectable(outcome)]
    if outcome.quality is not None:
        parts += [Text(), draw_rows("Edit quality", QUALITY_COLUMNS, quality_data(outcome.quality))]
        ratio = outcome.quality.transfer_ratio
        said = spread(ratio, sign=False) if ratio else outcome.quality.transfer_note
        parts.append(Text(f"transfer ratio: {said}"))
        if outcome.quality.protocols:
            rows = protocol_data(outcome.quality)
            title = "Drawn directly, and from what the model wrote first"
            parts += [Text(), draw_rows(title, PROTOCOL_COLUMNS, rows)]
            if note := protocol_note(outcome.quality):
                parts.append(Text(note, style="dim"))
    if outcome.protocols:
        rows = item_protocol_data(outcome)
        parts += [Text(), draw_rows("Asked in other ways", ITEM_PROTOCOL_COLUMNS, rows)]
        if note := item_protocol_note(outcome):
            parts.append(Text(note, style="dim"))
    for name, emergence in outcome.trainings().items():
        number = name.partition("/")[2]
        later = f", intervention {number}" if number else ""
        if emergence.unit == "facts":
            title = f"Facts written one after the other, told / drawn{later}"
            table = draw_rows(title, WRITTEN_COLUMNS, written_data(emergence))
        else:
            title = f"When the facts were learned, in updates{later}"
            table = draw_rows(title, EMERGENCE_COLUMNS, emergence_data(emergence))
        parts += [Text(), table]
    if outcome.stages:
        columns = [f"facts {number}" for number in range(1, len(outcome.stages) + 1)]
        title = "What each fact set still holds, told / drawn"
        parts += [Text(), draw_rows(title, columns, retention_data(outcome))]
    parts += [Text(), Text(closing(outcome), style="dim")]
    return Group(*parts)


def closing(outcome: Outcome) -> str:
    """Provenance in a line or two: the official score, the revert, time and memory."""
    lines = []
    before, after = outcome.before.gap.official, outcome.after.gap.official if outcome.after else None
    if before is not None:
        shown = f"published estimator: {before.mean:.3f}"
        if after is not None:
            shown += f" before, {after.mean:.3f} after"
        lines.append(f"{shown} (moves by {before.band:.3f} when its input moves by 0.000001)")
    if outcome.reverted is not None:
        lines.append(
            f"weights restored: {'yes, to the bit' if outcome.reverted else 'NO'} "
            f"(fingerprint {outcome.weights_fingerprint[:12]})"
        )
    if outcome.merge_error is not None and outcome.merge_error > NOTABLE_LOSS:
        lines.append(
            f"rounding to the weights' type lost {100 * outcome.merge_error:.1f} % of the delta: merged "
            "answers may differ from an adapter's"
        )
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in outcome.seconds.items())
    lines.append(f"seconds: {spent}; peak memory {outcome.peak_memory_gib:.2f} GiB")
    return "\n".join(lines)


def _words(name: str) -> str:
    return name.replace("_", " ")
