"""What items gave by each protocol, as records of an Outcome: numbers beside the direct ones, and rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from gapeval_lab.bench import Bench
from gapeval_lab.evaluate import Evaluation
from gapeval_lab.gap.records import Estimate
from gapeval_lab.gap.samples import SIDES, Sampled, Side, What
from gapeval_lab.gap.table import ItemVerdict
from gapeval_lab.item_rows import file_name, write_picture
from gapeval_lab.items import Direction, Item, Response
from gapeval_lab.measuring import Measured
from gapeval_lab.outcome import ProtocolResult, ProtocolRow, ProtocolState
from gapeval_lab.protocol_settings import ProtocolNode, SelfJudged
from gapeval_lab.protocols import ByProtocol
from gapeval_lab.quality import wilson

Name = TypeVar("Name", bound=str)

WHAT: tuple[What, ...] = ("understanding", "generation", "gap")


def verdicts(evaluation: Evaluation) -> list[ItemVerdict]:
    """One per item, in order."""
    return [
        ItemVerdict(
            item.category,
            evaluation.correct(item, Direction.UNDERSTANDING),
            evaluation.correct(item, Direction.GENERATION),
        )
        for item in evaluation.items
    ]


def protocol_results(bench: Bench, before: Measured, after: Measured | None) -> list[ProtocolResult]:
    """Each protocol's numbers in each state, on the items that are scored in all of them."""
    evaluation, seed = bench.loaded.recipe.evaluation, bench.loaded.recipe.seed
    sides = [side for side in SIDES if Direction(side) in bench.umm.directions]
    states = {"before": before} | ({"after": after} if after else {})
    found = []
    for name, node in evaluation.protocols.items():
        samples = {}
        for state, measured in states.items():
            samples[state] = [verdicts(one) for one in measured.protocols[name].samples]
            samples[_direct(state)] = [verdicts(measured.evaluation)]
        sampled = Sampled(samples, sides=sides, seed=seed, replicates=evaluation.replicates)
        shifts = {what: sampled.minus("after", "before", what) for what in WHAT} if after else {}
        found.append(
            ProtocolResult(
                name=name,
                use=node.use,
                k=len(samples["before"]),
                n=sampled.n,
                unscored=sampled.unscored,
                before=_state("before", sampled, before, before.protocols[name], sides, node),
                after=_state("after", sampled, after, after.protocols[name], sides, node) if after else None,
                shift=_known(shifts),
            )
        )
    return found


def _state(
    state: str,
    sampled: Sampled,
    measured: Measured,
    by: ByProtocol,
    sides: Sequence[Side],
    node: ProtocolNode,
) -> ProtocolState:
    several, own = len(by.samples) > 1, isinstance(node, SelfJudged)
    return ProtocolState(
        understanding=sampled.of(state, "understanding"),
        generation=sampled.of(state, "generation"),
        gap=sampled.of(state, "gap"),
        over_direct=_known({what: sampled.minus(state, _direct(state), what) for what in WHAT}),
        passed=_known({side: sampled.passed(state, side) for side in sides if several}),
        agreement=_known({side: _agreement(measured, by, side) for side in sides if own}),
        alone=len(by.alone),
    )


def _direct(state: str) -> str:
    return f"{state}, directly"


def protocol_rows(phase: Literal["before", "after"], measured: Measured, *, work: Path) -> list[ProtocolRow]:
    """What was asked, given and judged, an item and direction each, where it differs from the direct way.

    Pictures go to `work/pictures/<protocol>/<phase>/`; of several samples, verdicts alone are kept.
    """
    rows = []
    for name, by in measured.protocols.items():
        for item in measured.evaluation.items:
            for direction in Direction:
                row = _row(name, phase, item, direction, measured.evaluation, by, work)
                if row is not None:
                    rows.append(row)
    return rows


def _row(
    name: str,
    phase: Literal["before", "after"],
    item: Item,
    direction: Direction,
    direct: Evaluation,
    by: ByProtocol,
    work: Path,
) -> ProtocolRow | None:
    key = (item.id, direction)
    found = [one.verdicts.get(key) for one in by.samples]
    several = len(by.samples) > 1
    if key not in (by.samples[0].responses if several else by.asked):  # several: the model has one direction
        return None
    response = None if several else by.samples[0].responses.get(key)
    if response is direct.responses.get(key):
        response = None
    place = f"pictures/{name}/{phase}/{file_name(item.id)}"
    first = found[0]
    return ProtocolRow(
        protocol=name,
        phase=phase,
        item=item.id,
        direction=direction.value,
        asked=by.asked.get(key, ""),
        step=_text(by.steps.get(key)),
        step_picture=_picture(by.steps.get(key), f"{place}.step.png", work, unless=direct),
        answer=_text(response) or None,
        picture=_picture(response, f"{place}.png", work),
        correct=[None if one is None else one.correct for one in found],
        reason="" if several or first is None else first.reason,
    )


def _text(response: Response | None) -> str:
    return (response.text or "") if response else ""


def _picture(
    response: Response | None, name: str, work: Path, *, unless: Evaluation | None = None
) -> str | None:
    """Write a drawing, unless it is a direct one, which has its place; its name."""
    if response is None or response.picture is None:
        return None
    if unless is not None and response is unless.responses.get((response.item_id, response.direction)):
        return None
    write_picture(work / name, response.picture)
    return name


def _agreement(measured: Measured, by: ByProtocol, side: Side) -> Estimate | None:
    """Share of the answers of which the model and the judge say the same."""
    pairs = [
        (own.correct(item, Direction(side)), measured.evaluation.correct(item, Direction(side)))
        for own in by.samples
        for item in own.items
    ]
    same = [one == two for one, two in pairs if one is not None and two is not None]
    return wilson(sum(same) / len(same), len(same)) if same else None


def _known(found: Mapping[Name, Estimate | None]) -> dict[Name, Estimate]:
    """Without what is missing."""
    return {name: value for name, value in found.items() if value is not None}
