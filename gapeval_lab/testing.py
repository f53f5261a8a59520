"""Scripted fakes, one per protocol, for tests of this package and of plug-ins outside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from gapeval_lab.delta import LowRank, WeightDelta
from gapeval_lab.interfaces import Backbone, Encoded, Log, Side, Sites, Training
from gapeval_lab.items import Direction, Example, Fact, Item, Prompt, Response, Verdict

Tell = Callable[[Prompt, int], str]
Draw = Callable[[Prompt, int], Image.Image]


class ScriptedUMM:
    """A UMM that says what it is told to say. Its one weight is (4, 4) and starts as the identity.

    `tell` and `draw` get the prompt and its seed; they may look at `weight` to answer differently
    once it is edited, and may raise. `calls` counts prompts per direction.
    """

    name = "scripted"

    def __init__(self, tell: Tell, draw: Draw | None = None) -> None:
        """A model without `draw` has no generation direction."""
        self._tell, self._draw = tell, draw
        self.directions = frozenset(Direction) if draw else frozenset({Direction.UNDERSTANDING})
        self.root = nn.Sequential(nn.Linear(4, 4, bias=False))
        with torch.no_grad():
            self.weight.copy_(torch.eye(4))
        self.calls = dict.fromkeys(Direction, 0)

    @property
    def weight(self) -> nn.Parameter:
        """The one weight."""
        weight = self.root.get_parameter("0.weight")
        return weight

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        """As scripted."""
        self.calls[Direction.UNDERSTANDING] += len(prompts)
        return [self._tell(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Image.Image]:
        """As scripted."""
        if self._draw is None:
            raise ValueError("this fake draws nothing")
        self.calls[Direction.GENERATION] += len(prompts)
        return [self._draw(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def loss(self, examples: Sequence[Example], direction: Direction) -> Tensor:
        """One nat per example, times the weight's trace over its size."""
        return torch.ones(len(examples)) * self.weight.trace() / 4

    def backbone(self) -> Backbone:
        """The weight as a site of a single layer; nothing can be encoded."""

        def encode(questions: Sequence[str], targets: Sequence[str] | None) -> Encoded:
            raise ValueError("this fake has no tokens")

        def logits(encoded: Encoded) -> Tensor:
            raise ValueError("this fake has no tokens")

        return Backbone(self.root, Sites({"mlp_down": "{}"}, 1), 4, encode, logits, None)

    def settings(self) -> dict[str, Any]:
        """Nothing beside the weight."""
        return {"model": self.name}


class ScriptedJudge:
    """Says what a function says: (item, response) -> right, wrong, or None."""

    def __init__(self, rule: Callable[[Item, Response], bool | None]) -> None:
        """See the class."""
        self._rule = rule

    def __call__(self, pairs: Sequence[tuple[Item, Response]]) -> list[Verdict]:
        """One verdict per pair."""
        return [
            Verdict(item.id, response.direction, self._rule(item, response), "scripted")
            for item, response in pairs
        ]

    def settings(self) -> dict[str, Any]:
        """Nothing."""
        return {"judge": "scripted"}


class ScriptedIntervention(BaseModel):
    """Adds `size` times a fixed rank-one term to the scripted model's weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: float = 1.0

    @property
    def kind(self) -> Literal["edit", "inject"]:
        """An edit."""
        return "edit"

    @property
    def direction(self) -> Side:
        """The text side."""
        return "text"

    def check(self, umm: Any) -> None:
        """Fits every scripted model."""

    def fit(
        self,
        umm: Any,
        facts: Sequence[Fact],
        *,
        seed: int,
        texts: Sequence[str],
        log: Log,
        cache: Path | None = None,
        training: Training | None = None,
    ) -> WeightDelta:
        """The term; its curve has one point per fact."""
        for fact in facts:
            log(f"loss/{fact.id}", 0.0, 0)
        up, down = torch.zeros(4, 1), torch.zeros(1, 4)
        up[0, 0], down[0, 1] = self.size, 1.0
        return WeightDelta({"0.weight": LowRank(up, down)})
