"""An Outcome as tables. Plain values, and the files that MLflow reads tables from.

Tables are written here and not by MLflow's `log_table`, which appends to a table that is already
there: a run killed while it was logging would have rows twice. The file format is the one that
`mlflow.load_table` reads; a test reads ours with it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gapeval_lab.gap.records import Estimate
from gapeval_lab.outcome import QUALITIES, ItemRow, Outcome

ROUND = 4


SIDES: tuple[Literal["understanding", "generation"], ...] = ("understanding", "generation")
WHATS: tuple[Literal["understanding", "generation", "gap"], ...] = (*SIDES, "gap")


@dataclass(frozen=True)
class Table:
    """Rows under column names. `name` is the file's, without its folder and ending."""

    name: str
    columns: tuple[str, ...]
    rows: list[list[Any]]

    @property
    def path(self) -> str:
        """Where the table lies among a run's artifacts."""
        return f"tables/{self.name}.json"

    def write(self, folder: Path) -> None:
        """Write the table under its path in a folder."""
        file = folder / self.path
        file.parent.mkdir(parents=True, exist_ok=True)
        # No NaN can be written: the browser's JSON parser refuses the whole file for one.
        text = json.dumps({"columns": self.columns, "data": self.rows}, ensure_ascii=False, allow_nan=False)
        file.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Pair:
    """One item before and, where there is one, after."""

    before: ItemRow
    after: ItemRow | None

    @property
    def flipped_image(self) -> bool:
        """True where the verdict on the picture changed."""
        return self.after is not None and self.before.generation != self.after.generation

    @property
    def flipped_text(self) -> bool:
        """True where the verdict on the answer changed."""
        return self.after is not None and self.before.understanding != self.after.understanding

    @property
    def cell(self) -> str:
        """'und only → both', or a single cell where nothing changed or there is no after."""
        old = cell(self.before)
        new = cell(self.after) if self.after else old
        return old if old == new else f"{old} → {new}"


def cell(row: ItemRow) -> str:
    """Where an item stands: both, und only, gen only, neither, or not scored."""
    if row.understanding is None or row.generation is None:
        return "not scored"
    if row.understanding:
        return "both" if row.generation else "und only"
    return "gen only" if row.generation else "neither"


def pairs(outcome: Outcome) -> list[Pair]:
    """Every item of the benchmark, in its order."""
    after = {row.id: row for row in outcome.after.rows} if outcome.after else {}
    return [Pair(row, after.get(row.id)) for row in outcome.before.rows]


def word(correct: bool | None) -> str:
    """A verdict as a word: 'right', 'wrong', 'not scored'."""
    return "not scored" if correct is None else "right" if correct else "wrong"


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, ROUND)


def _leading(value: float | None) -> float | None:
    return None if value is None or value != value else float(f"{value:.{ROUND}g}")


def category_shift(outcome: Outcome) -> Table:
    """Per category: the gap and both accuracies before and after, with intervals and p-values."""
    columns = (
        "category", "shift", "low", "high", "gap_before", "gap_after", "null_gap",
        "und_before", "und_after", "und_p_holm", "gen_before", "gen_after", "gen_p_holm",
        "items", "not_scored", "target",
    )  # fmt: skip
    rows = []
    for name, old in outcome.before.gap.categories.items():
        new = outcome.after.gap.categories.get(name) if outcome.after else None
        moved = outcome.shift.categories.get(name) if outcome.shift else None
        numbers: list[float | None] = [
            moved.gap.value if moved else None,
            moved.gap.low if moved else None,
            moved.gap.high if moved else None,
            old.gap.value,
            new.gap.value if new else None,
            old.null_gap,
            old.understanding.value,
            new.understanding.value if new else None,
            moved.understanding.p_holm if moved else None,
            old.generation.value,
            new.generation.value if new else None,
            moved.generation.p_holm if moved else None,
        ]
        target = "target" if name in outcome.target_categories else ""
        rows.append([name, *map(_number, numbers), old.cells.n, old.cells.unscored, target])
    for name, one in outcome.before.gap.one_sided.items():
        later = outcome.after.gap.one_sided.get(name) if outcome.after else None
        change = outcome.shift.one_sided.get(name) if outcome.shift else None
        none: list[float | None] = [None] * 3
        side = [one.accuracy.value, later.accuracy.value if later else None]
        shown: list[float | None] = [*side, change.accuracy.p_holm if change else None]
        numbers = [*none, *none, *(shown + none if one.direction == "understanding" else none + shown)]
        target = "target" if name in outcome.target_categories else ""
        rows.append([name, *map(_number, numbers), one.n, one.unscored, target])
    return Table("2_category_shift", columns, rows)


