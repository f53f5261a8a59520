"""How an Emu3 is asked: prompts, answers and pictures as ids of its one token space.

One layout for everything: answering, drawing, losses and interventions all take their sequences
from here, so that what is trained or edited is what is asked. Knows nothing of decoding or weights'
files.

    text:     bos, template(system, pictures, question), answer, eos
    picture:  bos, pictures, prompt, boi, "h*w", img, drawing
    pictures: boi, "h*w", img, h rows of (w visual tokens, eol), eof, eoi
    drawing:  h rows of (w visual tokens, eol); what follows (eof, eoi, eos) is fixed

Emu3-Gen draws from text alone; pictures before a drawing prompt are for models trained to edit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

from gapeval_lab.errors import UserError
from gapeval_lab.items import Direction, Prompt, image_digest
from gapeval_lab.models.sequences import Asked, TokenLayout, first_id, stops_at, without_specials

SYSTEM: Final = "You are a helpful assistant."
"""What Emu3-Chat was trained to be told first; a checkpoint's template may leave it out."""

AREA: Final = 720 * 720
"""Pixels of a drawing where neither settings nor checkpoint say otherwise; so in the library's processor."""

_PASS: Final = 8
_PASS_AREA: Final = 512 * 512
"""Pictures, and pixels, in one pass of the picture tokenizer, which holds far more memory per picture than
the trunk."""


