"""Token sequences as adapters of language models share them: asked, padded, located, and their losses.

Knows no model family and no template: a family's layout says how a prompt becomes an `Asked`, and what
follows from there is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Encoded
from gapeval_lab.items import Direction, Example, Prompt
from gapeval_lab.models.decode import positions


@dataclass(frozen=True)
class Asked:
    """One prompt as it is really asked.

    Attributes:
        text: rendered with the template, every picture a run of placeholders.
        ids: its tokens.
        spans: character span of each token in `text`; (0, 0) for special tokens.
        pictures: digests of the prompt's pictures, in order.
    """

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    pictures: tuple[str, ...]


class Asks(Protocol):
    """What a family's layout does, as far as it is needed here."""

    def ask(self, prompts: Sequence[Prompt], direction: Direction) -> list[Asked]:
        """The prompts as the model is asked them."""
        ...

    def reply(self, asked: Asked, answer: str) -> Asked:
        """The prompt with a text answer after it, without eos."""
        ...

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows padded on the left: ids and mask, both (batch, length)."""
        ...


class TokenLayout:
    """What layouts share whose answers and pictures are tokens of the model's own. A family adds `ask`.

    Attributes:
        image_id: the placeholder of a picture in a prompt.
        pad_id: what rows are filled up with.
    """

    image_id: int
    pad_id: int
    _specials: AbstractSet[int]

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor, self._tokenizer = model, processor, processor.tokenizer

    def reply(self, asked: Asked, answer: str) -> Asked:
        """The prompt with a text answer after it, without eos.

        Raises:
            UserError: the answer holds the picture placeholder.
        """
        whole = joined(asked, answer, tokenizer=self._tokenizer, specials=self._specials)
        if self.image_id in whole.ids[len(asked.ids) :]:
            raise UserError(
                f"examples: the answer '{answer}' holds '{self._processor.image_token}', which stands for a "
                "picture; take it out"
            )
        return whole

    def decode(self, ids: Sequence[int]) -> str:
        """The text of answer tokens, special ones left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows padded on the left: ids and mask, both (batch, length), on the model's device."""
        return left_padded(rows, pad=self.pad_id, device=self._model.device)


def same_length(prompts: Sequence[Prompt], seeds: Sequence[int]) -> None:
    """Make sure that each prompt has its own seed."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: each prompt needs its own")


def check_answers(examples: Sequence[Example], direction: Direction) -> None:
    """Make sure that the answers are texts for understanding, pictures for generation.

    Raises:
        UserError: an answer is of the other kind.
    """
    kind: type = str if direction is Direction.UNDERSTANDING else Image.Image
    for example in examples:
        if not isinstance(example.answer, kind):
            raise UserError(
                f"examples: the answer to '{example.prompt.text}' is a {type(example.answer).__name__}; "
                f"the {direction} direction needs {'texts' if kind is str else 'pictures'}"
            )


def left_padded(
    rows: Sequence[Sequence[int]], *, pad: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Rows padded on the left: ids and mask, both (batch, length)."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def without_specials(
    ids: Sequence[int], spans: Iterable[tuple[int, int]], specials: AbstractSet[int]
) -> list[tuple[int, int]]:
    """Character spans of tokens, (0, 0) for special ones."""
    return [
        (0, 0) if token in specials else (span[0], span[1]) for token, span in zip(ids, spans, strict=True)
    ]


def joined(asked: Asked, answer: str, *, tokenizer: Any, specials: AbstractSet[int]) -> Asked:
    """The prompt with a text answer after it, without eos.

    The answer is its own run of tokens after a space, as a model writes it: prompt tokens never merge
    with it.
    """
    text = asked.text if asked.text[-1:].isspace() else f"{asked.text} "
    joint, start = text[len(asked.text) :], len(asked.text)
    encoded = tokenizer(joint + answer, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    spans = [(start + left, start + right) for left, right in encoded["offset_mapping"]]
    return Asked(
        text + answer,
        asked.ids + ids,
        asked.spans + without_specials(ids, spans, specials),
        asked.pictures,
    )


def first_id(*candidates: Any) -> int:
    """The first id given; a checkpoint may state one id, a list of them, or none."""
    for candidate in candidates:
        if candidate is not None:
            return int(candidate[0] if isinstance(candidate, list) else candidate)
    raise UserError("model.weights: no bos, eos or pad token is set; mend the checkpoint's tokenizer")


def stops_at(eos_id: int, more: int | Sequence[int] | None) -> frozenset[int]:
    """The tokens that end an answer: eos, and what the generation config names beside it."""
    return frozenset({eos_id, *([more] if isinstance(more, int) else more or [])})


def encoded(layout: Asks, questions: Sequence[str], targets: Sequence[str] | None) -> Encoded:
    """Questions as the model is asked them, each with its target if there are any."""
    asked = layout.ask([Prompt(question) for question in questions], Direction.UNDERSTANDING)
    whole = asked
    if targets is not None:
        whole = [layout.reply(one, target) for one, target in zip(asked, targets, strict=True)]
    return _encoded(layout, whole, starts=[len(one.ids) for one in asked])


def encoded_drawings(layout: Asks, prompts: Sequence[str]) -> Encoded:
    """Drawing prompts as the model is asked them; no labels."""
    asked = layout.ask([Prompt(prompt) for prompt in prompts], Direction.GENERATION)
    return _encoded(layout, asked, starts=[len(one.ids) for one in asked])


def _encoded(layout: Asks, whole: Sequence[Asked], *, starts: Sequence[int]) -> Encoded:
    ids, mask = layout.padded([one.ids for one in whole])
    labels = torch.full_like(ids, -100)
    offsets = []
    for row, (one, start) in enumerate(zip(whole, starts, strict=True)):
        padding = ids.shape[1] - len(one.ids)
        labels[row, padding + start :] = ids[row, padding + start :]
        offsets.append([(0, 0)] * padding + one.spans)
    return Encoded(ids, mask, labels, [one.text for one in whole], offsets)


def encoded_logits(model: Any, encoded: Encoded) -> Tensor:
    """Next-token logits of encoded questions, (batch, length, vocabulary).

    Through the root, so that whatever wraps it has its say.
    """
    mask = encoded.attention_mask
    logits: Tensor = model(
        input_ids=encoded.input_ids,
        attention_mask=mask,
        position_ids=positions(mask),
        use_cache=False,
    ).logits
    return logits


def text_losses(head: Any, states: Tensor, ids: Tensor, answers: Sequence[int]) -> Tensor:
    """Negative log-likelihood of the last tokens of left-padded rows, in nats: (batch,).

    Args:
        head: (positions, hidden) -> (positions, vocabulary).
        states: (batch, length - 1, hidden), the trunk's output at all but the last position.
        ids: (batch, length).
        answers: how many tokens of each row are its answer.
    """
    length = ids.shape[1]
    answer = torch.arange(length)[None] >= torch.tensor([[length - count] for count in answers])
    answer = answer.to(ids.device)
    # Only the answers' positions go through the head: a vocabulary is wide.
    logits = head(states[answer[:, 1:]]).float()
    # The head may lie on another device than the ids.
    terms = functional.cross_entropy(logits, ids[answer].to(logits.device), reduction="none").to(ids.device)
    return terms.new_zeros(len(ids)).index_add(0, answer.nonzero()[:, 0], terms)
