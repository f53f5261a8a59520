"""Sections of a run's page about the facts: edit quality, what each became, drawn from what was written."""

from gapeval_lab.outcome import QUALITIES, ReasonedRow
from gapeval_lab.pages.figures import draw_states, quality_data
from gapeval_lab.pages.numbers import Numbers, joined, marked
from gapeval_lab.pages.parts import Block, Drawing, Fold, Line, Note, Section, Table, Words
from gapeval_lab.pages.run_gap import arrow
from gapeval_lab.pages.svg import inline
from gapeval_lab.report import NONE
from gapeval_lab.report_cells import nats
from gapeval_lab.report_protocols import item_protocol_note, protocol_note
from gapeval_lab.tracking_tables import SIDES as SCORED
from gapeval_lab.tracking_tables import WHATS, word

SIDES = {"text": "told", "image": "drawn"}
WORDS = {"text": "the told side", "image": "the drawn side", "both": "both sides"}
MOST_ROWS = 400  # of a table with a row per item or probe


def edit(numbers: Numbers) -> Section | None:
    """Edit quality two by two, the transfer ratio, and every fact."""
    outcome = numbers.outcome
    quality = outcome.quality
    if quality is None:
        return None
    blocks: list[Block] = []
    if found := quality_data(outcome):
        figure = inline(draw_states(found, xlabel="share of probes passed (0 to 1)"), name="fig-quality")
        alt = "Share of probes passed before and after, told and drawn. The numbers stand in the table below."
        blocks.append(Drawing(figure, "Edit quality, 95 % intervals", alt))
    lines = []
    for name in QUALITIES:
        cells: list[Words] = []
        for side in SIDES:
            at = ("quality", name, side)
            there = numbers.at(*at) is not None
            shares = [numbers.percents(*at, state) for state in ("before", "after")]
            cells += [*shares, numbers.count(*at, "n")] if there else [NONE, "", ""]
        lines.append(Line(name, tuple(cells)))
    logprob: list[Words] = []
    for side in SIDES:
        at = ("quality", "target_logprob", side)
        means = [numbers.one(*at, state, "value", write=nats) for state in ("before", "after")]
        logprob += [*means, numbers.count(*at, "n")] if numbers.at(*at) is not None else [NONE, "", ""]
    lines.append(Line("log p of the target", tuple(logprob)))
    how = (
        "Reliability: the edited question itself; generalisation: other wordings; portability: questions "
        "that follow from the fact; locality: neighbouring facts whose answers must not change. "
        "Intervals count facts, not probes. Log p: natural logarithm of the new answer's probability."
    )
    columns = [f"{side}, {what}" for side in SIDES.values() for what in ("before", "after", "probes")]
    blocks.append(Table("Edit quality", columns, lines, how=how))
    blocks.append(Note(_transfer(numbers)))
    if quality.locality_pixel_distance is not None:
        distance = numbers.one("quality", "locality_pixel_distance")
        words = joined(
            "Pictures of neighbouring facts changed by ", distance, " per pixel on average (0 to 1)."
        )
        blocks.append(Note(words, "quiet"))
    if quality.facts:
        blocks.append(Fold(f"Every fact ({len(quality.facts)})", [_facts(numbers)]))
    return Section("edit", "What became of the edited facts", "Edit quality", blocks)


def _transfer(numbers: Numbers) -> Words:
    quality = numbers.outcome.quality
    assert quality is not None
    note = f" {quality.transfer_note}." if quality.transfer_note else ""
    if quality.transfer_ratio is None:
        return f"Transfer ratio: not defined.{note}"
    ratio = numbers.spread("quality", "transfer_ratio", sign=False)
    return joined(
        "Transfer ratio: ", ratio, f". The intervention was given {WORDS[numbers.outcome.direction]}; the "
        "ratio is what the other side gained over what that one gained. 1: all came across, 0: nothing.", note
    )  # fmt: skip


def _facts(numbers: Numbers) -> Table:
    quality = numbers.outcome.quality
    assert quality is not None
    lines = []
    for place, fact in enumerate(quality.facts):
        at = ("quality", "facts", place)
        cells: list[Words] = [f"{fact.subject}, {fact.relation}: {fact.target_true} → {fact.target_new}"]
        for name in QUALITIES:
            cells.append(
                joined(numbers.percent(*at, name, "text"), " / ", numbers.percent(*at, name, "image"))
            )
        for side in SIDES:
            was, now = (numbers.one(*at, f"logprob_{when}", side, write=nats) for when in ("before", "after"))
            cells.append(NONE if (was, now) == (NONE, NONE) else arrow(was, now))
        lines.append(Line(fact.id, tuple(cells)))
    columns = ["edit", *QUALITIES, "log p, told", "log p, drawn"]
    how = "Share of the fact's probes passed after the intervention, told / drawn."
    return Table("Every fact", columns, lines, how=how, corner="fact", words=True)


