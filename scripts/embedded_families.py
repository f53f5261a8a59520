"""The families of the embedded UMMs: how each is built, shown its batches, and how its picture tokenizer is
taught. Knows models and their adapters; the course of training is train_embedded.py's.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from embedded_data import GENERATED, Batch, Codes, Emu3Rows, JanusRows, Rows, vocabulary
from torch import Tensor

from gapeval_lab.models.emu3 import Emu3
from gapeval_lab.models.emu3_model import LoadedEmu3
from gapeval_lab.models.janus import Janus
from gapeval_lab.models.janus_model import LoadedJanus
from gapeval_lab.models.tiny import IMAGE, JanusShape, build_janus
from gapeval_lab.models.tiny_emu3 import Emu3Shape, build_emu3
from gapeval_lab.scene import PATCH, SIZE

JANUS: Final = JanusShape(
    layers=8,
    hidden=96,
    mlp=384,
    heads=4,
    vision_layers=2,
    vision_hidden=64,
    codes=200,
    image_size=SIZE,
    patch_size=PATCH,
)
EMU3: Final = Emu3Shape(
    layers=8, hidden=96, mlp=384, heads=4, image_size=SIZE, factor=PATCH, codes=200, positions=512
)
EMU3_CODES: Final = {8: 200, 4: 336}
"""Pixels of a patch's side -> codes: a few more than the world has patches of the size."""


class Family(Protocol):
    """One family. The picture tokenizer is `model.model.vqmodel` in all of them.

    Attributes:
        model, processor: freshly built.
        codes: which code each patch of the world has.
        count: codes of the picture tokenizer.
        umm: the adapter around the model.
    """

    model: Any
    processor: Any
    codes: Codes
    count: int
    umm: Any

    def rows(self) -> Rows:
        """Its sequences."""
        ...

    def latents(self, images: Tensor) -> Tensor:
        """(batch, 3, 48, 48) -> (batch, h, w, width), what the picture tokenizer quantises."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """(batch, codes) -> (batch, 3, 48, 48)."""
        ...

    def eyes(self, images: Tensor) -> Tensor | None:
        """(batch, codes, hidden), what the trunk sees of pictures; None where that is their codes."""
        ...

    def eye_parameters(self) -> list[torch.nn.Parameter]:
        """What is trained so that it sees."""
        ...

    def logits(self, batch: Batch, where: Tensor) -> Tensor:
        """Logits of the words, or of the codes, at the marked positions (batch, length)."""
        ...


class JanusFamily:
    """A Janus: separate eyes, and codes apart from the text's tokens."""

    def __init__(self) -> None:
        self.model, self.processor = build_janus(vocabulary(), JANUS)
        self.codes, self.count = Codes(), JANUS.codes
        self.umm = LoadedJanus(self.model, self.processor, Janus(weights="embedded"))
        self._image_id = self.processor.tokenizer.convert_tokens_to_ids(IMAGE)

    def rows(self) -> Rows:
        """Its sequences."""
        return JanusRows(self.processor, self.codes)

    def latents(self, images: Tensor) -> Tensor:
        """(batch, 3, 48, 48) -> (batch, h, w, width), what the picture tokenizer quantises."""
        vq = self.model.model.vqmodel
        found: Tensor = vq.quant_conv(vq.encoder(images)).permute(0, 2, 3, 1)
        return found

    def decode(self, codes: Tensor) -> Tensor:
        """(batch, codes) -> (batch, 3, 48, 48)."""
        found: Tensor = self.model.model.vqmodel.decode(codes)
        return found

    def eyes(self, images: Tensor) -> Tensor | None:
        """(batch, codes, hidden), what the trunk sees of pictures."""
        found: Tensor = self.model.model.get_image_features(images).pooler_output
        return found

    def eye_parameters(self) -> list[torch.nn.Parameter]:
        """What is trained so that it sees."""
        inner = self.model.model
        return [*inner.vision_model.parameters(), *inner.aligner.parameters()]

    def logits(self, batch: Batch, where: Tensor) -> Tensor:
        """Logits of the words, or of the codes, at the marked positions (batch, length)."""
        model, inner = self.model, self.model.model
        generated = batch.ids == GENERATED
        ids = batch.ids.masked_fill(generated, 0)
        embeds = inner.get_input_embeddings()(ids)
        if batch.images is not None:
            features = inner.get_image_features(batch.images).pooler_output
            mask = (ids == self._image_id).unsqueeze(-1)
            embeds = embeds.masked_scatter(mask, features.reshape(-1, features.shape[-1]))
        if batch.codes is not None:
            drawn = model.prepare_embeddings_for_image_generation(batch.codes)
            embeds = embeds.masked_scatter(generated.unsqueeze(-1), drawn.reshape(-1, drawn.shape[-1]))
        hidden = inner.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        head = inner.generation_head if batch.draws else model.lm_head
        found: Tensor = head(hidden[where])
        return found


class Emu3Family:
    """An Emu3: one space of tokens, and no eyes beside the picture tokenizer.

    Args:
        patch: pixels of a code's side, 8 or 4.
    """

    def __init__(self, patch: int = PATCH) -> None:
        shape = replace(EMU3, factor=patch, codes=EMU3_CODES[patch])
        self.model, self.processor = build_emu3(vocabulary(), shape)
        self.codes, self.count = Codes(patch), shape.codes
        self.umm = LoadedEmu3(self.model, self.processor, Emu3(weights="embedded"))

    def rows(self) -> Rows:
        """Its sequences."""
        return Emu3Rows(self.umm.layout, self.processor.tokenizer, self.codes)

    def latents(self, images: Tensor) -> Tensor:
        """(batch, 3, 48, 48) -> (batch, h, w, width), what the picture tokenizer quantises."""
        vq = self.model.model.vqmodel
        # Time is an axis of its own, after the batch's in the encoder and after the channels' behind it.
        found: Tensor = vq.quant_conv(vq.encoder(images[:, None]).transpose(1, 2))
        return found[:, :, 0].permute(0, 2, 3, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """(batch, codes) -> (batch, 3, 48, 48)."""
        found: Tensor = self.model.model.vqmodel.decode(codes.view(-1, self.codes.grid, self.codes.grid))
        return found

    def eyes(self, images: Tensor) -> Tensor | None:
        """None: pictures are seen as their codes."""
        return None

    def eye_parameters(self) -> list[torch.nn.Parameter]:
        """None."""
        return []

    def logits(self, batch: Batch, where: Tensor) -> Tensor:
        """Logits of the words, or of the codes, at the marked positions (batch, length)."""
        hidden = self.model.model.text_model(input_ids=batch.ids, use_cache=False).last_hidden_state
        logits: Tensor = self.model.lm_head(hidden[where])
        return self.umm.layout.visual(logits) if batch.draws else logits


def build(family: str, patch: int) -> Family:
    """A freshly built model of the family, from torch's global generator."""
    return JanusFamily() if family == "janus" else Emu3Family(patch)


def settings(family: str, weights: Path | str) -> Janus | Emu3:
    """The adapter's settings for a checkpoint of the family."""
    return (Janus if family == "janus" else Emu3)(weights=str(weights))
