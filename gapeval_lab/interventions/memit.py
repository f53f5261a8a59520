"""MEMIT: many facts at once, spread over several layers, at the least disturbance of what a layer is used to.

    X = (lambda C + K K^T)^-1 K        lambda = `moment_weight`

After Meng et al. 2023, "Mass-Editing Memory in a Transformer" (arXiv 2210.07229), eq. 14. See spread.py
for the rest.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gapeval_lab.interventions import spread
from gapeval_lab.interventions.editing import Memory
from gapeval_lab.interventions.moments import SecondMoment


class Memit(spread.SpreadSettings):
    """MEMIT's settings. The paper's values where it gives them, for models of its size.

    Attributes:
        moment_weight: lambda: how much what the layer is used to weighs against the facts.
    """

    weight_decay: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    clamp_norm_factor: float = Field(default=0.75, gt=0, allow_inf_nan=False)
    moment_weight: float = Field(default=15000.0, gt=0, allow_inf_nan=False)

    def _shape(self) -> spread.Shape:
        return spread.Shape(self._solve)

    def _solve(self, moment: SecondMoment, keys: Tensor, path: str, memory: Memory) -> Tensor:
        # (lambda C + K K^T)^-1 K = A (I + K^T A)^-1 with A = (lambda C)^-1 K: n x n instead of in x in.
        near = moment.solve(keys, ridge=self.ridge) / self.moment_weight
        inner = torch.eye(keys.shape[1], dtype=torch.float64) + keys.T @ near
        solved: Tensor = torch.linalg.solve(inner, near, left=False)
        return solved
