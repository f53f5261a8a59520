"""A new score corrected by a calibration: true shares of right answers, and their shift, per category."""

from __future__ import annotations

from dataclasses import dataclass

from gapeval_lab.calibration import Calibration, Corrected, corrected_rate, corrected_shift
from gapeval_lab.items import Direction
from gapeval_lab.outcome import Phase
from gapeval_lab.rescoring import Score
from gapeval_lab.stored_runs import StoredRun


@dataclass(frozen=True)
class CorrectedRow:
    """One category in one direction.

    Attributes:
        own: whether the confusion is the category's own; else it is its direction's.
        before, after, shift: None where nothing was scored, or the run has no such phase.
    """

    direction: Direction
    category: str
    own: bool
    before: Corrected | None
    after: Corrected | None
    shift: Corrected | None


def corrected(run: StoredRun, score: Score, known: Calibration) -> list[CorrectedRow]:
    """Rates and shifts of every category and direction.

    Args:
        run: what was judged.
        score: by the judge that the calibration is of.
        known: its confusion.
    """
    categories = list(dict.fromkeys(item.category for item in run.items))
    seed, rows = run.outcome.seed, []
    for direction in Direction:
        for category in categories:
            members = [item.id for item in run.items if item.category == category]
            before = _said(score, "before", direction, members)
            after = _said(score, "after", direction, members)
            found, own = known.of(direction, category)
            name = f"{direction}/{category}"
            both = [(before[one], after[one]) for one in members if one in before and one in after]
            rates = [
                corrected_rate(sum(said.values()), len(said), found, seed=seed, name=f"{phase}/{name}")
                if said
                else None
                for phase, said in (("before", before), ("after", after))
            ]
            shift = corrected_shift(both, found, seed=seed, name=name) if both else None
            rows.append(CorrectedRow(direction, category, own, rates[0], rates[1], shift))
    return rows


def _said(score: Score, phase: Phase, direction: Direction, members: list[str]) -> dict[str, bool]:
    """Item -> verdict, of those that were scored."""
    if phase not in score.phases:
        return {}
    wanted = set(members)
    return {
        one.item_id: one.correct
        for one in score.phases[phase].verdicts
        if one.direction is direction and one.correct is not None and one.item_id in wanted
    }
