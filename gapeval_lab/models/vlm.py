"""The settings of models that read pictures and answer in text: LLaVA, Qwen-VL, InternVL and their kin.

Light to import; `load` brings in the rest. Such a model does not draw: it has one direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from gapeval_lab.models.load_options import LoadOptions

if TYPE_CHECKING:
    from torch import nn

    from gapeval_lab.interfaces import Sites
    from gapeval_lab.models.vlm_model import LoadedVlm


class SiteTable(BaseModel):
    """Where things are in a model whose names are not the usual ones; see `Sites`.

    Attributes:
        templates: site -> module path from the root, with one `{}` for the layer, or none.
        layers: number of layers.
        transposed: True where weights are stored (in, out).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    templates: dict[str, Annotated[str, Field(pattern=r"^[^{}]+(\{\}[^{}]*)?$")]] = Field(min_length=1)
    layers: int = Field(ge=1)
    transposed: bool = False


class Vlm(LoadOptions):
    """Which model, and how it answers; how it is loaded: see `LoadOptions`.

    Any image-text-to-text model of the transformers library, with its own processor and chat template.
    Text answers are always the likeliest ones.

    Attributes:
        max_new_tokens: longest text answer.
        batch: prompts per forward pass; changes speed and memory, not answers.
        sites: None takes them from the model's own decoder, which works for the naming of Llama, Qwen and
            Mistral.
    """

    max_new_tokens: int = Field(default=64, ge=1)
    batch: int = Field(default=16, ge=1)
    sites: SiteTable | None = None

    def load(self) -> LoadedVlm:
        """Read the weights.

        Raises:
            UserError: weights or device are not there, not whole, or of no such model.
        """
        from gapeval_lab.models.vlm_model import load

        return load(self)

    def sketch(self) -> nn.Module:
        """The model's modules without weights, on torch's meta device.

        Raises:
            UserError: there is no config.json of such a model.
        """
        from gapeval_lab.models.vlm_model import sketch

        return sketch(self)

    def sites_in(self, root: nn.Module) -> Sites:
        """The sites of such a root.

        Raises:
            UserError: they are not found there.
        """
        from gapeval_lab.models.vlm_sites import find_sites

        return find_sites(root, self.sites)
