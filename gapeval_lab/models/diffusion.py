"""The settings of diffusion pipelines: text to picture, and picture editing where a pipeline can do it.

Light to import, so that a recipe is checked in no time; `load` brings in the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from gapeval_lab.models.diffusion_model import LoadedDiffusion

Scale = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1)]


class Diffusion(BaseModel):
    """Which pipeline of the diffusers library, and how it draws.

    What is null is left to the pipeline. An option that the pipeline does not take is an error.

    Attributes:
        weights: a folder in diffusers format (it holds model_index.json), or a hub id.
        dtype: of weights and arithmetic.
        device: "auto" is the first CUDA device if there is one, else the CPU.
        steps: denoising steps.
        guidance: how strongly the prompt is followed.
        true_guidance: the same, of pipelines that were distilled and take a second scale beside theirs.
        image_guidance: how strongly the picture to edit is kept, of pipelines such as InstructPix2Pix.
        strength: how far an edited picture may leave the given one, 0 to 1, of image-to-image pipelines.
        size: width and height of the pictures, in pixels.
        negative: what the pictures should not show.
        batch: pictures per pass where a prompt is text alone; edits are made one by one. A call is always
            filled up to it, so that no picture depends on its neighbours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    steps: int | None = Field(default=None, ge=1)
    guidance: Scale | None = None
    true_guidance: Scale | None = None
    image_guidance: Scale | None = None
    strength: float | None = Field(default=None, gt=0.0, le=1.0)
    size: tuple[Side, Side] | None = None
    negative: str | None = None
    batch: int = Field(default=1, ge=1)

    def load(self) -> LoadedDiffusion:
        """Read the weights.

        Raises:
            UserError: weights or device are not there, not whole, no pipeline that draws from a prompt,
                or one that does not take an option.
        """
        from gapeval_lab.models.diffusion_model import load

        return load(self)
