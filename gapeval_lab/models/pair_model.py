"""Two models in memory as one UMM: each is asked in its own direction, with its own seeds and settings.

Knows no family. Interventions write into the model that understands; what is trained by the drawing loss
may be in the one that draws.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from gapeval_lab import registry
from gapeval_lab.delta import fingerprint
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM, Arriving, Asking, Backbone, Sites, Weightless
from gapeval_lab.items import Direction, Example, Prompt
from gapeval_lab.models.pair import Pair
from gapeval_lab.nested import NestedNode

UNDERSTAND, GENERATE = "understand", "generate"
DRAWING = "draw_"
"""Before the names of the drawing model's sites."""


class LoadedPair:
    """Two models: the protocol `UMM`.

    Attributes:
        understand: the one that answers.
        generate: the one that draws.
    """

    directions: frozenset[Direction] = frozenset(Direction)

    def __init__(self, understand: UMM, generate: UMM) -> None:
        self.understand, self.generate = understand, generate
        first, second = (umm.name.replace("/", "-") for umm in (understand, generate))
        self.name = f"pair/{first}+{second}"
        self._root: nn.ModuleDict | None = None

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        """What the understanding model answers."""
        return self.understand.answer(prompts, seeds=seeds)

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Image.Image]:
        """What the drawing model draws."""
        return self.generate.draw(prompts, seeds=seeds)

    def arriving(self, direction: Direction) -> Asking | None:
        """As the model of that direction gives them."""
        asked = self.understand if direction is Direction.UNDERSTANDING else self.generate
        return asked.arriving(direction) if isinstance(asked, Arriving) else None

    def loss(self, examples: Sequence[Example], direction: Direction) -> Tensor:
        """The loss of the model that has this direction: (batch,) nats.

        Raises:
            UserError: weights are being trained, and all of them are in the other model.
        """
        asked = self.understand if direction is Direction.UNDERSTANDING else self.generate
        losses = asked.loss(examples, direction)
        trained = self._root is not None and any(value.requires_grad for value in self._root.parameters())
        if trained and torch.is_grad_enabled() and examples and not losses.requires_grad:
            raise UserError(
                f"sites: nothing that is trained is in {asked.name}, which has the {direction} direction of "
                f"{self.name}; name sites of that model (those that draw start with '{DRAWING}'), or train "
                "through the other direction"
            )
        return losses

    def backbone(self) -> Backbone:
        """The understanding model's trunk in a root that owns both models' weights.

        Sites of the drawing model stand beside, as `draw_...`, where it has as many layers and stores its
        weights the same way round. The trunk itself draws nothing.
        """
        trunk, other = self.understand.backbone(), self.generate.backbone()
        if self._root is None:
            self._root = nn.ModuleDict({UNDERSTAND: trunk.root, GENERATE: other.root})
            self._root.training = trunk.root.training
        return replace(
            trunk,
            root=self._root,
            sites=_both(trunk.sites, other.sites),
            encode_drawings=None,
            drawing_loss=None,
        )

    def settings(self) -> dict[str, Any]:
        """Both models' settings."""
        return {
            "family": "pair",
            UNDERSTAND: self.understand.settings(),
            GENERATE: self.generate.settings(),
        }


class WeightlessPair(LoadedPair):
    """Two models of which at least one has no weights in reach: measured, never edited."""

    def identity(self) -> str:
        """SHA-256 over what tells each of the two from others."""
        return hashlib.sha256(
            json.dumps([_identity(self.understand), _identity(self.generate)]).encode()
        ).hexdigest()

    def backbone(self) -> Backbone:
        """Refused.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"model: the weights of {self.name} are not all in reach, so that nothing can be written into "
            "them; take two models with weights, or a recipe without intervention"
        )


def _identity(umm: UMM) -> str:
    return umm.identity() if isinstance(umm, Weightless) else fingerprint(umm.backbone().root)


def _both(trunk: Sites, other: Sites) -> Sites:
    """The trunk's sites, and the other's where one table can hold both."""
    templates = _prefixed(trunk.templates, UNDERSTAND, "")
    if (other.layers, other.transposed) == (trunk.layers, trunk.transposed):
        templates |= _prefixed(other.templates, GENERATE, DRAWING)
    return Sites(templates, layers=trunk.layers, transposed=trunk.transposed)


def _prefixed(templates: Mapping[str, str], part: str, mark: str) -> dict[str, str]:
    return {f"{mark}{site}": f"{part}.{path}" for site, path in templates.items()}


def load(settings: Pair) -> LoadedPair:
    """Load both models.

    Raises:
        UserError: a model cannot be loaded, or lacks the direction that it is here for.
    """
    understand = _loaded(settings.understand, UNDERSTAND, Direction.UNDERSTANDING)
    generate = _loaded(settings.generate, GENERATE, Direction.GENERATION)
    out_of_reach = isinstance(understand, Weightless) or isinstance(generate, Weightless)
    return (WeightlessPair if out_of_reach else LoadedPair)(understand, generate)


def _loaded(half: NestedNode, name: str, direction: Direction) -> UMM:
    try:
        umm: UMM = registry.build("models", half.use, settings=half.settings).load()
    except UserError as error:
        words = str(error)
        raise UserError(
            f"model.{name}.{words[6:]}" if words.startswith("model.") else f"model.{name}: {words}"
        ) from None
    if direction not in umm.directions:
        raise UserError(f"model.{name}: {umm.name} lacks the {direction} direction; take another model")
    return umm
