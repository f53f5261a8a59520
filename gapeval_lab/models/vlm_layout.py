"""How a model that reads pictures is asked: prompts and answers as its own processor writes them.

Pictures become whatever the family's processor makes of them; only what runs along the tokens (ids, mask,
their kinds) is touched here. Knows no family.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gapeval_lab.errors import UserError
from gapeval_lab.items import Prompt

Span = tuple[int, int]


@dataclass(frozen=True)
class Written:
    """A prompt as text, and its tokens; every picture is one placeholder still.

    Attributes:
        text: rendered with the template.
        ids: its tokens.
        spans: character span of each token in `text`; (0, 0) for special tokens.
    """

    text: str
    ids: list[int]
    spans: list[Span]


class VlmLayout:
    """Token sequences of one loaded model."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._processor, self._tokenizer = processor, processor.tokenizer
        self._model, tokenizer = model, processor.tokenizer
        generation = model.generation_config
        stops = generation.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        known = [token for token in (tokenizer.eos_token_id, *stops) if token is not None]
        if not known:
            raise UserError("model.weights: no eos token is set; mend the checkpoint's tokenizer")
        self.eos_id: int = known[0]
        self.stop_ids = sorted(set(known))
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.eos_id)
        self.pad_id: int = tokenizer.pad_token_id
        self._picture: str | None = getattr(processor, "image_token", None)
        self._specials = frozenset(tokenizer.all_special_ids)

    def write(self, prompts: Sequence[Prompt]) -> list[Written]:
        """The prompts as text.

        Raises:
            UserError: a prompt's text holds the picture placeholder.
        """
        return [self._written(self._render(prompt)) for prompt in prompts]

    def _render(self, prompt: Prompt) -> str:
        parts = [*({"type": "image"} for _ in prompt.pictures), {"type": "text", "text": prompt.text}]
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
        )
        if self._picture and text.count(self._picture) != len(prompt.pictures):
            raise UserError(
                f"prompt: '{prompt.text}' is not asked with {len(prompt.pictures)} pictures; if it holds "
                f"'{self._picture}', which stands for a picture, take that out"
            )
        return text

    def _written(self, text: str) -> Written:
        encoded = self._tokenizer(
            text, add_special_tokens=not self._has_bos(text), return_offsets_mapping=True
        )
        return Written(text, encoded["input_ids"], self._located(encoded, 0))

    def _has_bos(self, text: str) -> bool:
        """Whether the template writes the first token itself."""
        bos = self._tokenizer.bos_token
        return bos is not None and text.startswith(bos)

    def _located(self, encoded: Any, start: int) -> list[Span]:
        # An unknown word is a word all the same, though its token counts as special.
        keep = self._tokenizer.unk_token_id
        return [
            (0, 0) if token in self._specials and token != keep else (start + span[0], start + span[1])
            for token, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def reply(self, asked: Written, answer: str) -> Written:
        """The prompt with a text answer after it, without eos; the prompt's tokens stay as they are.

        Raises:
            UserError: the answer holds the picture placeholder.
        """
        if self._picture and self._picture in answer:
            raise UserError(
                f"examples: the answer '{answer}' holds '{self._picture}', which stands for a picture; take "
                "it out"
            )
        head = asked.text if asked.text[-1:].isspace() else f"{asked.text} "
        count, whole = len(asked.ids), self._written(head + answer)
        if whole.ids[:count] == asked.ids and len(whole.ids) > count:
            return Written(whole.text, whole.ids, asked.spans + whole.spans[count:])
        # The tokenizer merges across the border: the answer is then a run of its own.
        start = len(asked.text)
        tail = self._tokenizer(whole.text[start:], add_special_tokens=False, return_offsets_mapping=True)
        return Written(whole.text, asked.ids + tail["input_ids"], asked.spans + self._located(tail, start))

    def batch(
        self, prompts: Sequence[Prompt], asked: Sequence[Written], replies: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """What the model's forward takes, left-padded, on its device.

        Args:
            prompts: all with pictures, or all without.
            asked: the same prompts, written.
            replies: tokens after each prompt; empty where there are none.
        """
        pictures = [list(prompt.images) for prompt in prompts]
        made = self._processor(
            text=[one.text for one in asked],
            **({"images": pictures} if any(pictures) else {}),
            add_special_tokens=not self._has_bos(asked[0].text),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        inputs: dict[str, Tensor] = {name: value for name, value in made.items() if torch.is_tensor(value)}
        return {
            name: value.to(self._model.device, self._model.dtype if value.is_floating_point() else None)
            for name, value in self._extended(inputs, replies).items()
        }

    def _extended(self, inputs: dict[str, Tensor], replies: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The prompts with tokens after them; padding stays on the left."""
        mask = inputs["attention_mask"].bool()
        if not any(replies):
            return inputs
        rows = [[*ids[keep].tolist(), *reply] for ids, keep, reply in self._rows(inputs, mask, replies)]
        along = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        for name, value in inputs.items():  # what runs along the tokens: the kind of each, for some families
            if name not in along and value.shape == mask.shape:
                kinds = [value[row][mask[row]].tolist() for row in range(len(mask))]
                along[name] = [[*kind, *[0] * len(reply)] for kind, reply in zip(kinds, replies, strict=True)]
        fills = {"input_ids": self.pad_id}
        return inputs | {name: left_padded(rows, fills.get(name, 0)) for name, rows in along.items()}

    @staticmethod
    def _rows(inputs: Mapping[str, Tensor], mask: Tensor, replies: Sequence[Sequence[int]]) -> Any:
        return zip(inputs["input_ids"], mask, replies, strict=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of answer tokens, special tokens left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()

    def digest(self) -> str:
        """Hash of tokenizer, template and picture settings: what turns a prompt into numbers."""
        pictures = getattr(self._processor, "image_processor", None)
        tokenizer = json.loads(self._tokenizer.backend_tokenizer.to_str())
        parts = [
            # Padding is a trace of the last call.
            {name: part for name, part in tokenizer.items() if name not in ("padding", "truncation")},
            self._processor.chat_template,
            None if pictures is None else pictures.to_dict(),
            self.stop_ids,
        ]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def left_padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of equal length, padded on the left: (batch, length)."""
    length = max(len(row) for row in rows)
    return torch.tensor([[fill] * (length - len(row)) + list(row) for row in rows])
