"""AlphaEdit: changes that lie in the null space of what a layer is used to, so that it hardly notices them.

    P         (in, in) projection onto the eigenvectors of C whose eigenvalue is under the threshold
    K_p       keys of the batches written before
    X = P (K_p K_p^T P + K K^T P + alpha I)^-1 K        alpha = `l2`

Computed in the coordinates of the null space, where the matrix is symmetric. After Fang et al. 2025,
"AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models" (arXiv 2410.02355), eq. 14.
See spread.py for the rest.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gapeval_lab.errors import UserError
from gapeval_lab.interventions import spread
from gapeval_lab.interventions.editing import Memory
from gapeval_lab.interventions.moments import SecondMoment


class AlphaEdit(spread.SpreadSettings):
    """AlphaEdit's settings.

    Attributes:
        null_threshold: eigenvalues below it, as a share of C's mean eigenvalue, count as null. The paper
            has 0.01 or 0.02, not relative.
        l2: alpha, as a share of the mean squared length of the keys. The paper has 10, not relative.
    """

    weight_decay: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    clamp_norm_factor: float = Field(default=0.75, gt=0, allow_inf_nan=False)
    null_threshold: float = Field(default=2e-2, gt=0, allow_inf_nan=False)
    l2: float = Field(default=0.1, gt=0, allow_inf_nan=False)

    def _shape(self) -> spread.Shape:
        return spread.Shape(self._solve)

    def _solve(self, moment: SecondMoment, keys: Tensor, path: str, memory: Memory) -> Tensor:
        values, vectors = torch.linalg.eigh(moment.matrix)
        null = vectors[:, values < self.null_threshold * values.mean()]
        if null.shape[1] == 0:
            raise UserError(
                f"null_threshold: no eigenvalue of {path} is under {self.null_threshold} of their mean "
                f"(the least is {float(values.min() / values.mean()):.2g} of it); raise it"
            )
        inside = null.T @ keys
        earlier = memory.get(path, torch.zeros(len(inside), len(inside), dtype=torch.float64))
        now = earlier + inside @ inside.T
        memory[path] = now
        size = self.l2 * float(keys.square().sum(0).mean())
        solved = torch.linalg.solve(now + size * torch.eye(len(now), dtype=torch.float64), inside)
        spread_out: Tensor = null @ solved
        return spread_out
