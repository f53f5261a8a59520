"""A finished run judged again by another judge: verdicts, Gap Scores and what flips, beside the old ones.

Asks no model. Nothing of the run is changed; the new score is a file of its own in the run's folder,
`scores/<judge>-<hash>.json`, and the same judge writes the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from gapeval_lab import __version__
from gapeval_lab.agreement import Agreement, agreement_table
from gapeval_lab.errors import UserError
from gapeval_lab.files import write_text
from gapeval_lab.gap.one_sided import state_report, state_shift
from gapeval_lab.gap.records import GapReport, ShiftReport
from gapeval_lab.gap.table import ItemVerdict
from gapeval_lab.interfaces import Judge, Voting
from gapeval_lab.items import Direction, Item, Response, Verdict
from gapeval_lab.labels import answer_hash
from gapeval_lab.outcome import ItemRow, Phase, PhaseResult
from gapeval_lab.stored_runs import StoredRun

Pair = tuple[Item, Response]
Key = tuple[str, Direction]
OLD, NEW = "old judge", "new judge"


@dataclass(frozen=True)
class Flip:
    """An answer on which the two judges differ; None is not scored."""

    item: str
    category: str
    direction: Direction
    old: bool | None
    new: bool | None
    reason: str


@dataclass(frozen=True)
class PhaseScore:
    """One phase by the new judge.

    Attributes:
        gap: None where no item is scored in both directions; `note` says so.
        verdicts: of every answer.
        agreement: old judge with new, see `agreement_table`.
        voices: of the new judge's voices with each other, where it has several.
        flips: right by one and wrong by the other. apart: not scored by just one of the two.
    """

    gap: GapReport | None
    note: str
    verdicts: list[Verdict]
    agreement: dict[str, Agreement]
    voices: dict[str, Agreement]
    flips: list[Flip]
    apart: list[Flip]


@dataclass(frozen=True)
class Score:
    """A run by a new judge. `shifts` are against `before`, by phase; None where nothing can be told.

    `corrected` holds the rows of rescoring_corrected.py as plain values, where a calibration was given.
    """

    run_id: str
    judge: str
    node: dict[str, Any]
    settings: dict[str, Any]
    hash: str
    phases: dict[Phase, PhaseScore]
    shifts: dict[Phase, ShiftReport | None] = field(default_factory=dict)
    corrected: list[dict[str, Any]] = field(default_factory=list)

    @property
    def file(self) -> str:
        """Where it lies, relative to the run's folder."""
        return f"scores/{self.judge}-{self.hash}.json"

    def save(self, folder: Path) -> Path:
        """Write it into the run's folder, atomically."""
        path = folder / self.file
        content = {"schema_version": 1, "gapeval_lab": __version__, **asdict(self)}
        write_text(path, json.dumps(content, indent=1, default=str))
        return path


def distinct(run: StoredRun) -> list[Pair]:
    """Every answer of a run once, however many phases gave it: what a judge has to look at.

    Raises:
        UserError: the run has no answers, or lost pictures.
    """
    found: dict[str | None, Pair] = {}
    for phase in run.phases:
        for item, response in run.pairs(phase):
            try:
                found.setdefault(answer_hash(item, response), (item, response))
            except OSError as error:
                raise UserError(
                    f"run: {run.outcome.run_id} has a picture that cannot be read (item {item.id}: {error}); "
                    "bring it back, or name another run"
                ) from None
    if not found:
        raise UserError(f"run: {run.outcome.run_id} holds no answers; name another run")
    return list(found.values())


def rescore(run: StoredRun, judge: Judge, *, name: str, node: Mapping[str, Any]) -> Score:
    """Judge every answer of a run anew.

    Args:
        run: from `open_run`.
        judge: asked once, about every distinct answer.
        name: what the judge is called in the file's name and in tables.
        node: the judge as a recipe would have it.

    Raises:
        UserError: the run has no answers, or lost pictures.
    """
    pairs = distinct(run)
    votes = judge.votes(pairs) if isinstance(judge, Voting) else {}
    said = judge.decide(votes) if isinstance(judge, Voting) and votes else judge(pairs)
    keys = [answer_hash(*pair) for pair in pairs]
    verdicts = dict(zip(keys, said, strict=True))
    voices = {who: dict(zip(keys, cast, strict=True)) for who, cast in votes.items()}
    settings = judge.settings()
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    phases = {phase: _phase(run, phase, verdicts, voices) for phase in run.phases}
    first = _item_verdicts(run, phases["before"].verdicts)
    shifts: dict[Phase, ShiftReport | None] = {
        phase: _shift(run, first, _item_verdicts(run, score.verdicts))
        for phase, score in phases.items()
        if phase != "before"
    }
    return Score(run.outcome.run_id, name, dict(node), settings, digest[:10], phases, shifts)


