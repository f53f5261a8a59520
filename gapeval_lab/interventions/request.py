"""What a value is sought for: the questions that carry a fact, and those that must not move.

Knows facts and texts; knows no model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gapeval_lab.interfaces import Lesson
from gapeval_lab.items import Direction, Example, Fact


@dataclass(frozen=True)
class ValueRequest:
    """One fact to find a value for: the questions that carry it and the prompts that must not move.

    `drawings` are its drawing prompts with the pictures wanted.
    """

    fact_id: str
    subject: str
    target: str
    contexts: tuple[str, ...]
    essence: tuple[str, ...]
    drawings: tuple[Example, ...] = ()


def value_request(
    fact: Fact,
    texts: Sequence[str],
    *,
    seed: int,
    contexts: int,
    context_words: int,
    essence: Sequence[str],
    lessons: Sequence[Lesson] = (),
    drawings: int = 1,
) -> ValueRequest:
    """The contexts of a fact: its edit wording alone, then behind the ends of other questions.

    Prefixes are drawn for this fact alone, so other facts and their order change nothing; a text
    that names the subject is never one. The prefix stands inside the user's turn.

    Args:
        fact: the fact.
        texts: questions of the domain.
        seed: of the draw.
        contexts: number of prefixed questions (fewer if there are fewer texts).
        context_words: a prefix is the last so many words of a text, its end included.
        essence: templates of p' with `{subject}` in them; one that names the fact's relation is left
            out, since what it asks is meant to change.
        lessons: where the fact's pictures are found; the edit wording's comes first.
        drawings: so many of them at most.
    """
    fragments = dict.fromkeys(
        " ".join(text.split()[-context_words:]) for text in texts if fact.subject not in text
    )
    pool = [fragment for fragment in fragments if fragment]
    drawn = random.Random(f"{seed}/{fact.id}").sample(pool, min(contexts, len(pool)))
    question = fact.edit.understand.text
    pictured = [
        lesson.example
        for lesson in lessons
        if lesson.about == fact.id and lesson.direction is Direction.GENERATION
    ]
    pictured.sort(key=lambda example: example.prompt.text != fact.edit.generate.text)
    return ValueRequest(
        fact_id=fact.id,
        subject=fact.subject,
        target=fact.target_new,
        contexts=(question, *(f"{prefix} {question}" for prefix in drawn)),
        essence=tuple(
            template.replace("{subject}", fact.subject)
            for template in essence
            if fact.relation not in template
        ),
        drawings=tuple(pictured[:drawings]),
    )
