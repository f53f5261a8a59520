"""A model that names one colour and paints everything in it: the least that gapeval_lab can measure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Never

from pydantic import BaseModel, ConfigDict, Field

from gapeval_lab.errors import UserError
from gapeval_lab.items import Direction

if TYPE_CHECKING:
    from PIL import Image


class OneColour(BaseModel):
    """The settings: what recipes hold beside `use: one_colour`. Light to import."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    colour: str = "red"
    size: int = Field(default=48, ge=1)

    def load(self) -> LoadedOneColour:
        """Import heavy libraries and read weights here."""
        return LoadedOneColour(self)


class LoadedOneColour:
    """The model: lists in, lists of the same length out."""

    directions = frozenset(Direction)

    def __init__(self, settings: OneColour) -> None:
        self.chosen, self.name = settings, f"one_colour/{settings.colour}"

    def answer(self, prompts: Any, *, seeds: Any) -> list[str]:
        return [self.chosen.colour for _ in prompts]

    def draw(self, prompts: Any, *, seeds: Any) -> list[Image.Image]:
        from PIL import Image

        size = (self.chosen.size, self.chosen.size)
        return [Image.new("RGB", size, self.chosen.colour) for _ in prompts]

    def settings(self) -> dict[str, Any]:
        return self.chosen.model_dump()

    def identity(self) -> str:
        return self.name

    def loss(self, examples: Any, direction: Direction) -> Never:
        raise UserError(f"model: {self.name} gives no likelihoods")

    def backbone(self) -> Never:
        raise UserError(f"model: {self.name} has no weights")
