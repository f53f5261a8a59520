"""Two models as one: the first answers in text, the second draws. The baseline that is not unified.

Light to import; `load` brings in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from gapeval_lab.nested import ModelNode

if TYPE_CHECKING:
    from gapeval_lab.models.pair_model import LoadedPair


class Pair(BaseModel):
    """Which two models.

    Attributes:
        understand: answers in text. Interventions write into this one.
        generate: draws.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    understand: ModelNode
    generate: ModelNode

    def load(self) -> LoadedPair:
        """Load both.

        Raises:
            UserError: a model cannot be loaded, or lacks the direction that it is here for.
        """
        from gapeval_lab.models.pair_model import load

        return load(self)
