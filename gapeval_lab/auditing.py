"""Audit and smallest shifts of a finished run, also of one recorded before there were any. Asks no model."""

from collections.abc import Sequence

from gapeval_lab.gap.audit import audit
from gapeval_lab.gap.detectable import detectable
from gapeval_lab.gap.table import ItemVerdict
from gapeval_lab.outcome import Outcome, PhaseResult


def audited(outcome: Outcome, *, steps: Sequence[int] = ()) -> Outcome:
    """The same run with its audit and its smallest shifts computed anew, from its verdicts.

    Args:
        outcome: any; its stored audit plays no part.
        steps: fit the published model with so many steps, too; seconds each.
    """
    after = outcome.after
    report = audit(
        _verdicts(outcome.before),
        _verdicts(after) if after else None,
        official_before=outcome.before.gap.official,
        official_after=after.gap.official if after else None,
        seed=outcome.seed,
        steps=steps,
    )
    smallest = None
    if outcome.shift is not None:
        smallest = detectable(outcome.before.gap, outcome.shift, outcome.placebo_shift)
    return outcome.model_copy(update={"audit": report, "detectable": smallest})


def _verdicts(phase: PhaseResult) -> list[ItemVerdict]:
    return [ItemVerdict(row.category, row.understanding, row.generation) for row in phase.rows]