def flips(found: Sequence[Pair]) -> Table:
    """The items whose verdict changed in a direction, and how."""
    columns = ("item_id", "outcome", "category", "question", "answer_before", "answer_after", "reference")
    rows = [
        [
            pair.before.id, pair.cell, pair.before.category, pair.before.question,
            pair.before.answer, pair.after.answer if pair.after else None, pair.before.reference,
        ]
        for pair in found
        if pair.flipped_text or pair.flipped_image
    ]  # fmt: skip
    return Table("3_flips", columns, rows)


def items(found: Sequence[Pair]) -> Table:
    """Everything about every item: one row each."""
    columns = (
        "item_id", "outcome", "category", "subcategory", "question", "draw_prompt", "reference",
        "answer_before", "answer_after", "picture_before", "picture_after",
        "understanding_before", "understanding_after", "generation_before", "generation_after",
        "why_understanding", "why_generation",
    )  # fmt: skip
    rows = []
    for pair in found:
        old, new = pair.before, pair.after
        last = new or old
        rows.append(
            [
                old.id, pair.cell, old.category, old.subcategory,
                old.question, old.draw_prompt, old.reference,
                old.answer, new.answer if new else None,
                old.picture, new.picture if new else None,
                word(old.understanding), word(new.understanding) if new else None,
                word(old.generation), word(new.generation) if new else None,
                last.understanding_reason, last.generation_reason,
            ]
        )  # fmt: skip
    return Table("4_items", columns, rows)


def facts(outcome: Outcome) -> Table | None:
    """What became of every fact; None where no fact was measured."""
    if not outcome.quality or not outcome.quality.facts:
        return None
    sides = ("text", "image")
    measures = (*QUALITIES, "logprob_before", "logprob_after")
    columns = ("fact", "edit", *(f"{name}_{side}" for name in measures for side in sides))
    rows = [
        [
            fact.id,
            f"{fact.subject} · {fact.relation}: {fact.target_true} → {fact.target_new}",
            *(_number(getattr(fact, name).get(side)) for name in measures for side in sides),
        ]
        for fact in outcome.quality.facts
    ]
    return Table("5_facts", columns, rows)


def norms(outcome: Outcome) -> Table | None:
    """Of the change of every parameter: Frobenius norm, stable rank, leading singular values.

    None where nothing was changed. Numbers have their leading digits: singular values fall fast.
    """
    if not outcome.delta_norms:
        return None
    stable, spectra = outcome.stable_ranks(), outcome.delta_spectrum
    width = max((len(values) for values in spectra.values()), default=0)
    rows: list[list[Any]] = []
    for name, norm in sorted(outcome.delta_norms.items()):
        values: list[float | None] = [*spectra.get(name, [])]
        values += [None] * (width - len(values))
        rows.append([name, *map(_leading, (norm, stable.get(name), *values))])
    columns = ("parameter", "norm", "stable_rank", *(f"s{n}" for n in range(1, width + 1)))
    return Table("6_delta_norms", columns, rows)


def retention(outcome: Outcome) -> Table | None:
    """What each fact set still holds after each intervention, told and drawn; None where there is one."""
    if not outcome.stages:
        return None
    rows: list[list[Any]] = []
    states = [("before", outcome.kept_before)]
    states += [
        (f"after {number} ({stage.method}, {stage.direction})", stage.kept)
        for number, stage in enumerate(outcome.stages, start=1)
    ]
    for name, kept in states:
        for number, shares in enumerate(kept, start=1):
            told, drawn = shares.get("text"), shares.get("image")
            rows.append(
                [name, f"facts {number}", *(None if s is None else round(s, ROUND) for s in (told, drawn))]
            )
    return Table("7_retention", ("state", "fact set", "told", "drawn"), rows)


def protocols(outcome: Outcome) -> Table | None:
    """Each measure of the drawings by each protocol, with intervals; None where there is one protocol."""
    if not outcome.quality or not outcome.quality.protocols:
        return None
    states = ("before", "after", "over_direct")
    rows: list[list[Any]] = []
    for name in QUALITIES:
        for protocol in outcome.quality.protocols:
            if name in protocol.cells:
                cell = protocol.cells[name]
                found = (cell.before, cell.after, protocol.over_direct.get(name))
                bounds = [(one.value, one.low, one.high) if one else (None,) * 3 for one in found]
                rows.append([name, protocol.name, cell.n, *(_number(x) for three in bounds for x in three)])
    ends = ("", "_low", "_high")
    columns = ("measure", "protocol", "probes", *(f"{state}{end}" for state in states for end in ends))
    return Table("8_protocols", columns, rows)


