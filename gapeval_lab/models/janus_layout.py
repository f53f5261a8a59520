"""How a Janus is asked: prompts and answers as token ids and embeddings, pictures both ways.

One layout for everything: answering, drawing, losses and interventions all take their sequences
from here, so that what is trained or edited is what is asked. Knows nothing of decoding or weights'
files.

    text:     bos, template(pictures, question), answer, eos
    picture:  bos, template(pictures, question), boi, codes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gapeval_lab.errors import UserError
from gapeval_lab.items import Direction, Prompt, image_digest
from gapeval_lab.models.sequences import Asked, TokenLayout, first_id, stops_at, without_specials

SEEN_AT_ONCE: Final = 32
DRAWN_AT_ONCE: Final = 8
"""Pictures per pass of the vision tower or image encoder, and of the image decoder: per item these hold
far more memory than the trunk does."""


class Layout(TokenLayout):
    """Token sequences of one loaded Janus."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        tokenizer, generation = self._tokenizer, model.generation_config
        self.image_id: int = model.config.image_token_id
        self.boi_id: int = tokenizer.convert_tokens_to_ids(processor.image_start_token)
        # The library reads these from the generation config; a checkpoint may leave them out.
        self.bos_id: int = first_id(generation.bos_token_id, tokenizer.bos_token_id)
        self.pad_id: int = first_id(generation.pad_token_id, tokenizer.pad_token_id)
        self.eos_id: int = first_id(tokenizer.eos_token_id, generation.eos_token_id)
        self.stop_ids = stops_at(self.eos_id, generation.eos_token_id)
        self.picture_tokens: int = model.model.vision_model.config.num_image_tokens
        # An unknown word is a word all the same, though its token counts as special.
        self._specials = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}

    def ask(self, prompts: Sequence[Prompt], direction: Direction) -> list[Asked]:
        """The prompts as the model is asked them.

        Raises:
            UserError: a prompt's text holds the picture placeholder.
        """
        if not prompts:
            return []
        texts = [self._render(prompt, direction) for prompt in prompts]
        # Templates of some checkpoints write the bos token themselves.
        bos = self._tokenizer.bos_token
        written = bos is not None and texts[0].startswith(bos)
        encoded = self._tokenizer(texts, add_special_tokens=not written, return_offsets_mapping=True)
        asked = []
        for prompt, text, ids, spans in zip(
            prompts, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            if ids.count(self.image_id) != len(prompt.pictures) * self.picture_tokens:
                raise UserError(
                    f"prompt: '{prompt.text}' holds '{self._processor.image_token}', which stands for a "
                    "picture; take it out and give the picture itself"
                )
            digests = tuple(image_digest(image) for image in prompt.images)
            asked.append(Asked(text, ids, without_specials(ids, spans, self._specials), digests))
        return asked

    def _render(self, prompt: Prompt, direction: Direction) -> str:
        parts = [*({"type": "image"} for _ in prompt.pictures), {"type": "text", "text": prompt.text}]
        processor = self._processor
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
        )
        if direction is Direction.GENERATION:
            text += processor.image_start_token
        elif processor.use_default_system_prompt:
            from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

            text = f"{DEFAULT_SYSTEM_PROMPT}{text}"
        run = processor.image_token * self.picture_tokens
        return text.replace(
            processor.image_token, f"{processor.image_start_token}{run}{processor.image_end_token}"
        )

    def unconditional(self, ids: Tensor) -> Tensor:
        """The guidance branch's prompt: every token but bos and boi replaced by pad, as trained."""
        kept = (ids == self.bos_id) | (ids == self.boi_id)
        return torch.where(kept, ids, self.pad_id)

    def embed(self, ids: Tensor, pictures: Sequence[Tensor]) -> Tensor:
        """Embeddings of prompt ids, placeholders replaced by picture features in order.

        Args:
            ids: (batch, length).
            pictures: one (tokens, hidden) per picture, row by row.
        """
        embeddings: Tensor = self._model.get_input_embeddings()(ids).to(ids.device)
        if not pictures:
            return embeddings
        features = torch.cat(list(pictures)).to(embeddings)
        return embeddings.masked_scatter((ids == self.image_id).unsqueeze(-1), features)

    def features(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Picture digest -> (tokens, hidden) as the trunk sees the picture; each one computed once."""
        distinct = {image_digest(image): image for image in images}
        found: list[Tensor] = []
        for pixels in self._pixels(list(distinct.values())):
            found.extend(self._model.model.get_image_features(pixels, return_dict=True).pooler_output)
        return dict(zip(distinct, found, strict=True))

    def codes(self, images: Sequence[Image.Image]) -> Tensor:
        """The pictures as code ids of the model's own image tokenizer: (batch, tokens)."""
        with torch.no_grad():
            found = [
                self._model.model.vqmodel.encode(pixels, return_dict=True).image_tokens.view(len(pixels), -1)
                for pixels in self._pixels(images)
            ]
        return torch.cat(found)

    def _pixels(self, images: Sequence[Image.Image]) -> Iterable[Tensor]:
        for start in range(0, len(images), SEEN_AT_ONCE):
            chosen = [image.convert("RGB") for image in images[start : start + SEEN_AT_ONCE]]
            pixels = self._processor.image_processor(chosen, return_tensors="pt")["pixel_values"]
            yield pixels.to(self._model.device, self._model.dtype)

    def pictures(self, codes: Tensor) -> list[Image.Image]:
        """RGB pictures from code ids (batch, tokens).

        Not the processor's own postprocess: it fails on the model's channels-last output and
        truncates instead of rounding.
        """
        shown = self._processor.image_processor
        mean, std = (
            torch.tensor(values, dtype=torch.float32) for values in (shown.image_mean, shown.image_std)
        )
        images: list[Image.Image] = []
        for start in range(0, len(codes), DRAWN_AT_ONCE):
            part = codes[start : start + DRAWN_AT_ONCE]
            # Always a full batch: a batch of one takes another kernel, whose last digits put a pixel
            # in one picture out of six on the other side of a rounding, and no picture may depend
            # on what is drawn beside it.
            filled = torch.cat([part, part[:1].expand(DRAWN_AT_ONCE - len(part), -1)]).to(self._model.device)
            with torch.no_grad():
                decoded = self._model.decode_image_tokens(filled)[: len(part)]
            levels = ((decoded.float().cpu() * std + mean) * 255).round().clamp(0, 255)
            images.extend(Image.fromarray(array) for array in levels.numpy().astype(np.uint8))
        return images

    def digest(self) -> str:
        """Hash of tokenizer, template and picture settings: what turns a prompt into numbers."""
        parts = [
            self._tokenizer.backend_tokenizer.to_str(),
            self._processor.chat_template,
            self._processor.use_default_system_prompt,
            self._processor.image_processor.to_dict(),
            sorted(self.stop_ids),
        ]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()
