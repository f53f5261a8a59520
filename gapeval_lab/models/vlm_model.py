"""A model that reads pictures and answers in text, in memory: the understanding side of the protocol `UMM`.

Prompts are vlm_layout's, sites the settings'; answers are the library's own greedy generation. Knows no
family, benchmark, judge or intervention, and changes no weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Never

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.models.auto.auto_mappings import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone, Encoded
from gapeval_lab.items import Direction, Example, Prompt
from gapeval_lab.models.checkpoint import (
    EMBEDDED_FOLDER,
    check_checkpoint,
    find_checkpoint,
    find_config,
)
from gapeval_lab.models.decode import pieces
from gapeval_lab.models.loading import (
    Compiled,
    Quantised,
    check_vocabulary,
    find_device,
    load_processor,
    load_weights,
    quiet,
    without_weights,
)
from gapeval_lab.models.sequences import same_length
from gapeval_lab.models.vlm import Vlm
from gapeval_lab.models.vlm_layout import VlmLayout, Written, left_padded


class LoadedVlm:
    """An image-text-to-text model in memory: the protocol `UMM`, without drawing.

    Attributes:
        model: the library's model; owner of every live weight.
        processor: its tokenizer, template and picture settings.
        layout: its token sequences.
    """

    directions: frozenset[Direction] = frozenset({Direction.UNDERSTANDING})

    def __init__(self, model: Any, processor: Any, settings: Vlm) -> None:
        self.model, self.processor, self._settings = model, processor, settings
        self.name = f"{model.config.model_type}/{Path(settings.weights).name}"
        self.layout = VlmLayout(model, processor)
        self._sites = settings.sites_in(model)
        self._compiled = Compiled(model.get_decoder(), wanted=settings.compile)
        # The library mixes a checkpoint's sampling and penalties into every call: kept for saving only.
        self._shipped, model.generation_config = model.generation_config, self._greedy()

    def _greedy(self) -> GenerationConfig:
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self._settings.max_new_tokens,
            eos_token_id=self.layout.stop_ids,
            pad_token_id=self.layout.pad_id,
        )

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        """The likeliest text answer to each prompt; seeds play no part in it."""
        same_length(prompts, seeds)
        answers = [""] * len(prompts)
        asked = self.layout.write(prompts)
        with torch.no_grad(), self._compiled:
            for group in self._groups(prompts, asked):
                rows = [asked[index] for index in group]
                inputs = self.layout.batch([prompts[index] for index in group], rows, [[]] * len(rows))
                tokens = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
                for index, row in zip(group, tokens.tolist(), strict=True):
                    answers[index] = self.layout.decode(row)
        return answers

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> Never:
        """Refused.

        Raises:
            UserError: always; the model has one direction.
        """
        raise UserError(f"model: {self.name} does not draw; put it into a pair with a model that does")

    def loss(self, examples: Sequence[Example], direction: Direction) -> Tensor:
        """Teacher-forced negative log-likelihood of each answer: its tokens and the eos after them.

        Args:
            examples: answers are texts.
            direction: understanding; the model has no other.

        Returns:
            (batch,) nats, float32, on the model's device; differentiable unless gradients are off.

        Raises:
            UserError: the other direction, or an answer that is a picture.
        """
        if direction is not Direction.UNDERSTANDING:
            raise UserError(f"model: {self.name} does not draw; train it in the understanding direction")
        if not examples:
            return torch.zeros(0, device=self.model.device)
        prompts = [example.prompt for example in examples]
        asked = self.layout.write(prompts)
        replies = []
        for one, example in zip(asked, examples, strict=True):
            if not isinstance(example.answer, str):
                raise UserError(
                    f"examples: the answer to '{example.prompt.text}' is a {type(example.answer).__name__}; "
                    "the understanding direction needs texts"
                )
            ids = self.layout.reply(one, example.answer).ids[len(one.ids) :]
            replies.append([*ids, self.layout.eos_id])
        losses, order = [], []
        for group in self._groups(prompts, asked):
            order += group
            inputs = self.layout.batch(
                [prompts[index] for index in group],
                [asked[index] for index in group],
                [replies[index] for index in group],
            )
            losses.append(self._text_loss(inputs, [len(replies[index]) for index in group]))
        return torch.cat(losses)[torch.tensor(order).argsort()]

    def _text_loss(self, inputs: dict[str, Tensor], lengths: Sequence[int]) -> Tensor:
        """Losses of the last tokens of each row: (batch,)."""
        longest = max(lengths)
        logits = self._forward(inputs, keep=longest + 1)[:, :-1].float()
        targets = inputs["input_ids"][:, -longest:].to(logits.device)
        terms = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        place = torch.arange(longest, device=logits.device)[None]
        starts = longest - torch.tensor(lengths, device=logits.device)[:, None]
        return torch.where(place >= starts, terms, 0.0).sum(1)

    def _forward(self, inputs: dict[str, Tensor], *, keep: int) -> Tensor:
        """Logits of the last `keep` positions (0: all): (batch, positions, vocabulary)."""
        # The library's own rule, as when it generates: padding takes no position, and pictures take
        # positions in several dimensions where the family counts that way.
        places = self.model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
        # Through the root, so that whatever wraps it has its say.
        output = self.model(**inputs, position_ids=places, use_cache=False, logits_to_keep=keep)
        logits: Tensor = output.logits
        return logits[:, -keep:]

    def backbone(self) -> Backbone:
        """The trunk, for interventions. Targets are appended without eos, which is no part of a fact."""
        return Backbone(
            root=self.model,
            sites=self._sites,
            hidden_size=self.model.config.get_text_config().hidden_size,
            encode=self._encode,
            logits=self._logits,
            tokenizer=self.processor.tokenizer,
        )

    def _encode(self, questions: Sequence[str], targets: Sequence[str] | None) -> Encoded:
        asked = self.layout.write([Prompt(question) for question in questions])
        whole = asked
        if targets is not None:
            whole = [self.layout.reply(one, target) for one, target in zip(asked, targets, strict=True)]
        device = self.model.device
        ids = left_padded([one.ids for one in whole], self.layout.pad_id).to(device)
        mask = left_padded([[1] * len(one.ids) for one in whole], 0).to(device)
        labels, offsets = torch.full_like(ids, -100), []
        for row, (prompt, one) in enumerate(zip(asked, whole, strict=True)):
            padding = ids.shape[1] - len(one.ids)
            start = padding + len(prompt.ids)
            labels[row, start:] = ids[row, start:]
            offsets.append([(0, 0)] * padding + one.spans)
        return Encoded(ids, mask, labels, [one.text for one in whole], offsets)

    def _logits(self, encoded: Encoded) -> Tensor:
        return self._forward(
            {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}, keep=0
        )

    def save(self, folder: Path) -> None:
        """Write weights, tokenizer and picture settings as a checkpoint that `load` reads."""
        plain, self.model.generation_config = self.model.generation_config, self._shipped
        try:
            with quiet():
                self.model.save_pretrained(folder)
                self.processor.save_pretrained(folder)
        finally:
            self.model.generation_config = plain

    def settings(self) -> dict[str, Any]:
        """Decoding settings, and a hash of tokenizer, template and picture settings."""
        chosen = self._settings
        return {
            "family": self.model.config.model_type,
            "dtype": chosen.dtype,
            "device": self.model.device.type,
            "max_new_tokens": chosen.max_new_tokens,
            "layout": self.layout.digest(),
            **chosen.of_answers(),
        }

    def _groups(self, prompts: Sequence[Prompt], asked: Sequence[Written]) -> Iterator[list[int]]:
        """Indices in batches: with and without pictures apart, similar lengths together."""
        for shown in (False, True):
            indices = [index for index, prompt in enumerate(prompts) if bool(prompt.pictures) is shown]
            lengths = [len(asked[index].ids) for index in indices]
            for group in pieces(lengths, most=self._settings.batch):
                yield [indices[place] for place in group]


class QuantisedVlm(Quantised, LoadedVlm):
    """Such a model whose weights are held in 8 or 4 bits: measured, never edited."""


def load(settings: Vlm) -> LoadedVlm:
    """Read the weights that the settings name.

    Raises:
        UserError: weights or device are not there, not whole, or of no image-text-to-text model.
    """
    find_device(settings.device)
    folder = find_checkpoint(settings.weights, embedded=EMBEDDED_FOLDER)
    families = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    config = check_checkpoint(folder, weights=settings.weights, model_type=families)
    name = PROCESSOR_MAPPING_NAMES.get(config["model_type"])
    with quiet():
        processor = load_processor(folder, settings.weights, family=name and getattr(transformers, name))
    model = load_weights(AutoModelForImageTextToText, folder, settings)
    check_vocabulary(model, processor, settings.weights)
    return (LoadedVlm if settings.quantise is None else QuantisedVlm)(model, processor, settings)


def sketch(settings: Vlm) -> nn.Module:
    """See `Vlm.sketch`."""
    families = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    found = find_config(settings.weights, embedded=EMBEDDED_FOLDER, model_type=families)
    return without_weights(
        lambda: AutoModelForImageTextToText.from_config(AutoConfig.for_model(**found)), settings.weights
    )
