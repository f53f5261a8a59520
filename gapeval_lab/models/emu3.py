"""The settings of the Emu3 family: Emu3-Chat, Emu3-Gen, and small models of the same kind.

Light to import, so that a recipe is checked in no time; `load` brings in the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from gapeval_lab.models.load_options import LoadOptions

if TYPE_CHECKING:
    from torch import nn

    from gapeval_lab.interfaces import Sites
    from gapeval_lab.models.emu3_model import LoadedEmu3


class Emu3(LoadOptions):
    """Which Emu3, and how it answers; how it is loaded: see `LoadOptions`.

    Attributes:
        weights: "embedded", a folder in Hugging Face format, or a hub id (the only one of the three
            that uses the network).
        attention: the trunk's implementation; flash attention needs a CUDA device, its package and a dtype
            of 16 bits.
        temperature: of drawing; 0 takes the likeliest code.
        answer_temperature: of text answers; 0 takes the likeliest token.
        top_k: drawing takes one of so many of the likeliest codes; None: of all.
        guidance: classifier-free guidance of drawing, on all logits; 1 is none.
        negative_prompt: what guidance leads away from; the empty text is drawing without a prompt.
        size: height and width of drawings in pixels, multiples of the picture tokenizer's factor (8 in
            published checkpoints). None: the square nearest to 720 x 720 that the checkpoint's picture
            settings allow.
        max_new_tokens: longest text answer.
        batch: prompts per forward pass; changes speed and memory, not answers.
    """

    weights: str = "embedded"
    temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    answer_temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1)
    guidance: float = Field(default=1.0, ge=1.0, allow_inf_nan=False)
    negative_prompt: str = ""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    max_new_tokens: int = Field(default=32, ge=1)
    batch: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _every_setting_counts(self) -> Emu3:
        if self.top_k is not None and self.temperature == 0:
            raise ValueError("top_k: has no effect at temperature 0; set a temperature, or leave it out")
        if self.negative_prompt and self.guidance == 1:
            raise ValueError("negative_prompt: has no effect at guidance 1; set guidance, or leave it out")
        if self.attention.startswith("flash") and self.dtype == "float32":
            raise ValueError(f"attention: '{self.attention}' has no float32; set dtype to bfloat16")
        return self

    def load(self) -> LoadedEmu3:
        """Read the weights.

        Raises:
            UserError: weights or device are not there, not whole, or not an Emu3.
        """
        from gapeval_lab.models.emu3_model import load

        return load(self)

    def sketch(self) -> nn.Module:
        """The model's modules without weights, on torch's meta device.

        Raises:
            UserError: there is no config.json of an Emu3.
        """
        from gapeval_lab.models.emu3_model import sketch

        return sketch(self)

    def sites_in(self, root: nn.Module) -> Sites:
        """The sites of such a root."""
        from gapeval_lab.models.sites import family_sites

        return family_sites(root, "emu3")