class Layout(TokenLayout):
    """Token sequences of one loaded Emu3.

    Args:
        model: the Emu3ForConditionalGeneration.
        processor: its tokenizer, template and picture settings.
        size: height and width of drawings in pixels; None: as `Emu3.size` has it.

    Raises:
        UserError: the size is no multiple of the picture tokenizer's factor.
    """

    def __init__(self, model: Any, processor: Any, size: tuple[int, int] | None) -> None:
        super().__init__(model, processor)
        tokenizer, generation = self._tokenizer, model.generation_config
        self._vq, mapping = model.model.vqmodel, model.model.vocabulary_mapping
        self.image_id: int = mapping.image_token_id
        self.eol_id: int = mapping.eol_token_id
        # The library reads these from the generation config; a checkpoint may leave them out.
        self.pad_id: int = first_id(generation.pad_token_id, tokenizer.pad_token_id)
        self.eos_id: int = first_id(tokenizer.eos_token_id, generation.eos_token_id)
        self.stop_ids = stops_at(self.eos_id, generation.eos_token_id)
        added = tokenizer.added_tokens_decoder
        # An unknown word is a word all the same, though its token counts as special.
        self._specials = {token for token, known in added.items() if known.special} - {tokenizer.unk_token_id}
        self._factor: int = self._vq.spatial_scale_factor
        self.height, self.width = self._grid(size)
        tokens = [mapping.img2bpe[code] for code in range(self._vq.config.codebook_size)]
        self._tokens = torch.tensor(tokens)
        in_a_run = tokens == list(range(tokens[0], tokens[0] + len(tokens)))
        # A run can be cut out without a copy of the wide logits.
        self._columns: slice | Tensor = slice(tokens[0], tokens[-1] + 1) if in_a_run else self._tokens

    @property
    def count(self) -> int:
        """Codes in a drawing."""
        return self.height * self.width

    def _grid(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Rows and columns of codes in a drawing."""
        if size is None:
            shown = self._processor.image_processor
            side = float(min(max(AREA, shown.min_pixels), shown.max_pixels)) ** 0.5
            rows = max(1, round(side / self._factor))
            return rows, rows
        if size[0] % self._factor or size[1] % self._factor:
            raise UserError(
                f"model.size: {list(size)} are no multiples of {self._factor}, the pixels of one code of "
                "this model; change them"
            )
        return size[0] // self._factor, size[1] // self._factor

    # ------------------------------------------------------------------------------------ prompts
    def ask(self, prompts: Sequence[Prompt], direction: Direction) -> list[Asked]:
        """The prompts as the model is asked them; pictures stand in `ids` as their visual tokens.

        Raises:
            UserError: a prompt's text holds the picture placeholder, or a picture cannot be read.
        """
        images = [prompt.images for prompt in prompts]
        digests = [tuple(image_digest(image) for image in row) for row in images]
        grids = self._seen([image for row in images for image in row])
        shown = [[grids[digest] for digest in row] for row in digests]
        asked = self.place([prompt.text for prompt in prompts], shown, direction)
        return [replace(one, pictures=row) for one, row in zip(asked, digests, strict=True)]

    def place(
        self, texts: Sequence[str], grids: Sequence[Sequence[Tensor]], direction: Direction
    ) -> list[Asked]:
        """Texts as the model is asked them, after pictures that are codes already.

        Args:
            texts: one per prompt.
            grids: for each prompt its pictures' codes, each (h, w), on the CPU.
            direction: which template.

        Raises:
            UserError: a text holds the picture placeholder.
        """
        if not texts:
            return []
        rendered = [
            self._render(text, direction, [tuple(grid.shape) for grid in shown])
            for text, shown in zip(texts, grids, strict=True)
        ]
        encoded = self._tokenizer(rendered, return_offsets_mapping=True)
        asked = []
        for text, shown, ids, spans in zip(
            rendered, grids, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            placed = iter([token for grid in shown for token in self.rows(grid[None])[0].tolist()])
            filled = [next(placed) if token == self.image_id else token for token in ids]
            asked.append(Asked(text, filled, without_specials(filled, spans, self._specials), ()))
        return asked

    def _render(self, question: str, direction: Direction, grids: Sequence[tuple[int, ...]]) -> str:
        processor = self._processor
        if direction is Direction.GENERATION:
            text = processor.image_token * len(grids) + question
        else:
            parts = [*({"type": "image"} for _ in grids), {"type": "text", "text": question}]
            text = processor.apply_chat_template(
                [
                    {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
                    {"role": "user", "content": parts},
                ],
                add_generation_prompt=True,
                tokenize=False,
            )
        pieces = text.split(processor.image_token)
        if len(pieces) != len(grids) + 1:
            raise UserError(
                f"prompt: '{question}' holds '{processor.image_token}', which stands for a "
                "picture; take it out and give the picture itself"
            )
        for place, (rows, columns) in enumerate(grids):
            run = processor.image_token * (rows * (columns + 1))
            end = f"{processor.eof_token}{processor.image_end_token}"
            pieces[place] += f"{self._head(rows, columns)}{run}{end}"
        drawing = self._head(self.height, self.width) if direction is Direction.GENERATION else ""
        # The tokenizer of published checkpoints writes no bos; the library's processor does, like this.
        return f"{processor.bos_token}{''.join(pieces)}{drawing}"

    def _head(self, rows: int, columns: int) -> str:
        processor = self._processor
        return f"{processor.image_start_token}{rows}*{columns}{processor.fake_token_around_image}"

    # ----------------------------------------------------------------------------- visual tokens
    def tokens(self, codes: Tensor) -> Tensor:
        """Ids of the visual tokens of codes, of the same shape."""
        return self._tokens.to(codes.device)[codes]

    def rows(self, grids: Tensor) -> Tensor:
        """Token ids of pictures of codes (batch, h, w), eol after each row: (batch, h * (w + 1))."""
        tokens = self.tokens(grids)
        return torch.cat([tokens, torch.full_like(tokens[..., :1], self.eol_id)], dim=-1).flatten(1)

    def visual(self, logits: Tensor) -> Tensor:
        """The columns of visual tokens: (..., vocabulary) -> (..., codes)."""
        columns = self._columns
        return logits[..., columns if isinstance(columns, slice) else columns.to(logits.device)]

    # ----------------------------------------------------------------------------------- pictures
    def codes(self, images: Sequence[Image.Image]) -> Tensor:
        """The pictures, at the size of drawings, in codes of the model's own picture tokenizer.

        Returns:
            (batch, h * w), on the model's device.
        """
        shown = self._processor.image_processor
        size = (self.width * self._factor, self.height * self._factor)
        fitting = [
            image if image.size == size else image.resize(size, Image.Resampling(shown.resample))
            for image in (image.convert("RGB") for image in images)
        ]
        pixels = shown(fitting, do_resize=False, return_tensors="pt")["pixel_values"]
        return self._quantized(pixels).flatten(1).to(self._model.device)

    def _seen(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Picture digest -> (h, w) codes, at the size the processor gives it; each one computed once."""
        distinct = {image_digest(image): image for image in images}
        waiting: dict[tuple[int, ...], dict[str, Tensor]] = {}
        found: dict[str, Tensor] = {}
        for digest, image in distinct.items():
            try:
                pixels = self._processor.image_processor([image.convert("RGB")], return_tensors="pt")
            except ValueError as error:
                raise UserError(
                    f"prompt: a picture of {image.width} x {image.height} pixels cannot be shown to this "
                    f"model ({error}); cut it"
                ) from None
            # Pictures of one size together: the library pads others to the largest, which moves their codes.
            group = waiting.setdefault(tuple(pixels["pixel_values"].shape), {})
            group[digest] = pixels["pixel_values"][0]
            if len(group) == _PASS:
                found |= self._quantized_each(group)
                group.clear()
        for group in waiting.values():
            found |= self._quantized_each(group)
        return found

    def _quantized_each(self, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same keys with codes (h, w) on the CPU, from pictures of one size."""
        if not pixels:
            return {}
        return dict(zip(pixels, self._quantized(torch.stack(list(pixels.values()))).cpu(), strict=True))

    def _quantized(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) normalised -> (batch, h, w) codes."""
        size = torch.tensor(pixels.shape[-2:])

        def encode(part: Tensor) -> Tensor:
            part = part.to(self._model.device, self._model.dtype)
            found = self._vq.encode(part, size.expand(len(part), 2), return_dict=True).image_tokens
            return torch.stack(list(found)).long()

        return self._in_passes(encode, pixels)

    def pictures(self, codes: Tensor) -> list[Image.Image]:
        """RGB pictures from codes (batch, h * w).

        Not the processor's own postprocess, which truncates instead of rounding.
        """
        if not len(codes):
            return []
        shown = self._processor.image_processor
        mean, std = (
            torch.tensor(values, dtype=torch.float32) for values in (shown.image_mean, shown.image_std)
        )

        def decode(part: Tensor) -> Tensor:
            values: Tensor = self._vq.decode(part.to(self._model.device)).float().cpu().permute(0, 2, 3, 1)
            return ((values * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

        levels = self._in_passes(decode, codes.view(-1, self.height, self.width))
        return [Image.fromarray(array) for array in levels.numpy()]

    def _in_passes(self, compute: Any, rows: Tensor) -> Tensor:
        """The function over pieces of the rows, every piece of the same length.

        Always full: another batch size may take another kernel, whose last digits put a code or a pixel on
        the other side of a rounding, and no picture may depend on what lies beside it.
        """
        pixels = rows.shape[-1] * rows.shape[-2] * (self._factor**2 if rows.ndim == 3 else 1)
        full = max(1, min(_PASS, _PASS_AREA // pixels))
        found = []
        with torch.no_grad(), _evaluating(self._vq):
            for start in range(0, len(rows), full):
                part = rows[start : start + full]
                rest = part[:1].expand(full - len(part), *part.shape[1:])
                found.append(compute(torch.cat([part, rest]))[: len(part)])
        return torch.cat(found)

    def digest(self) -> str:
        """Hash of tokenizer, template, picture settings and size: what turns a prompt into numbers."""
        shown: Mapping[str, Any] = self._processor.image_processor.to_dict()
        parts = [
            self._tokenizer.backend_tokenizer.to_str(),
            self._processor.chat_template,
            dict(shown),
            sorted(self.stop_ids),
            self._tokens.tolist(),
            (self.image_id, self.eol_id, self.height, self.width),
        ]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode: batch norms of the frozen picture tokenizer would learn while others train."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
