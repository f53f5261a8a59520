"""tinyworld: a procedural benchmark of pictures, asked in both directions, with exact truth.

Four categories as in GapEval. Items are the held-out side of a stateless split, so that none can
stand in training data; they are the same in every process, and their content is hashed. Nothing of
models or judges is known here.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from gapeval_lab.benchmarks import tinyworld_entities as people
from gapeval_lab.benchmarks.tinyworld_tasks import (
    INSTRUCTION,
    KNOWLEDGE,
    NUMERICAL,
    OPERATIONS,
    REASONING,
    Operation,
    Question,
    ask,
    draw_target,
)
from gapeval_lab.interfaces import Lesson
from gapeval_lab.items import Direction, Example, Item, Prompt, items_digest
from gapeval_lab.scene import TARGETS, render

PER_CATEGORY = 480


class TinyWorld(BaseModel):
    """The benchmark. Has no settings: a score on tinyworld 1.0 means one thing only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return "tinyworld"

    @property
    def version(self) -> str:
        """Changes whenever an item does."""
        return "1.0"

    @property
    def categories(self) -> tuple[str, ...]:
        """GapEval's four, in its order."""
        return (INSTRUCTION, NUMERICAL, KNOWLEDGE, REASONING)

    def items(self) -> list[Item]:
        """All items, in a fixed order."""
        return list(_items())

    def training_texts(self) -> list[str]:
        """Questions in text that training may show: for second moments, prefixes and replay."""
        return list(_training_texts())

    def rehearsal(self) -> list[Lesson]:
        """What the embedded model was taught about entities, in the directions in which it was."""
        return list(_rehearsal())

    def illustrate(self, target: Mapping[str, Any]) -> Image.Image | None:
        """A picture that the target accepts, always the same one; None for targets of other kinds."""
        return render(draw_target(target)) if TARGETS & target.keys() else None

    def content_hash(self) -> str:
        """SHA-256 over every item's content."""
        return items_digest(_items())


def to_item(question: Question, identity: str, tags: dict[str, str]) -> Item:
    """The question as a benchmark item, its pictures rendered."""
    shown = (render(question.shown),) if question.shown is not None else ()
    edited = shown if question.edited == question.shown else ()
    return Item(
        id=identity,
        category=question.category,
        subcategory=question.subcategory,
        understand=Prompt(question.understand, shown),
        generate=Prompt(question.generate, edited),
        accepted=question.answers,
        target=question.target,
        references=(render(draw_target(question.target)),),
        tags={"operation": question.operation, "taught": question.taught, **tags},
    )


def held_out_questions(operation: Operation, number: int) -> list[Question]:
    """The operation's first so many distinct questions on the benchmark's side of the split."""
    seed = int(hashlib.sha256(operation.name.encode()).hexdigest()[:12], 16)
    rng = np.random.default_rng([people.WORLD_SEED, seed])
    found: dict[str, Question] = {}
    while len(found) < number:
        question = ask(operation, rng)
        if question.held_out:
            found.setdefault(question.key, question)
    return list(found.values())


@cache
def _items() -> tuple[Item, ...]:
    made: list[Item] = []
    for category in (INSTRUCTION, NUMERICAL, KNOWLEDGE, REASONING):
        made += _knowledge() if category == KNOWLEDGE else _procedural(category)
    return tuple(made)


def _procedural(category: str) -> list[Item]:
    operations = [operation for operation in OPERATIONS if operation.category == category]
    kinds = {operation.subcategory for operation in operations}
    made = []
    for operation in operations:
        sharing = sum(other.subcategory == operation.subcategory for other in operations)
        questions = held_out_questions(operation, PER_CATEGORY // (len(kinds) * sharing))
        made += [
            to_item(question, f"{operation.name}-{i:03d}", {"split": _half(question.key)})
            for i, question in enumerate(questions)
        ]
    return made


def _knowledge() -> list[Item]:
    return [
        to_item(question, question.key.replace("|", "-"), _about(question))
        for question in people.benchmark_questions()
    ]


def _about(question: Question) -> dict[str, str]:
    entity = people.entities()[question.key.split("|")[0]]
    composed = question.subcategory == "two_hop" and people.composed_only(entity)
    return {"split": _half(entity.name), "entity": entity.name, **({"composed": "yes"} if composed else {})}


def _half(key: str) -> str:
    """Half of the items are for development (searches), half for tests."""
    return "dev" if hashlib.sha256(f"half|{key}".encode()).digest()[0] % 2 else "test"


@cache
def _rehearsal() -> tuple[Lesson, ...]:
    lessons = []
    for question in people.trained_questions():
        name = question.key.split("|")[0]
        if question.taught in ("both", "text"):
            told = Example(Prompt(question.understand), question.answers[0])
            lessons.append(Lesson(name, Direction.UNDERSTANDING, told))
        if question.taught in ("both", "image"):
            drawn = Example(Prompt(question.generate), render(draw_target(question.target)))
            lessons.append(Lesson(name, Direction.GENERATION, drawn))
    return tuple(lessons)


@cache
def _training_texts() -> tuple[str, ...]:
    known = [q.understand for q in people.trained_questions() if q.taught in ("both", "text")]
    rng = np.random.default_rng([people.WORLD_SEED, 1])
    sums = next(operation for operation in OPERATIONS if operation.name == "plus")
    asked: list[Any] = [ask(sums, rng) for _ in range(300)]
    counted = [question.understand for question in asked if not question.held_out]
    texts = list(dict.fromkeys([*known, *counted]))
    return tuple(texts[i] for i in rng.permutation(len(texts)))
