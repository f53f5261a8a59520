"""A model asked a list of items in both directions: responses and verdicts, item by item resumable.

Every prompt has its own seed, made of the run's seed, the item and the direction: the same before
and after an intervention (common random numbers), and the same whatever the batch. Answers that are
on disk are taken from there only if everything they depend on is the same, weights included.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gapeval_lab.errors import PromptsFailed, UserError
from gapeval_lab.interfaces import UMM, Arriving, Judge
from gapeval_lab.items import Direction, Item, Prompt, Response, Verdict
from gapeval_lab.response_store import ResponseStore as ResponseStore

if TYPE_CHECKING:
    from PIL import Image

    from gapeval_lab.delta import WeightDelta

Progress = Callable[[int, int], None]
"""`progress(done, total)`, in prompts."""

MAX_ERRORS = 0.1  # share of prompts that may fail before the run does
Key = tuple[str, Direction]


@dataclass(frozen=True)
class Evaluation:
    """What a model gave for a list of items, and what the judge said."""

    items: tuple[Item, ...]
    responses: dict[Key, Response]
    verdicts: dict[Key, Verdict]

    def correct(self, item: Item, direction: Direction) -> bool | None:
        """The verdict on one item in one direction."""
        verdict = self.verdicts.get((item.id, direction))
        return None if verdict is None else verdict.correct


def prompt_seed(seed: int, item: Item, direction: Direction) -> int:
    """The seed of one prompt: 63 bits of a hash of the run's seed, the item's id and the direction."""
    digest = hashlib.sha256(f"{seed}|{item.id}|{direction}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def store_key(umm: UMM, *, weights: str, seed: int) -> str:
    """Hash of everything that a response depends on beside its item."""
    parts = {"weights": weights, "settings": umm.settings(), "seed": seed, "format": 1}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Helpers(Protocol):
    """Others who hold the same model, and answer prompts into a store that they can reach."""

    def hold(self, store: ResponseStore, delta: WeightDelta | None) -> None:
        """Be asked for this store's responses from now on.

        Args:
            store: named after the key of the model as it is now.
            delta: what the model holds beside its weights as they were loaded.
        """
        ...

    def fill(
        self,
        store: ResponseStore,
        items: Sequence[Item],
        direction: Direction,
        *,
        seed: int,
        chunk: int,
        ask: Callable[[Sequence[Item]], None],
        told: Callable[[int], None],
    ) -> list[Response]:
        """Answer items into the store, beside the caller's own model.

        Args:
            store: the one that is held.
            items, direction: what is not there yet.
            seed: of the run.
            chunk: the most that one is asked at a time.
            ask: lets the caller's own model answer some of them.
            told: hears how many prompts the others have answered.

        Returns:
            the errors among what the others gave; all else can be found in the store.
        """
        ...


def evaluate(
    umm: UMM,
    items: Sequence[Item],
    *,
    judge: Judge,
    seed: int,
    store: ResponseStore | None = None,
    chunk: int = 96,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask every item in every direction that it and the model have, and judge what comes back.

    Args:
        umm: asked as it is now.
        items: with unique ids.
        judge: called once, on everything.
        seed, store, chunk, progress: see `respond`.

    Raises:
        PromptsFailed: more than `MAX_ERRORS` of the prompts failed.
    """
    (whole,) = evaluate_parts(
        umm, [items], judge=judge, seed=seed, store=store, chunk=chunk, progress=progress
    )
    return whole


def evaluate_parts(
    umm: UMM,
    parts: Sequence[Sequence[Item]],
    *,
    judge: Judge,
    seed: int,
    store: ResponseStore | None = None,
    chunk: int = 96,
    progress: Progress | None = None,
) -> Iterator[Evaluation]:
    """`evaluate` one part after the other: each value holds everything that was asked so far.

    The last one is what `evaluate` gives for all items at once; the judge is called once per part.

    Raises:
        PromptsFailed: more prompts failed already than `MAX_ERRORS` of all parts' together.
    """
    items: list[Item] = []
    responses: dict[Key, Response] = {}
    verdicts: dict[Key, Verdict] = {}
    total = sum(len(item.directions & umm.directions) for part in parts for item in part)

    def told(done: int, _: int) -> None:
        if progress:
            progress(len(responses) + done, total)

    for part in parts:
        responses |= _responses(umm, part, umm.directions, seed=seed, store=store, chunk=chunk, progress=told)
        _check_errors(responses, total)
        verdicts |= judged(part, responses, judge).verdicts
        items += part
        yield Evaluation(tuple(items), dict(responses), dict(verdicts))


