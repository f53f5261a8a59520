"""R-ROME: ROME whose key is the mean over contexts wherever it stands in the update.

    W' = W + Lambda (C^-1 k*)^T,   Lambda = (v* - W k*) / ((C^-1 k*)^T k*)     k* is the mean everywhere

The code that ROME was published with takes the bare question's key in the divisor and in W k*, which some
facts answer with a change that breaks the model. After Gupta et al. 2024, "Rebuilding ROME: Resolving Model
Collapse during Sequential Model Editing" (arXiv 2403.07175). The native `rome` follows the paper's equation
and so is R-ROME unless `compat` says otherwise; here it cannot.
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from gapeval_lab.interventions.rome import Rome


class RRome(Rome):
    """R-ROME's settings: ROME's, without the key of the published code."""

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.compat.divisor == "question":
            raise ValueError(
                "compat: its divisor 'question' is what R-ROME mends; leave compat out, or use rome"
            )
        return self