def reasoned(outcome: Outcome) -> Table | None:
    """What the model wrote about every probe, and what it drew from that; None where it was not asked to."""
    if not outcome.reasoned:
        return None
    protocols = list(outcome.reasoned[0].drawn)
    columns = ("fact", "probe", "state", "written", *(f"verdict_{name}" for name in protocols))
    columns += tuple(f"{what}_{name}" for name in protocols for what in ("prompt", "why", "picture"))
    rows: list[list[Any]] = []
    for row in outcome.reasoned:
        drawn = [row.drawn[name] for name in protocols]
        details = [cell for one in drawn for cell in (one.prompt, one.reason, one.picture)]
        said = [word(one.correct) for one in drawn]
        rows.append([row.fact, row.probe, row.phase, row.written, *said, *details])
    return Table("9_drawn_from_text", columns, rows)


def item_protocols(outcome: Outcome) -> Table | None:
    """The benchmark by each protocol, with intervals; None where the direct way is the only one."""
    if not outcome.protocols:
        return None
    rows: list[list[Any]] = []
    for protocol in outcome.protocols:
        for name, state in (("before", protocol.before), ("after", protocol.after)):
            if state is None:
                continue
            found: list[Estimate | None] = [state.understanding, state.generation, state.gap]
            found += [state.over_direct.get(what) for what in WHATS]
            found += [part.get(side) for part in (state.passed, state.agreement) for side in SIDES]
            bounds = [(one.value, one.low, one.high) if one else (None,) * 3 for one in found]
            counts = (protocol.k, protocol.n, protocol.unscored, state.alone)
            rows.append(
                [protocol.name, protocol.use, name, *counts, *(_number(x) for three in bounds for x in three)]
            )
    groups = (("", WHATS), ("over_direct_", WHATS), ("pass_", SIDES), ("agreement_", SIDES))
    ends = ("", "_low", "_high")
    named = tuple(f"{group}{what}{end}" for group, them in groups for what in them for end in ends)
    columns = ("protocol", "use", "state", "samples", "items", "unscored", "asked_directly", *named)
    return Table("10_item_protocols", columns, rows)


def by_protocol(outcome: Outcome) -> Table | None:
    """Every item as each protocol asked it; None where there is no protocol beside the direct one."""
    if not outcome.protocol_rows:
        return None
    columns = (
        *("item", "direction", "protocol", "state", "asked", "step", "answer", "verdicts", "why"),
        *("step_picture", "picture"),
    )
    rows: list[list[Any]] = [
        [
            *(row.item, row.direction, row.protocol, row.phase, row.asked, row.step, row.answer),
            *(", ".join(word(one) for one in row.correct), row.reason, row.step_picture, row.picture),
        ]
        for row in outcome.protocol_rows
    ]
    return Table("11_items_by_protocol", columns, rows)


def audited(outcome: Outcome) -> Table | None:
    """The gap and its shift by every estimator and constant; None where nothing was audited."""
    if outcome.audit is None:
        return None
    names = list(outcome.audit.variants[0].categories_before)
    columns = ("variant", "family", "before", "after", "shift", "rounding", "low", "high")
    rows: list[list[Any]] = []
    for one in outcome.audit.variants:
        numbers = (one.before, one.after, one.shift, one.band or None, one.low, one.high)
        moves = [one.moved(name) for name in names]
        rows.append([one.name, one.family, *map(_number, numbers), *map(_number, moves)])
    return Table("12_audit", (*columns, *(f"shift_{name}" for name in names)), rows)


def detectable(outcome: Outcome) -> Table | None:
    """The smallest shifts that the run could have told; None where there is no after."""
    found = outcome.detectable
    if found is None:
        return None
    columns = ("category", "gap", "gap_closing", "gap_widening")
    ends = ("", "_items", "_alpha", "_noise", "_noise_from")
    rows: list[list[Any]] = []
    for name, category in found.categories.items():
        row: list[Any] = [name, *map(_number, (category.gap, category.closing, category.widening))]
        for side in (category.understanding, category.generation):
            some = (side.shift, side.n, side.alpha, side.noise, side.source) if side else (None,) * 5
            row += [_number(x) if isinstance(x, float) else x for x in some]
        rows.append(row)
    means = [_number(found.understanding), *[None] * 4, _number(found.generation), *[None] * 4]
    rows.append(["mean", *map(_number, (found.gap, found.closing, found.widening)), *means])
    return Table("13_detectable", (*columns, *(f"{side}{end}" for side in SIDES for end in ends)), rows)


def tables(outcome: Outcome, found: Sequence[Pair]) -> list[Table]:
    """All tables but the pictures', which comes before them."""
    made = [category_shift(outcome)]
    if outcome.after:
        made.append(flips(found))
    made.append(items(found))
    further = (
        *(facts, norms, retention, protocols, reasoned, item_protocols, by_protocol),
        *(audited, detectable),
    )
    return made + [table for one in further if (table := one(outcome))]
