"""What drawing from words is set to (`evaluation.reasoning`), and what sections of a recipe are made of.

Checks what people wrote. Asks no model: `Reasoning` is carried out by reasoning.py.
"""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Text = Annotated[str, StringConstraints(min_length=1)]

Protocol = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=20)]
"""What a way of drawing is called, in recipes, tables and metrics."""

DIRECT = "direct"
"""The protocol that is always there: the probe's own drawing prompt."""

TAKEN = (DIRECT, "text", "image")  # the sides of edit quality stand beside protocols in metrics

PLACEHOLDER = re.compile(r"\{(\w*)\}")

OF_PROBE = ("subject", "relation", "question", "prompt")
"""Placeholders that a probe and its fact fill in."""


class Strict(BaseModel):
    """Base of the schema: frozen, nothing extra, no conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Reasoning(Strict):
    """The model first writes what it knows, then draws from its own words; beside drawing directly.

    This is the reasoning-augmented evaluation of UniKE (Gao et al. 2026, arXiv 2606.00477). Questions
    and drawing prompts may hold {question} and {prompt}, the probe's own texts, {subject} and {relation}.

    Attributes:
        questions: asked in text, one after the other; from the second on, {text} is what has been
            written so far.
        note: what is written down of each answer, end of line included: {answer}, and {asked}.
        draw: protocol -> the drawing prompt it makes of what was written: {text} is all of it,
            {caption} the last line of the answers, without a leading "Caption:".
    """

    questions: Annotated[tuple[Text, ...], Field(min_length=1)] = (
        "You will be asked for this picture: {prompt}\n"
        "Do not draw it yet. First describe in words what you know about its subject, as far as it can be "
        "seen. Then say in one sentence, on a last line that begins with 'Caption:', what the picture shows.",
    )
    note: Text = "{answer}\n"
    draw: Annotated[dict[Protocol, Text], Field(min_length=1)] = {"whole": "{text}", "caption": "{caption}"}

    @model_validator(mode="after")
    def _placeholders(self) -> Self:
        for number, question in enumerate(self.questions):
            _check(f"questions.{number}", question, (*OF_PROBE, *(["text"] if number else [])), ())
        _check("note", self.note, ("asked", "answer"), ("answer",))
        for name, template in self.draw.items():
            if name in TAKEN:
                raise ValueError(f"draw.{name}: this name is taken; choose another")
            _check(f"draw.{name}", template, (*OF_PROBE, "text", "caption"), ("text", "caption"))
        return self

    def uses(self, name: str) -> bool:
        """Whether a question or a drawing prompt holds the placeholder."""
        return any(name in PLACEHOLDER.findall(text) for text in (*self.questions, *self.draw.values()))


def _check(field: str, template: str, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    """Refuse unknown placeholders, and a template that has none of the needed ones."""
    held = PLACEHOLDER.findall(template)
    for name in held:
        if name not in known:
            choices = ", ".join(f"{{{one}}}" for one in known)
            raise ValueError(f"{field}: {{{name}}} is unknown here; use {choices}")
    if needed and not set(needed) & set(held):
        wanted = " or ".join(f"{{{one}}}" for one in needed)
        raise ValueError(f"{field}: should hold {wanted}, what the model wrote; got {template!r}")
