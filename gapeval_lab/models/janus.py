"""The settings of the Janus family: Janus-1.3B, Janus-Pro, and the embedded UMM.

Light to import, so that a recipe is checked in no time; `load` brings in the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from gapeval_lab.models.janus_model import LoadedJanus


class Janus(BaseModel):
    """Which Janus, and how it answers.

    Attributes:
        weights: "embedded", a folder in Hugging Face format, or a hub id (the only one of the three
            that uses the network).
        dtype: of weights and arithmetic.
        device: "auto" is the first CUDA device if there is one, else the CPU.
        temperature: of drawing; 0 takes the likeliest code. Text answers are always the likeliest.
        guidance: classifier-free guidance of drawing; 1 is none.
        max_new_tokens: longest text answer.
        batch: prompts per forward pass; changes speed and memory, not answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = "embedded"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
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
