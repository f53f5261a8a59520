"""Two models as one: the first answers in text, the second draws. The baseline that is not unified.

Light to import; `load` brings in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from gapeval_lab.models.pair_model import LoadedPair
    from gapeval_lab.registry import Kind


class Half(BaseModel):
    """One of the two models: a plug-in by name, with its settings beside the name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    use: str = Field(min_length=1)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything beside `use`."""
        return dict(self.model_extra or {})


class Pair(BaseModel):
    """Which two models.

    Attributes:
        understand: answers in text. Interventions write into this one.
        generate: draws.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: ClassVar[Mapping[str, Kind]] = {"understand": "models", "generate": "models"}
    """Which keys hold a node of their own, for recipes."""

    understand: Half
    generate: Half

    def load(self) -> LoadedPair:
        """Load both.

        Raises:
            UserError: a model cannot be loaded, or lacks the direction that it is here for.
        """
        from gapeval_lab.models.pair_model import load

        return load(self)
