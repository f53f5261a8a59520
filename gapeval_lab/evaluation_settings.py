"""How a recipe's measuring is set: its section `evaluation`. Checks what people wrote; asks no model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gapeval_lab.protocol_settings import ProtocolNode
from gapeval_lab.sections import DIRECT, Protocol, Reasoning, Strict, Text


class Evaluation(Strict):
    """The protocol of a run.

    Attributes:
        batch: prompts per call of the model; changes speed, never answers.
        items: size of a subset that keeps the categories' shares; None means all.
        split: which half of the items, see splits.py; None means both.
        categories: which categories are asked; None means all.
        limit: at most this many items, the first ones, after everything else (for a quick look).
        replicates: bootstrap and permutation replicates.
        official: also compute the published estimator.
        reasoning: also draw the facts' probes from what the model writes about them; None does not.
        protocols: name -> a further way in which the items are asked, see protocol_settings.py.
    """

    batch: Annotated[int, Field(ge=1)] = 32
    items: Annotated[int, Field(ge=1)] | None = None
    split: Literal["dev", "test"] | None = None
    categories: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    replicates: Annotated[int, Field(ge=1)] = 10_000
    official: bool = True
    reasoning: Reasoning | None = None
    protocols: dict[Protocol, ProtocolNode] = {}

    @field_validator("protocols")
    @classmethod
    def _names(cls, given: dict[str, ProtocolNode]) -> dict[str, ProtocolNode]:
        if DIRECT in given:
            raise ValueError(f"{DIRECT}: this name is taken; choose another")
        return given
