"""What a judge that is a language model is asked about one response, turn by turn, whoever answers.

The same protocol for both directions, unless the authors' is chosen: theirs asks a second time about
texts and once about pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gapeval_lab.endpoint_pictures import Message
from gapeval_lab.items import Direction, Item, Picture, Response, Verdict, picture_digest
from gapeval_lab.judges.gapeval_routes import Unjudgeable, material_of
from gapeval_lab.judges.prompt_files import template_of
from gapeval_lab.judges.verdict_text import Found, read_verdict

Protocol = Literal["same", "authors"]

SECOND = "Go through it once more, step by step. Then give your final verdict as the JSON object alone."

UNREADABLE = "no verdict could be read from the judge's replies"


def again(keys: tuple[str, ...], *, raw: bool) -> str:
    """What a judge is told whose reply holds no verdict."""
    values = '1, 0 or "raw"' if raw else "1 or 0"
    return (
        "No verdict could be read from that. Reply with one JSON object and nothing else: "
        f'{{"reason": "...", "{keys[0]}": {values}}}'
    )


@dataclass(frozen=True)
class Question:
    """One response, put before a judge.

    Attributes:
        route: the kind of item.
        system, text, pictures: what the judge is given first.
        keys, raw: see `read_verdict`.
        second: it is asked a second time.
        digest: a hash of all that is put before the judge, pictures and template included.
    """

    route: str
    system: str
    text: str
    pictures: tuple[Picture, ...]
    keys: tuple[str, ...]
    raw: bool
    second: bool
    digest: str

    @property
    def opening(self) -> list[Message]:
        """The first turn."""
        system = [Message("system", self.system)] if self.system.strip() else []
        return [*system, Message("user", self.text, self.pictures)]


def question_of(
    item: Item, response: Response, *, prompt_dir: Path | None, protocol: Protocol
) -> Question | Verdict:
    """What to ask about a response, or the verdict where there is nothing to ask.

    Raises:
        UserError: a template that cannot be used, or a category that is not known.
    """

    def decided(correct: bool | None, reason: str) -> Verdict:
        return Verdict(item.id, response.direction, correct, reason)

    try:
        material = material_of(item, response)
        pictures = [picture_digest(picture) for picture in material.pictures]
    except Unjudgeable as error:
        return decided(None, str(error))
    except OSError as error:
        return decided(None, f"a picture cannot be read ({type(error).__name__}: {error})")
    if material.is_copy:
        return decided(False, "raw: the drawing is the question's picture, unchanged to the pixel")
    form = material.form
    template = template_of(form, prompt_dir)
    text = template.render(material.variables)
    second = protocol == "authors" and response.direction is Direction.UNDERSTANDING
    parts: list[Any] = [template.digest, template.system, text, pictures, form.keys, form.raw]
    parts += [SECOND if second else None, again(form.keys, raw=form.raw)]
    return Question(
        route=material.route.name,
        system=template.system,
        text=text,
        pictures=material.pictures,
        keys=form.keys,
        raw=form.raw,
        second=second,
        digest=hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
    )


@dataclass(frozen=True)
class Judged:
    """How a conversation ended: the verdict, None if none could be read, and everything the judge said."""

    found: Found | None
    replies: tuple[str, ...]

    @property
    def row(self) -> Mapping[str, Any]:
        """As it is kept on disk."""
        found = self.found
        if found is None:
            raise ValueError("a conversation without a verdict is not kept")
        return {"correct": found.correct, "reason": found.reason, "replies": list(self.replies)}


def conversation(question: Question, *, parse_retries: int) -> Generator[list[Message], str, Judged]:
    """The turns with a judge: yields what to send, wants the reply, returns how it ended."""
    messages = question.opening
    replies: list[str] = []

    def more(words: str) -> list[Message]:
        return [*messages, Message("assistant", replies[-1]), Message("user", words)]

    replies.append((yield messages))
    if question.second:
        messages = more(SECOND)
        replies.append((yield messages))
    for attempt in range(parse_retries + 1):
        found = read_verdict(replies[-1], keys=question.keys, raw=question.raw)
        if found is not None or attempt == parse_retries:
            break
        messages = more(again(question.keys, raw=question.raw))
        replies.append((yield messages))
    return Judged(found, tuple(replies))
