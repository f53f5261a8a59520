"""The settings of the Janus family: Janus-1.3B, Janus-Pro, and the embedded UMM.

Light to import, so that a recipe is checked in no time; `load` brings in the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gapeval_lab.models.load_options import LoadOptions

if TYPE_CHECKING:
    from torch import nn

    from gapeval_lab.interfaces import Sites
    from gapeval_lab.models.janus_model import LoadedJanus


class Janus(LoadOptions):
    """Which Janus, and how it answers; how it is loaded: see `LoadOptions`.

    Attributes:
        weights: "embedded", a folder in Hugging Face format, or a hub id (the only one of the three
            that uses the network).
        temperature: of drawing; 0 takes the likeliest code.
        answer_temperature: of text answers; 0 takes the likeliest token.
        guidance: classifier-free guidance of drawing; 1 is none.
        max_new_tokens: longest text answer.
        batch: prompts per forward pass; changes speed and memory, not answers.
    """

    weights: str = "embedded"
    temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    answer_temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    guidance: float = Field(default=1.0, ge=1.0, allow_inf_nan=False)
    max_new_tokens: int = Field(default=32, ge=1)
    batch: int = Field(default=256, ge=1)

    def load(self) -> LoadedJanus:
        """Read the weights.

        Raises:
            UserError: weights or device are not there, not whole, or not a Janus.
        """
        from gapeval_lab.models.janus_model import load

        return load(self)

    def sketch(self) -> nn.Module:
        """The model's modules without weights, on torch's meta device.

        Raises:
            UserError: there is no config.json of a Janus.
        """
        from gapeval_lab.models.janus_model import sketch

        return sketch(self)

    def sites_in(self, root: nn.Module) -> Sites:
        """The sites of such a root."""
        from gapeval_lab.models.sites import family_sites

        return family_sites(root, "janus")
