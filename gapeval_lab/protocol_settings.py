"""Ways of asking beside the direct one, as a recipe's `evaluation.protocols` names them:

    evaluation:
      protocols:
        told_first: {use: tell_then_draw, draw: "draw {answer} ."}
        drawn_first: {use: draw_then_tell}
        thought: {use: think}
        five: {use: samples, k: 5}
        own_eyes: {use: self_judged}

Texts may hold {question} and {prompt}, the item's own texts for telling and drawing, and {tag_NAME}, one
of its tags; an item that lacks the tag is asked directly. Checks what people wrote; asks no model.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gapeval_lab.sections import PLACEHOLDER, Strict, Text

OF_ITEM = ("question", "prompt")
"""Placeholders that every item fills in."""

TAG = "tag_"
"""What placeholders of tags begin with."""


class TellThenDraw(Strict):
    """The item is answered in text, and drawn from that answer. Only drawings differ from the direct ones.

    Attributes:
        ask: what is asked in text; None takes the direct answer to the item's own question.
        draw: the drawing prompt: {answer} is what the model said. Pictures of the item's own drawing
            prompt stay with it.
    """

    use: Literal["tell_then_draw"]
    ask: Text | None = None
    draw: Text = "{prompt}\nWhat it should show, in words: {answer}"

    @model_validator(mode="after")
    def _texts(self) -> Self:
        if self.ask is not None:
            check_text("ask", self.ask)
        check_text("draw", self.draw, needed="answer")
        return self


class DrawThenTell(Strict):
    """The item is drawn, and answered with that drawing at hand. Only answers differ from the direct ones.

    Attributes:
        draw: what is drawn; None takes the direct drawing.
        ask: the question, after the item's own pictures and the drawing.
    """

    use: Literal["draw_then_tell"]
    draw: Text | None = None
    ask: Text = "{question}"

    @model_validator(mode="after")
    def _texts(self) -> Self:
        if self.draw is not None:
            check_text("draw", self.draw)
        check_text("ask", self.ask)
        return self


class Think(Strict):
    """The model reasons in text first (chain of thought), then answers or draws with its thought at hand.

    Attributes:
        directions: where; the other one stays as it is asked directly. Of a model that only tells:
            understanding alone.
        think: what is asked first: {task} is the item's text in the direction at hand.
        answer: the final prompt: {thought} is what the model wrote.
    """

    use: Literal["think"]
    directions: Annotated[tuple[Literal["understanding", "generation"], ...], Field(min_length=1)] = (
        "understanding",
        "generation",
    )
    think: Text = "{task}\nDo not answer yet. Reason about it step by step, in words."
    answer: Text = "{task}\nYour reasoning: {thought}\nNow answer, with the result alone."

    @model_validator(mode="after")
    def _texts(self) -> Self:
        check_text("think", self.think, further=("task",))
        check_text("answer", self.answer, further=("task",), needed="thought")
        return self


class Samples(Strict):
    """Every item is asked `k` times with random numbers of its own each time: the mean, and pass@k.

    Means something where the model samples; the likeliest answer is the same k times.
    """

    use: Literal["samples"]
    k: Annotated[int, Field(ge=2, le=100)] = 5


class SelfJudged(Strict):
    """The model judges its own direct answers and drawings; beside that, how often it agrees with the judge.

    Attributes:
        told: asked about an answer, with the pictures of its question: {answer}.
        drawn: asked about a drawing, which is the last picture.
        yes, no: what the reply must begin with; any other reply is not scored.
    """

    use: Literal["self_judged"]
    told: Text = "{question}\nProposed answer: {answer}\nIs it right? Say yes or no."
    drawn: Text = "This picture was made for: {prompt}\nIs it right? Say yes or no."
    yes: Text = "yes"
    no: Text = "no"

    @model_validator(mode="after")
    def _texts(self) -> Self:
        check_text("told", self.told, needed="answer")
        check_text("drawn", self.drawn)
        if self.yes.strip().lower() == self.no.strip().lower():
            raise ValueError(f"yes and no are the same word ({self.yes!r}); choose two")
        return self


ProtocolNode = Annotated[
    TellThenDraw | DrawThenTell | Think | Samples | SelfJudged, Field(discriminator="use")
]


def check_text(field: str, text: str, *, further: tuple[str, ...] = (), needed: str | None = None) -> None:
    """Refuse unknown placeholders, and a text without the one that it is about."""
    known = (*OF_ITEM, *further, *((needed,) if needed else ()))
    held = PLACEHOLDER.findall(text)
    for name in held:
        if name not in known and not (name.startswith(TAG) and name != TAG):
            choices = ", ".join(f"{{{one}}}" for one in (*known, f"{TAG}NAME"))
            raise ValueError(f"{field}: {{{name}}} is unknown here; use {choices}")
    if needed is not None and needed not in held:
        raise ValueError(f"{field}: should hold {{{needed}}}, what the model gave; got {text!r}")