def estimates(judge: Judge, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What judging would cost, flat ("calls", "cached", ...); empty where the judge cannot tell."""
    estimate = getattr(judge, "estimate", None)
    return {} if estimate is None else _flat(estimate(pairs))


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    elif hasattr(value, "model_dump"):
        value = value.model_dump()
    if not isinstance(value, Mapping):
        return {path or "cost": value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flat(inner, f"{path}.{key}" if path else str(key)).items()
    }


def _phase(
    run: StoredRun,
    phase: Phase,
    verdicts: Mapping[str | None, Verdict],
    voices: Mapping[str, Mapping[str | None, Verdict]],
) -> PhaseScore:
    pairs = run.pairs(phase)
    keys = [answer_hash(*pair) for pair in pairs]
    new = [verdicts[key] for key in keys]
    old = _old(run.phases[phase], pairs)
    gap, note = _gap(run, new)
    seed = run.outcome.seed
    differing = [
        Flip(item.id, item.category, after.direction, before.correct, after.correct, after.reason)
        for (item, _), before, after in zip(pairs, old, new, strict=True)
        if before.correct != after.correct
    ]
    told = {who: [cast[key] for key in keys] for who, cast in voices.items()}
    return PhaseScore(
        gap=gap,
        note=note,
        verdicts=new,
        agreement=agreement_table(pairs, {OLD: old, NEW: new}, seed=seed),
        voices=agreement_table(pairs, told, seed=seed) if len(told) > 1 else {},
        flips=[one for one in differing if None not in (one.old, one.new)],
        apart=[one for one in differing if None in (one.old, one.new)],
    )


def _old(result: PhaseResult, pairs: Sequence[Pair]) -> list[Verdict]:
    """What the run's own judge said about these answers."""
    rows: dict[str, ItemRow] = {row.id: row for row in result.rows}
    return [
        Verdict(
            item.id,
            response.direction,
            rows[item.id].understanding
            if response.direction is Direction.UNDERSTANDING
            else rows[item.id].generation,
        )
        for item, response in pairs
    ]


def _item_verdicts(run: StoredRun, verdicts: Sequence[Verdict]) -> list[ItemVerdict]:
    """One per item, in order; None where a direction has no verdict."""
    said: dict[Key, bool | None] = {(one.item_id, one.direction): one.correct for one in verdicts}
    return [
        ItemVerdict(
            item.category,
            said.get((item.id, Direction.UNDERSTANDING)),
            said.get((item.id, Direction.GENERATION)),
        )
        for item in run.items
    ]


def _replicates(run: StoredRun) -> int:
    """As the run's own report had them."""
    return int((run.outcome.recipe.get("evaluation") or {}).get("replicates", 10_000))


def _gap(run: StoredRun, verdicts: Sequence[Verdict]) -> tuple[GapReport | None, str]:
    items = _item_verdicts(run, verdicts)
    if not any(one.understanding is not None or one.generation is not None for one in items):
        return None, "no item is scored in any direction"
    report = state_report(items, seed=run.outcome.seed, replicates=_replicates(run), official=False)
    return report, "" if report.gap else "no item is scored in both directions, so there is no gap"


def _shift(run: StoredRun, before: Sequence[ItemVerdict], after: Sequence[ItemVerdict]) -> ShiftReport | None:
    pairs = list(zip(before, after, strict=True))
    if not any(None not in sides for one, two in pairs for sides in zip(one[1:], two[1:], strict=True)):
        return None
    return state_shift(before, after, seed=run.outcome.seed, replicates=_replicates(run))
