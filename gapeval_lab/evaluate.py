"""A model asked a list of items in both directions: responses and verdicts, item by item resumable.

Every prompt has its own seed, made of the run's seed, the item and the direction: the same before
and after an intervention (common random numbers), and the same whatever the batch. Answers that are
on disk are taken from there only if everything they depend on is the same, weights included.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from gapeval_lab.errors import UserError
from gapeval_lab.files import write_text
from gapeval_lab.interfaces import UMM, Judge
from gapeval_lab.items import Direction, Item, PictureFile, Prompt, Response, Verdict, png_bytes

Progress = Callable[[int, int], None]
"""`progress(done, total)`, in prompts."""

MAX_ERRORS = 0.1  # share of prompts that may fail before the run does
Key = tuple[str, Direction]


class PromptsFailed(RuntimeError):
    """A model could not answer: more than `MAX_ERRORS` of its prompts failed."""


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


class ResponseStore:
    """Responses on disk: one JSON line each, pictures beside them. Survives a kill at any moment.

    A line is written after its picture and only whole lines count; a response is found again by its
    item's content and its direction, so a changed item is asked anew.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the store.

        Args:
            folder: named after a `store_key`.

        Raises:
            UserError: the folder cannot be written.
        """
        self.folder = folder
        self.file = folder / "responses.jsonl"
        self.pictures = folder / "pictures"
        try:
            self.pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"store: cannot write {folder} ({error.strerror}); choose another folder with --out or "
                "GAPEVAL_LAB_HOME"
            ) from None
        self.lines = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.file.exists():
            return {}
        found: dict[str, dict[str, Any]] = {}
        text = self.file.read_text(encoding="utf-8")
        whole, _, torn = text.rpartition("\n")
        if torn:  # a kill in the middle of a line; appending to it would spoil the next one
            write_text(self.file, f"{whole}\n" if whole else "")
        for line in whole.splitlines():
            row = json.loads(line)
            found[row["key"]] = row
        return found

    @staticmethod
    def _key(item: Item, direction: Direction) -> str:
        return f"{item.digest}:{direction}"

    def get(self, item: Item, direction: Direction) -> Response | None:
        """The stored response, or None. A picture that cannot be read counts as none."""
        row = self.lines.get(self._key(item, direction))
        if row is None:
            return None
        if row["picture"] is None:
            return Response(item.id, direction, text=row["text"])
        file = self.folder / row["picture"]
        try:
            with Image.open(file) as image:
                image.verify()
        except (OSError, SyntaxError):  # the latter is what Pillow raises for a PNG that is cut short
            return None
        return Response(item.id, direction, picture=PictureFile(file))

    def put(self, pairs: Iterable[tuple[Item, Response]]) -> list[Response]:
        """Append responses, flushed to disk when this returns. Errors are not kept: they are retried.

        Returns:
            the responses, with their pictures on disk instead of in memory.
        """
        rows, kept = [], []
        for item, response in pairs:
            kept.append(response)
            if response.error is not None:
                continue
            key, picture = self._key(item, response.direction), None
            image = response.image
            if image is not None:
                picture = f"pictures/{item.digest[:32]}.png"
                (self.folder / picture).write_bytes(png_bytes(image))
                kept[-1] = replace(response, picture=PictureFile(self.folder / picture))
            rows.append({"key": key, "id": item.id, "text": response.text, "picture": picture})
            self.lines[key] = rows[-1]
        with self.file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
            stream.flush()
            os.fsync(stream.fileno())
        return kept


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
    """Ask every item in every direction that the model has, and judge what comes back.

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
    total = sum(map(len, parts)) * len(umm.directions)

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
    """Ask every item in the given directions, and keep what comes back.

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
    total = len(items) * len(directions)
    for direction in sorted(directions, reverse=True):
        waiting = []
        for item in items:
            kept = store.get(item, direction) if store else None
            if kept is None:
                waiting.append(item)
            else:
                responses[item.id, direction] = kept
        # Equal lengths together: fewer padded positions, and long prompts do not hold up short ones.
        prompts = {item.id: item.prompt(direction) for item in waiting}
        waiting.sort(key=lambda item: (bool(prompts[item.id].pictures), len(prompts[item.id].text)))
        for start in range(0, len(waiting), chunk):
            part = waiting[start : start + chunk]
            given = _ask(umm, part, direction, seed=seed)
            if store:
                given = store.put(zip(part, given, strict=True))
            responses.update({(response.item_id, direction): response for response in given})
            if progress:
                progress(len(responses), total)
        if progress:
            progress(len(responses), total)
    return responses


def _ask(umm: UMM, items: Sequence[Item], direction: Direction, *, seed: int) -> list[Response]:
    """Ask together; where that fails, one by one, so that an error stays with its item."""
    try:
        return _ask_together(umm, items, direction, seed=seed)
    except UserError:
        raise
    except Exception as error:  # any model's any failure: kept as that item's error, and counted
        if len(items) == 1:
            return [Response(items[0].id, direction, error=f"{type(error).__name__}: {error}")]
        return [response for item in items for response in _ask(umm, [item], direction, seed=seed)]


def _ask_together(umm: UMM, items: Sequence[Item], direction: Direction, *, seed: int) -> list[Response]:
    prompts: list[Prompt] = [item.prompt(direction) for item in items]
    seeds = [prompt_seed(seed, item, direction) for item in items]
    if direction is Direction.UNDERSTANDING:
        texts = umm.answer(prompts, seeds=seeds)
        return [Response(i.id, direction, text=text) for i, text in zip(items, texts, strict=True)]
    images = umm.draw(prompts, seeds=seeds)
    return [Response(i.id, direction, picture=image) for i, image in zip(items, images, strict=True)]


def _check_errors(responses: dict[Key, Response], total: int) -> None:
    failed = [response for response in responses.values() if response.error is not None]
    if len(failed) > MAX_ERRORS * total:
        first = failed[0]
        raise PromptsFailed(
            f"{len(failed)} of {total} prompts failed; first {first.item_id}, {first.direction}: "
            f"{first.error}"
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