def respond(
    umm: UMM,
    items: Sequence[Item],
    directions: Collection[Direction],
    *,
    seed: int,
    store: ResponseStore | None = None,
    chunk: int = 96,
    progress: Progress | None = None,
) -> dict[Key, Response]:
    """Ask every item in those of the given directions that it has, and keep what comes back.

    Args:
        umm: asked as it is now.
        items: with unique ids.
        directions: some of those that the model has.
        seed: of the run; see `prompt_seed`.
        store: where finished responses lie and go; None keeps nothing.
        chunk: prompts between two writes to the store.
        progress: told after each chunk.

    Raises:
        PromptsFailed: more than `MAX_ERRORS` of the prompts failed.
    """
    responses = _responses(umm, items, directions, seed=seed, store=store, chunk=chunk, progress=progress)
    _check_errors(responses, len(responses))
    return responses


def judged(items: Sequence[Item], responses: Mapping[Key, Response], judge: Judge) -> Evaluation:
    """The responses to these items with the judge's verdicts."""
    pairs = [
        (item, responses[item.id, direction])
        for item in items
        for direction in Direction
        if (item.id, direction) in responses
    ]
    verdicts = judge(pairs)
    return Evaluation(
        tuple(items),
        dict(responses),
        {(verdict.item_id, verdict.direction): verdict for verdict in verdicts},
    )


def _responses(
    umm: UMM,
    items: Sequence[Item],
    directions: Collection[Direction],
    *,
    seed: int,
    store: ResponseStore | None,
    chunk: int,
    progress: Progress | None,
) -> dict[Key, Response]:
    """`respond`, however many prompts fail."""
    responses: dict[Key, Response] = {}
    total = sum(len(item.directions.intersection(directions)) for item in items)

    def ask(part: Sequence[Item], direction: Direction) -> None:
        known = {item.id: item for item in part}

        def keep(given: list[Response]) -> None:
            if store:
                given = store.put((known[response.item_id], response) for response in given)
            responses.update({(response.item_id, direction): response for response in given})

        answered(umm, part, direction, seed=seed, keep=keep)

    def told(others: int = 0) -> None:
        if progress:
            progress(len(responses) + others, total)

    for direction in sorted(directions, reverse=True):
        waiting = _unknown(items, direction, responses, store)
        # Equal lengths together: fewer padded positions, and long prompts do not hold up short ones.
        prompts = {item.id: item.prompt(direction) for item in waiting}
        waiting.sort(key=lambda item: (bool(prompts[item.id].pictures), len(prompts[item.id].text)))
        if store and store.helpers and waiting:
            beside = functools.partial(ask, direction=direction)
            errors = store.helpers.fill(
                store, waiting, direction, seed=seed, chunk=chunk, ask=beside, told=told
            )
            responses.update({(response.item_id, direction): response for response in errors})
            waiting = _unknown(waiting, direction, responses, store)
        for start in range(0, len(waiting), chunk):
            ask(waiting[start : start + chunk], direction)
            told()
        told()
    return responses


def _unknown(
    items: Sequence[Item],
    direction: Direction,
    responses: dict[Key, Response],
    store: ResponseStore | None,
) -> list[Item]:
    """The items without a response; those that the store has one for are put among the others."""
    unknown = []
    for item in items:
        if direction not in item.directions or (item.id, direction) in responses:
            continue
        kept = store.get(item, direction) if store else None
        if kept is None:
            unknown.append(item)
        else:
            responses[item.id, direction] = kept
    return unknown


