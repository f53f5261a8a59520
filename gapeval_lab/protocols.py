"""Benchmark items asked otherwise than directly: across directions, reasoned, sampled, self-judged.

A protocol changes prompts, or who judges, and leaves all else: an item keeps its id, and with it the random
numbers of the direct answer, and the judge holds the result against the item's own target.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from gapeval_lab.evaluate import Evaluation, Key, Progress, ResponseStore, judged, respond
from gapeval_lab.interfaces import UMM, Judge
from gapeval_lab.items import Direction, Item, Prompt, Response, Verdict
from gapeval_lab.protocol_settings import (
    TAG,
    DrawThenTell,
    ProtocolNode,
    Samples,
    SelfJudged,
    TellThenDraw,
    Think,
)
from gapeval_lab.sections import PLACEHOLDER

UND, GEN = Direction.UNDERSTANDING, Direction.GENERATION

Respond = Callable[[Sequence[Item], Collection[Direction]], dict[Key, Response]]


@dataclass(frozen=True)
class ByProtocol:
    """One protocol's results in one state of the model.

    Attributes:
        samples: one evaluation each; several for `samples` alone. What the protocol leaves as it is stands
            in them as it was asked directly.
        asked: final prompt of what was asked otherwise than directly; "" where only the judge differs.
        steps: what the model gave on the way there: a text, or a drawing.
        alone: what could not be asked so, since a step gave nothing or a tag is missing; asked directly.
    """

    samples: tuple[Evaluation, ...]
    asked: Mapping[Key, str] = field(default_factory=dict)
    steps: Mapping[Key, Response] = field(default_factory=dict)
    alone: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class _Way:
    """What every protocol works with."""

    umm: UMM
    items: Sequence[Item]
    direct: Evaluation
    judge: Judge
    respond: Respond


def needed(node: ProtocolNode) -> frozenset[Direction]:
    """What a model must be able to do for it; samples are of whatever it can."""
    match node:
        case Samples():
            return frozenset()
        case Think():
            return frozenset({UND, *map(Direction, node.directions)})
        case _:
            return frozenset(Direction)


def ask_by(
    protocols: Mapping[str, ProtocolNode],
    umm: UMM,
    direct: Evaluation,
    *,
    judge: Judge,
    seed: int,
    store: ResponseStore | None = None,
    chunk: int = 96,
    progress: Progress | None = None,
) -> dict[str, ByProtocol]:
    """Ask the items of an evaluation once more by each protocol.

    Args:
        protocols: name -> settings.
        umm: asked as it is now.
        direct: the same state's direct answers; what can be taken from it is not asked again.
        judge: of the results.
        seed, store, chunk, progress: see `respond`.
    """
    ask = partial(respond, umm, seed=seed, store=store, chunk=chunk, progress=progress)
    way = _Way(umm, direct.items, direct, judge, lambda items, directions: ask(items, directions))
    return {name: _one(node, way) for name, node in protocols.items()}


def _one(node: ProtocolNode, way: _Way) -> ByProtocol:
    match node:
        case TellThenDraw():
            return _tell_then_draw(node, way)
        case DrawThenTell():
            return _draw_then_tell(node, way)
        case Think():
            return _think(node, way)
        case Samples():
            return _samples(node, way)
        case SelfJudged():
            return _self_judged(node, way)


def _tell_then_draw(node: TellThenDraw, way: _Way) -> ByProtocol:
    told = _step(way, UND, node.ask, name="told")
    made = {
        item.id: Prompt(text, item.generate.pictures)
        for item in way.items
        if (given := told.get(item.id)) is not None
        and given.text
        and (text := fill(node.draw, item, answer=given.text.strip())) is not None
    }
    return _ask(way, {GEN: made}, {(item_id, GEN): given for item_id, given in told.items()})


def _draw_then_tell(node: DrawThenTell, way: _Way) -> ByProtocol:
    drawn = _step(way, GEN, node.draw, name="drawn")
    made = {
        item.id: Prompt(text, (*item.understand.pictures, given.picture))
        for item in way.items
        if (given := drawn.get(item.id)) is not None
        and given.picture is not None
        and (text := fill(node.ask, item)) is not None
    }
    return _ask(way, {UND: made}, {(item_id, UND): given for item_id, given in drawn.items()})


def _think(node: Think, way: _Way) -> ByProtocol:
    made: dict[Direction, dict[str, Prompt]] = {}
    steps: dict[Key, Response] = {}
    for direction in map(Direction, node.directions):
        questions = {
            item.id: Prompt(text, item.prompt(direction).pictures)
            for item in way.items
            if direction in item.directions
            and (text := fill(node.think, item, task=item.prompt(direction).text)) is not None
        }
        thoughts = _answers(way, questions, name=f"thought.{direction}")
        steps |= {(item_id, direction): thought for item_id, thought in thoughts.items()}
        made[direction] = {}
        for item in way.items:
            thought, prompt = thoughts.get(item.id), item.prompt(direction)
            if thought is None or not (thought.text or "").strip():
                continue
            text = fill(node.answer, item, task=prompt.text, thought=str(thought.text).strip())
            if text is not None:
                made[direction][item.id] = Prompt(text, prompt.pictures)
    return _ask(way, made, steps)


def _samples(node: Samples, way: _Way) -> ByProtocol:
    found = [way.direct]
    for number in range(1, node.k):
        copies = [replace(item, id=f"{item.id}#{number}") for item in way.items]
        given = way.respond(copies, way.umm.directions)
        own = {
            (item.id, direction): replace(response, item_id=item.id)
            for item, copy in zip(way.items, copies, strict=True)
            for direction in Direction
            if (response := given.get((copy.id, direction))) is not None
        }
        found.append(judged(way.items, own, way.judge))
    return ByProtocol(tuple(found))


def _self_judged(node: SelfJudged, way: _Way) -> ByProtocol:
    told, drawn = {}, {}
    for item in way.items:
        answer, drawing = (way.direct.responses.get((item.id, direction)) for direction in (UND, GEN))
        said, shown = answer.text if answer else None, drawing.picture if drawing else None
        if said is not None and (text := fill(node.told, item, answer=said.strip())):
            told[item.id] = Prompt(text, item.understand.pictures)
        if shown is not None and (text := fill(node.drawn, item)):
            drawn[item.id] = Prompt(text, (*item.generate.pictures, shown))
    replies = {
        direction: _answers(way, questions, name=f"judged.{direction}")
        for direction, questions in ((UND, told), (GEN, drawn))
    }
    steps = {(i, direction): reply for direction, of in replies.items() for i, reply in of.items()}
    verdicts = {key: _own_verdict(node, *key, steps.get(key)) for key in way.direct.verdicts}
    asked = {(i, d): prompt.text for d, of in ((UND, told), (GEN, drawn)) for i, prompt in of.items()}
    evaluation = Evaluation(way.direct.items, way.direct.responses, verdicts)
    return ByProtocol((evaluation,), asked, steps)


def _own_verdict(node: SelfJudged, item_id: str, direction: Direction, reply: Response | None) -> Verdict:
    if reply is None or reply.error is not None:
        why = "there was nothing to ask about" if reply is None else str(reply.error)
        return Verdict(item_id, direction, None, f"not asked or not answered: {why}")
    said = " ".join((reply.text or "").split())
    for word, correct in ((node.yes, True), (node.no, False)):
        if re.match(rf"\W*{re.escape(word.strip())}(?!\w)", said, re.IGNORECASE):
            return Verdict(item_id, direction, correct, f"says: {said}")
    return Verdict(item_id, direction, None, f"neither {node.yes} nor {node.no}: {said or '(nothing)'}")


def _step(way: _Way, direction: Direction, text: str | None, *, name: str) -> dict[str, Response]:
    """The first step of a stepwise protocol: the direct response, or what is asked instead.

    Left out are items that are not asked in the other direction, to which the step would lead.
    """
    led = [item for item in way.items if not item.directions <= {direction}]
    if text is None:
        found = ((item.id, way.direct.responses.get((item.id, direction))) for item in led)
        return {item_id: response for item_id, response in found if response is not None}
    prompts = {
        item.id: Prompt(filled, item.prompt(direction).pictures)
        for item in led
        if (filled := fill(text, item)) is not None
    }
    if direction is UND:
        return _answers(way, prompts, name=name)
    drawn = [Item(f"{item_id}.{name}", "", "", Prompt(""), prompt, ()) for item_id, prompt in prompts.items()]
    found_by = way.respond(drawn, {GEN})
    return {item_id: found_by[f"{item_id}.{name}", GEN] for item_id in prompts}


def _answers(way: _Way, questions: Mapping[str, Prompt], *, name: str) -> dict[str, Response]:
    """What the model says to questions of ours, by item."""
    items = [Item(f"{key}.{name}", "", "", prompt, Prompt(""), ()) for key, prompt in questions.items()]
    found = way.respond(items, {UND})
    return {item_id: found[f"{item_id}.{name}", UND] for item_id in questions}


def _ask(
    way: _Way, made: Mapping[Direction, Mapping[str, Prompt]], steps: Mapping[Key, Response]
) -> ByProtocol:
    """Ask the final prompts and judge what comes back; the rest stays as it was asked directly."""
    found: dict[Key, Response] = {}
    asked: dict[Key, str] = {}
    alone: set[Key] = set()
    for direction, prompts in made.items():
        side = "understand" if direction is UND else "generate"
        changed = [replace(item, **{side: prompts[item.id]}) for item in way.items if item.id in prompts]  # type: ignore[arg-type]
        found |= way.respond(changed, {direction})
        asked |= {(item_id, direction): prompt.text for item_id, prompt in prompts.items()}
        alone |= {
            (item.id, direction)
            for item in way.items
            if direction in item.directions and item.id not in prompts
        }
    new = judged(way.items, found, way.judge)
    whole = Evaluation(way.direct.items, way.direct.responses | found, way.direct.verdicts | new.verdicts)
    return ByProtocol((whole,), asked, steps, frozenset(alone))


def fill(text: str, item: Item, **given: str) -> str | None:
    """A text with its placeholders replaced, once: braces in a value are text.

    None where the item lacks a tag that the text holds.
    """
    values = {"question": item.understand.text, "prompt": item.generate.text, **given}
    values |= {f"{TAG}{name}": value for name, value in item.tags.items()}
    if any(name not in values for name in PLACEHOLDER.findall(text)):
        return None
    return PLACEHOLDER.sub(lambda found: values[found[1]], text)
