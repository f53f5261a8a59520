"""What benchmarks have in common that are read from a user's copy of published data. Knows no layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict

from gapeval_lab.interfaces import Lesson
from gapeval_lab.items import Item, items_digest


class PublishedData(BaseModel, ABC):
    """Items that others wrote: nothing can be drawn by rule, taught or rehearsed beside them.

    Attributes:
        flawed: whether items that cannot be used are an error or are left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flawed: Literal["refuse", "skip"] = "refuse"

    @property
    @abstractmethod
    def _items(self) -> tuple[Item, ...]:
        """What was read, in the order of the data."""

    def items(self) -> list[Item]:
        """All items that can be used, in the order of the data; read once per settings object.

        Raises:
            UserError: the place cannot be read, or (unless they are skipped) with every flaw of every item.
        """
        return list(self._items)

    def training_texts(self) -> list[str]:
        """None: the data has no questions beside its items."""
        return []

    def rehearsal(self) -> list[Lesson]:
        """None: nothing is known of what a model was taught."""
        return []

    def illustrate(self, target: Mapping[str, Any]) -> Image.Image | None:
        """None: these pictures cannot be drawn by rule."""
        return None

    def content_hash(self) -> str:
        """SHA-256 over every item's content."""
        return items_digest(self._items)
