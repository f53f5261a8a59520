"""PMET: values sought for attention and MLP together, of which the MLP's alone are written.

    z         the MLP's output at the highest layer with its delta, sought beside one of the attention's
    X = (lambda C + K K^T)^-1 K, as MEMIT;        d = sqrt(layers left)

So the weights are not asked to hold what attention contributes. After Li et al. 2024, "PMET: Precise Model
Editing in a Transformer" (arXiv 2308.08742), eqs. 12 to 15. See spread.py for the rest.
"""

from __future__ import annotations

import math

from pydantic import Field

from gapeval_lab.interventions import spread
from gapeval_lab.interventions.memit import Memit


class Pmet(Memit):
    """PMET's settings: MEMIT's, and the attention's site.

    Attributes:
        attention_site: the site whose output gets a value that is not written.
    """

    attention_site: str = Field(default="attn_out", min_length=1)

    def _shape(self) -> spread.Shape:
        return spread.Shape(self._solve, divide=math.sqrt, goals=(self.site, self.attention_site))
