"""EMMET: a batch of facts memorised exactly, ROME's constraint for many facts at once.

    X = C^-1 K (K^T C^-1 K + epsilon I)^-1        epsilon = `key_ridge`, relative

With epsilon 0 every key gets its value exactly, W' k_i = W k_i + r_i, at the least disturbance of what
the layer is used to; epsilon guards against keys that nearly coincide. After Gupta et al. 2024, "A Unified
Framework for Model Editing" (arXiv 2403.14236), eq. 10. See spread.py for the rest.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gapeval_lab.interventions import spread
from gapeval_lab.interventions.editing import Memory
from gapeval_lab.interventions.moments import SecondMoment


class Emmet(spread.SpreadSettings):
    """EMMET's settings.

    Attributes:
        key_ridge: epsilon, as a share of the mean diagonal of K^T C^-1 K.
    """

    weight_decay: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    clamp_norm_factor: float = Field(default=0.75, gt=0, allow_inf_nan=False)
    key_ridge: float = Field(default=1e-6, ge=0, allow_inf_nan=False)

    def _shape(self) -> spread.Shape:
        return spread.Shape(self._solve)

    def _solve(self, moment: SecondMoment, keys: Tensor, path: str, memory: Memory) -> Tensor:
        near = moment.solve(keys, ridge=self.ridge)
        inner = keys.T @ near
        inner = inner + self.key_ridge * inner.diagonal().mean() * torch.eye(len(inner), dtype=torch.float64)
        # Keys that coincide have no solution where epsilon is 0; the norm's guard then refuses the update.
        solved: Tensor = near @ torch.linalg.pinv(inner, hermitian=True)
        return solved
