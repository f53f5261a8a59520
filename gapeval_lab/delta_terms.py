"""What one parameter is added: a low-rank matrix as its factors, or a dense tensor.

    dW        the term of one parameter: up @ down with up (rows, rank), down (rank, columns); or dense

Numbers are float32 on the CPU and nobody else's. Knows no parameter names and no models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


def _own(tensor: Tensor) -> Tensor:
    """A float32 copy on the CPU that nobody else can change."""
    return tensor.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()


@dataclass(frozen=True, eq=False)
class LowRank:
    """dW = up @ down, kept as its factors (copied, float32, on the CPU).

    Attributes:
        up: (rows, rank).
        down: (rank, columns).
    """

    up: Tensor
    down: Tensor

    def __post_init__(self) -> None:
        if self.up.dim() != 2 or self.down.dim() != 2 or self.up.shape[1] != self.down.shape[0]:
            raise ValueError(f"not factors of a matrix: {tuple(self.up.shape)}, {tuple(self.down.shape)}")
        object.__setattr__(self, "up", _own(self.up))
        object.__setattr__(self, "down", _own(self.down))

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns) of dW."""
        return (self.up.shape[0], self.down.shape[1])

    @property
    def parts(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        return {"up": self.up, "down": self.down}

    def dense(self, device: torch.device | str = "cpu") -> Tensor:
        """dW, float32."""
        return self.up.to(device) @ self.down.to(device)

    def scaled(self, factor: float) -> LowRank:
        """factor * dW."""
        return LowRank(self.up * factor, self.down)

    def norm(self) -> float:
        """|dW|_F. With up = Q R it is |R down|_F, which needs no matrix of dW's size."""
        up, down = self.up.double(), self.down.double()
        if 0 < up.shape[1] < up.shape[0]:
            up = torch.linalg.qr(up, mode="r").R
        return float(torch.linalg.matrix_norm(up @ down))

    def random(self, generator: torch.Generator) -> LowRank:
        """Gaussian factors of the same shapes, not scaled."""
        return LowRank(
            torch.randn(self.up.shape, generator=generator),
            torch.randn(self.down.shape, generator=generator),
        )


@dataclass(frozen=True, eq=False)
class Dense:
    """dW itself (copied, float32, on the CPU)."""

    value: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _own(self.value))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of dW."""
        return tuple(self.value.shape)

    @property
    def parts(self) -> dict[str, Tensor]:
        """The stored tensor by name."""
        return {"dense": self.value}

    def dense(self, device: torch.device | str = "cpu") -> Tensor:
        """dW, float32."""
        return self.value.to(device)

    def scaled(self, factor: float) -> Dense:
        """factor * dW."""
        return Dense(self.value * factor)

    def norm(self) -> float:
        """|dW|_F."""
        return float(self.value.double().norm())

    def random(self, generator: torch.Generator) -> Dense:
        """A Gaussian tensor of the same shape, not scaled."""
        return Dense(torch.randn(self.value.shape, generator=generator))


Term: TypeAlias = LowRank | Dense
