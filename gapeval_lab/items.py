"""Frozen values that travel between models, benchmarks, judges and interventions.

Knows nothing of torch, MLflow or any particular model. Pictures may lie in files and are then read
when they are looked at, so that thousands of items take little memory.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
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
    """SHA-256 over mode, size, palette if it has one, and pixels (not over an encoding of them)."""
    head = f"{image.mode}:{image.size}:".encode() + bytes(image.getpalette("RGBA") or ())
    return hashlib.sha256(head + image.tobytes()).hexdigest()


@dataclass(frozen=True)
class PictureFile:
    """A picture on disk, in any format that Pillow reads."""

    path: Path

    def open(self) -> Image.Image:
        """The picture, RGB; read anew at each call.

        Raises:
            OSError: it cannot be read.
        """
        try:
            with Image.open(self.path) as image:
                return image.convert("RGB")
        # What Pillow raises for some broken files, and for ones that would fill the memory.
        except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise OSError(f"{self.path}: {error}") from None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the file's bytes."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


Picture = Image.Image | PictureFile
"""A picture in memory, or one that is read when it is looked at."""


def opened(picture: Picture) -> Image.Image:
    """The picture itself."""
    return picture.open() if isinstance(picture, PictureFile) else picture


def picture_digest(picture: Picture) -> str:
    """Content hash; a file and the same picture in memory have different ones."""
    return picture.digest if isinstance(picture, PictureFile) else image_digest(picture)


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: text, and the pictures that come before it.

    A generation prompt that holds a picture asks for an edit of that picture.
    """

    text: str
    pictures: tuple[Picture, ...] = ()

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The pictures, to be looked at; those on disk are read at each call."""
        return tuple(opened(picture) for picture in self.pictures)

    @cached_property
    def digest(self) -> str:
        """Content hash: equal prompts, equal digests, in any process."""
        parts = [self.text, *(picture_digest(picture) for picture in self.pictures)]
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
        references: pictures that would be right (for people, and for judges that look).
        choices: the options offered, if the question is a multiple choice.
        tags: what is known of the item (teaching group, split, ...), for tables and filters.
        directions: in which it is asked and scored; the other prompt is there to be read, or for protocols.
    """

    id: str
    category: str
    subcategory: str
    understand: Prompt
    generate: Prompt
    accepted: tuple[str, ...]
    target: Mapping[str, Any] = field(default_factory=dict)
    references: tuple[Picture, ...] = ()
    choices: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    directions: frozenset[Direction] = frozenset(Direction)

    @property
    def reference_images(self) -> tuple[Image.Image, ...]:
        """The references, to be looked at; those on disk are read at each call."""
        return tuple(opened(picture) for picture in self.references)

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
        parts: tuple[Any, ...] = (
            self.id,
            self.category,
            self.subcategory,
            self.understand.digest,
            self.generate.digest,
            self.accepted,
            self.target,
            self.choices,
            [picture_digest(picture) for picture in self.references],
        )
        if len(self.directions) < len(Direction):  # others keep the hash that they had before there were such
            parts += (sorted(self.directions),)
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
    picture: Picture | None = None
    error: str | None = None

    @property
    def image(self) -> Image.Image | None:
        """The picture, to be looked at; one on disk is read at each call."""
        return None if self.picture is None else opened(self.picture)


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