def protocols(numbers: Numbers) -> Section | None:
    """Facts drawn from what was written first, and items asked in other ways."""
    outcome, blocks = numbers.outcome, list[Block]()
    quality = outcome.quality
    if quality is not None and quality.protocols:
        lines = [
            Line(
                f"{name}, {protocol.name}",
                (
                    numbers.count(*at, "cells", name, "n"),
                    numbers.percents(*at, "cells", name, "before"),
                    numbers.percents(*at, "cells", name, "after"),
                    numbers.spread(*at, "over_direct", name) if name in protocol.over_direct else "",
                ),
            )
            for name in QUALITIES
            for place, protocol in enumerate(quality.protocols)
            for at in [("quality", "protocols", place)]
            if name in protocol.cells
        ]
        columns = ["probes", "before", "after", "after, over direct"]
        how = "Drawn at once, and after the model wrote what it knows. Over direct: gained by writing first."
        blocks.append(Table("Facts drawn directly, and from what the model wrote", columns, lines, how=how))
        if note := protocol_note(quality):
            left = [place for place, one in enumerate(quality.protocols) if one.unwritten]
            counts = [numbers.count("quality", "protocols", place, "unwritten") for place in left]
            blocks.append(Note(marked(note, *counts), "quiet"))
    if outcome.protocols:
        blocks.append(_item_protocols(numbers))
        if note := item_protocol_note(outcome):
            last = [
                (place, "after" if one.after else "before") for place, one in enumerate(outcome.protocols)
            ]
            alone = [
                numbers.count("protocols", place, now, "alone")
                for place, now in last
                if numbers.at("protocols", place, now, "alone")
            ]
            blocks.append(Note(marked(note, *alone), "quiet"))
    if outcome.reasoned:
        blocks.append(Fold(f"What the model wrote ({len(outcome.reasoned)} texts)", _reasoned(numbers)))
    if outcome.protocol_rows:
        blocks.append(Fold(f"Item by item ({len(outcome.protocol_rows)} rows)", _item_rows(numbers)))
    return Section("protocols", "Asked in other ways", "Other ways", blocks) if blocks else None


def _item_protocols(numbers: Numbers) -> Table:
    lines = []
    for place, protocol in enumerate(numbers.outcome.protocols):
        at = ("protocols", place)
        now = "after" if protocol.after else "before"
        unscored = joined(" (+", numbers.count(*at, "unscored"), " not scored)") if protocol.unscored else ""
        items = joined(numbers.count(*at, "n"), unscored)
        lines.append(
            Line(
                protocol.name if protocol.k == 1 else f"{protocol.name}, mean of {protocol.k}",
                (
                    items,
                    *(numbers.percents(*at, now, side) for side in SCORED),
                    numbers.spread(*at, now, "gap", sign=False),
                    *(numbers.spread(*at, now, "over_direct", what) for what in WHATS),
                    *(numbers.spread(*at, "shift", what) for what in WHATS),
                ),
            )
        )
        for kind, words in (("passed", f"pass@{protocol.k}"), ("agreement", "agrees with the judge")):
            if numbers.at(*at, now, kind):
                shares = [numbers.percents(*at, now, kind, side) for side in SCORED]
                lines.append(
                    Line(
                        f"{protocol.name}, {words}", (items if kind == "passed" else "", *shares, *("",) * 7)
                    )
                )
    columns = ["items", "told", "drawn", "gap"]
    columns += [f"{what}, {kind}" for kind in ("over direct", "shift") for what in ("told", "drawn", "gap")]
    how = "The same items, as the model is in the end. Over direct: minus what asking directly gives."
    return Table("The benchmark asked in other ways", columns, lines, how=how, corner="way")


def _reasoned(numbers: Numbers) -> list[Block]:
    rows = numbers.outcome.reasoned
    names = list(rows[0].drawn)
    lines = [
        Line(row.probe, (row.phase, row.written, *(_verdict(row, name) for name in names)))
        for row in rows[:MOST_ROWS]
    ]
    table = Table(
        "What the model wrote, and what it drew",
        ["state", "wrote", *names],
        lines,
        corner="probe",
        words=True,
    )
    return [table, *_cut(len(rows))]


def _verdict(row: ReasonedRow, protocol: str) -> str:
    return word(row.drawn[protocol].correct) if protocol in row.drawn else NONE


def _item_rows(numbers: Numbers) -> list[Block]:
    rows = numbers.outcome.protocol_rows
    sides = {"understanding": "told", "generation": "drawn"}
    lines = [
        Line(
            row.item,
            (
                row.protocol,
                row.phase,
                sides[row.direction],
                row.step,
                row.answer or "",
                ", ".join(word(one) for one in row.correct),
            ),
        )
        for row in rows[:MOST_ROWS]
    ]
    columns = ["way", "state", "direction", "on the way", "answer", "verdict"]
    return [Table("Item by item", columns, lines, corner="item", words=True), *_cut(len(rows))]


def _cut(rows: int) -> list[Block]:
    if rows <= MOST_ROWS:
        return []
    return [Note(f"The first {MOST_ROWS} of {rows} rows; all stand in outcome.json.", "quiet")]
