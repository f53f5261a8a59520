"""Frozen values that travel between models, benchmarks, judges and interventions.

Knows nothing of torch, MLflow, files or any particular model.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from PIL import Image


class Direction(StrEnum):
    """One of the two ways a unified model is asked."""

    UNDERSTANDING = "understanding"
    GENERATION = "generation"


def png_bytes(image: Image.Image) -> bytes:
    """The picture as PNG bytes: lossless, and the same bytes for the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def image_digest(image: Image.Image) -> str:
    """SHA-256 over mode, size and pixels (not over an encoding of them)."""
    head = f"{image.mode}:{image.size}:".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: text, and the pictures that come before it.

    A generation prompt that holds a picture asks for an edit of that picture.
    """

    text: str
    images: tuple[Image.Image, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Content hash: equal prompts, equal digests, in any process."""
        parts = [self.text, *(image_digest(image) for image in self.images)]
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Item:
    """One question with a prompt for each direction.

    Attributes:
        id: unique within its benchmark or fact file.
        category: one of the benchmark's categories.
        subcategory: finer kind within the category.
        understand: the question to be answered in text.
        generate: the same question, to be answered by drawing.
        accepted: every text answer that counts as right; the first one is the reference.
        target: what a right picture must show, in the words of the benchmark's own judge.
        reference_images: pictures that would be right (for people, and for judges that look).
        choices: the options offered, if the question is a multiple choice.
        tags: what is known of the item (teaching group, split, ...), for tables and filters.
    """

    id: str
    category: str
    subcategory: str
    understand: Prompt
    generate: Prompt
    accepted: tuple[str, ...]
    target: Mapping[str, Any] = field(default_factory=dict)
    reference_images: tuple[Image.Image, ...] = ()
    choices: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, direction: Direction) -> Prompt:
        """The prompt of one direction."""
        return self.understand if direction is Direction.UNDERSTANDING else self.generate

    @property
    def reference_text(self) -> str:
        """The first accepted answer."""
        return self.accepted[0]

    @cached_property
    def digest(self) -> str:
        """Content hash of everything that a response or a verdict depends on."""
        parts = (
            self.id,
            self.category,
            self.subcategory,
            self.understand.digest,
            self.generate.digest,
            self.accepted,
            self.target,
            self.choices,
        )
        text = json.dumps(parts, sort_keys=True, default=dict)
        return hashlib.sha256(text.encode()).hexdigest()


def items_digest(items: Iterable[Item]) -> str:
    """Content hash of a list of items, in order."""
    return hashlib.sha256("\n".join(item.digest for item in items).encode()).hexdigest()


@dataclass(frozen=True)
class Response:
    """What a model gave for one item in one direction: a text, a picture, or an error."""

    item_id: str
    direction: Direction
    text: str | None = None
    image: Image.Image | None = None
    error: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one response. `correct` is None where the response was not scored."""

    item_id: str
    direction: Direction
    correct: bool | None
    reason: str = ""


@dataclass(frozen=True)
class Fact:
    """A piece of knowledge to be written into a model, with all the questions that test it.

    Every probe is an `Item` and so can be asked in both directions. Probes of `edit`, `reworded`
    and `derived` accept what is right AFTER the edit; `neighbours` accept what is right anyway.

    Attributes:
        subject: the words whose last token carries the fact; stands in every understanding prompt
            of `edit` and `reworded`.
        relation: name of the relation ("colour").
        target_true: the answer before the edit.
        target_new: the answer wanted after it.
        edit: the wording that interventions are given.
        taught: further wordings for interventions that train on several.
        reworded: other wordings, never given to interventions (generalisation).
        neighbours: facts that must stay as they are (locality).
        derived: facts that follow from the new one, e.g. two hops away (portability).
    """

    id: str
    subject: str
    relation: str
    target_true: str
    target_new: str
    edit: Item
    taught: tuple[Item, ...] = ()
    reworded: tuple[Item, ...] = ()
    neighbours: tuple[Item, ...] = ()
    derived: tuple[Item, ...] = ()
    split: str = "test"


@dataclass(frozen=True)
class Example:
    """A prompt with the answer it should get: a text or a picture. The unit of training."""

    prompt: Prompt
    answer: str | Image.Image