def answered(
    umm: UMM,
    items: Sequence[Item],
    direction: Direction,
    *,
    seed: int,
    keep: Callable[[list[Response]], object],
) -> None:
    """Ask together; where that fails, one by one, so that an error stays with its item.

    Args:
        umm, items, direction, seed: see `respond`.
        keep: is given some responses at a time, so that what is finished is kept before an error ends it all.
    """
    asking = umm.arriving(direction) if isinstance(umm, Arriving) else None
    if asking is not None:
        prompts, seeds = _prompts(items, direction, seed)
        asking(
            prompts,
            seeds=seeds,
            arrived=lambda found: keep([_response(items[n], direction, given) for n, given in found.items()]),
        )
        return
    try:
        given = _ask_together(umm, items, direction, seed=seed)
    except UserError:
        raise
    except Exception as error:  # any model's any failure: kept as that item's error, and counted
        if len(items) == 1:
            keep([_response(items[0], direction, error)])
            return
    else:
        keep(given)
        return
    for item in items:
        answered(umm, [item], direction, seed=seed, keep=keep)


def _ask_together(umm: UMM, items: Sequence[Item], direction: Direction, *, seed: int) -> list[Response]:
    prompts, seeds = _prompts(items, direction, seed)
    asked = umm.answer if direction is Direction.UNDERSTANDING else umm.draw
    answers: Sequence[str | Image.Image] = asked(prompts, seeds=seeds)
    return [_response(item, direction, answer) for item, answer in zip(items, answers, strict=True)]


def _prompts(items: Sequence[Item], direction: Direction, seed: int) -> tuple[list[Prompt], list[int]]:
    """The items' prompts, and a seed for each."""
    prompts = [item.prompt(direction) for item in items]
    return prompts, [prompt_seed(seed, item, direction) for item in items]


def _response(item: Item, direction: Direction, answer: str | Image.Image | Exception) -> Response:
    if isinstance(answer, Exception):
        return Response(item.id, direction, error=f"{type(answer).__name__}: {answer}")
    if isinstance(answer, str):
        return Response(item.id, direction, text=answer)
    return Response(item.id, direction, picture=answer)


def _check_errors(responses: dict[Key, Response], total: int) -> None:
    failed = [response for response in responses.values() if response.error is not None]
    if len(failed) > MAX_ERRORS * total:
        first = failed[0]
        raise PromptsFailed(
            f"{len(failed)} of {total} prompts failed; first {first.item_id}, {first.direction}: "
            f"{first.error}; mend the cause and give the same command again"
        )


def select(
    items: Sequence[Item],
    *,
    categories: Sequence[str] | None,
    number: int | None,
    limit: int | None,
) -> list[Item]:
    """The items a run asks: a fixed stratified subset, in the benchmark's order.

    Categories share `number` evenly; within a category, the strata (subcategory, operation, teaching)
    are drawn from in turn, in proportion to their sizes. The same arguments give the same items.

    Raises:
        UserError: an unknown category.
    """
    known = list(dict.fromkeys(item.category for item in items))
    for name in categories or ():
        if name not in known:
            raise UserError(f"evaluation.categories: '{name}' is unknown; choose from {', '.join(known)}")
    wanted = [name for name in known if categories is None or name in categories]
    chosen: list[Item] = []
    for i, name in enumerate(wanted):
        members = [item for item in items if item.category == name]
        if number is not None:
            quota = number // len(wanted) + (i < number % len(wanted))
            members = _stratified(members, quota)
        chosen += members
    return chosen if limit is None else _interleaved(chosen)[:limit]


def _stratified(items: list[Item], quota: int) -> list[Item]:
    """The items whose rank within their stratum is relatively lowest: proportional, and nested."""
    strata: dict[tuple[str, str, str], list[str]] = {}
    for item in sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest()):
        stratum = (item.subcategory, item.tags.get("operation", ""), item.tags.get("taught", ""))
        strata.setdefault(stratum, []).append(item.id)
    ranks = {
        identity: ((rank + 0.5) / len(members), stratum)
        for stratum, members in strata.items()
        for rank, identity in enumerate(members)
    }
    kept = {item.id for item in sorted(items, key=lambda item: ranks[item.id])[:quota]}
    return [item for item in items if item.id in kept]


def _interleaved(items: list[Item]) -> list[Item]:
    """Categories in turn, so that a limit leaves some of each."""
    place: dict[str, int] = {}
    ranks = {}
    for item in items:
        ranks[item.id] = place[item.category] = place.get(item.category, -1) + 1
    return sorted(items, key=lambda item: ranks[item.id])
