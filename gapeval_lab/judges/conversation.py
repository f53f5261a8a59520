"""What a judge that is a language model is asked about one response, turn by turn, whoever answers.

The same protocol for both directions, unless the authors' is chosen: theirs asks a second time about
texts and once about pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gapeval_lab.endpoint_pictures import Message
from gapeval_lab.items import Direction, Item, Picture, Response, Verdict, picture_digest
from gapeval_lab.judges.gapeval_routes import Unjudgeable, material_of
from gapeval_lab.judges.prompt_files import template_of
from gapeval_lab.judges.realunify_rule import YES_NO, YesNo, asked_about, follows
from gapeval_lab.judges.verdict_text import Found, read_verdict

Protocol = Literal["same", "authors"]

SECOND = "Go through it once more, step by step. Then give your final verdict as the JSON object alone."

UNREADABLE = "no verdict could be read from the judge's replies"


def again(keys: tuple[str, ...], *, raw: bool, words: bool = False) -> str:
    """What a judge is told whose reply holds no verdict; `words`: it is yes or no."""
    values = '"yes" or "no"' if words else '1, 0 or "raw"' if raw else "1 or 0"
    return (
        "No verdict could be read from that. Reply with one JSON object and nothing else: "
        f'{{"reason": "...", "{keys[0]}": {values}}}'
    )


@dataclass(frozen=True)
class Question:
    """One response, put before a judge; or one of several questions about it.

    Attributes:
        route: the kind of item.
        system, text, pictures: what the judge is given first.
        keys, raw, wanted: see `read_verdict`.
        second: it is asked a second time.
        digest: a hash of all that is put before the judge, pictures and template included.
        about: of one of several, what it asks.
    """

    route: str
    system: str
    text: str
    pictures: tuple[Picture, ...]
    keys: tuple[str, ...]
    raw: bool
    second: bool
    digest: str
    wanted: str | None = None
    about: str = ""

    @property
    def opening(self) -> list[Message]:
        """The first turn."""
        system = [Message("system", self.system)] if self.system.strip() else []
        return [*system, Message("user", self.text, self.pictures)]


def questions_of(
    item: Item, response: Response, *, prompt_dir: Path | None, protocol: Protocol
) -> tuple[Question, ...] | Verdict:
    """What to ask about a response, or the verdict where there is nothing to ask; see `together`.

    Raises:
        UserError: a template that cannot be used, or a category that is not known.
    """
    if not follows(item):
        asked = question_of(item, response, prompt_dir=prompt_dir, protocol=protocol)
        return asked if isinstance(asked, Verdict) else (asked,)
    about = asked_about(item, response)
    if isinstance(about, Verdict) or response.picture is None:
        return about if isinstance(about, Verdict) else Verdict(item.id, response.direction, None)
    try:
        return tuple(_yes_no(one, response.picture, prompt_dir) for one in about)
    except OSError as error:
        return Verdict(item.id, response.direction, None, _unreadable(error))


def together(asked: Sequence[Question], said: Sequence[Verdict]) -> Verdict:
    """One verdict of those on all the questions about a response: right if all of them are."""
    first = said[0]
    if not asked[0].about:
        return first
    wrong = [q.about for q, one in zip(asked, said, strict=True) if one.correct is False]
    open_ = [f"{q.about}: {one.reason}" for q, one in zip(asked, said, strict=True) if one.correct is None]
    if wrong:
        return replace(first, correct=False, reason=f"{len(wrong)} of {len(said)} not so: {'; '.join(wrong)}")
    if open_:
        return replace(first, correct=None, reason="; ".join(open_))
    return replace(first, correct=True, reason=f"all {len(said)} questions answered as they should be")


def _unreadable(error: OSError) -> str:
    return f"a picture cannot be read ({type(error).__name__}: {error})"


def _yes_no(one: YesNo, picture: Picture, prompt_dir: Path | None) -> Question:
    template = template_of(YES_NO, prompt_dir)
    text = template.render({"question": one.question})
    parts = [template.digest, template.system, text, picture_digest(picture), YES_NO.keys, one.wanted]
    parts.append(again(YES_NO.keys, raw=False, words=True))
    return Question(
        route="yes/no",
        system=template.system,
        text=text,
        pictures=(picture,),
        keys=YES_NO.keys,
        raw=False,
        second=False,
        digest=hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
        wanted=one.wanted,
        about=str(one),
    )


def question_of(
    item: Item, response: Response, *, prompt_dir: Path | None, protocol: Protocol
) -> Question | Verdict:
    """What to ask about a response that one question decides; see `questions_of`.

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
        return decided(None, _unreadable(error))
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
        found = read_verdict(replies[-1], keys=question.keys, raw=question.raw, wanted=question.wanted)
        if found is not None or attempt == parse_retries:
            break
        messages = more(again(question.keys, raw=question.raw, words=question.wanted is not None))
        replies.append((yield messages))
    return Judged(found, tuple(replies))
