"""The settings of models that read pictures and answer in text: LLaVA, Qwen-VL, InternVL and their kin.

Light to import; `load` brings in the rest. Such a model does not draw: it has one direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gapeval_lab.models.load_options import LoadOptions
from gapeval_lab.models.sites import SiteTable, family_sites, given_sites

if TYPE_CHECKING:
    from torch import nn

    from gapeval_lab.interfaces import Sites
    from gapeval_lab.models.vlm_model import LoadedVlm


class Vlm(LoadOptions):
    """Which model, and how it answers; how it is loaded: see `LoadOptions`.

    Any image-text-to-text model of the transformers library, with its own processor and chat template.
    Text answers are always the likeliest ones.

    Attributes:
        max_new_tokens: longest text answer.
        batch: prompts per forward pass; changes speed and memory, not answers.
        sites: None takes them from configs/models/sites/vlm.yaml, which fits the naming of Llama, Qwen and
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
        return family_sites(root, "vlm") if self.sites is None else given_sites(root, self.sites)
