"""A Janus in memory, as a unified multimodal model: reading its weights, and the five things a UMM does.

Token sequences are janus_layout's, decoding loops are janus_decode's. Knows no benchmark, judge or
intervention, and changes no weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import JanusConfig, JanusForConditionalGeneration

from gapeval_lab.interfaces import Backbone, Drawing
from gapeval_lab.items import Direction, Example, Prompt
from gapeval_lab.models.checkpoint import EMBEDDED_FOLDER, check_checkpoint, find_checkpoint, find_config
from gapeval_lab.models.decode import Stepper, continue_text, pieces, positions
from gapeval_lab.models.janus import Janus
from gapeval_lab.models.janus_decode import draw_codes
from gapeval_lab.models.janus_layout import Layout
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
from gapeval_lab.models.sequences import (
    Asked,
    check_answers,
    encoded,
    encoded_drawings,
    encoded_logits,
    same_length,
    text_losses,
)


class LoadedJanus:
    """A Janus in memory: the protocol `UMM`.

    Attributes:
        model: the JanusForConditionalGeneration; owner of every live weight.
        processor: its tokenizer, template and picture settings.
        layout: its token sequences.
    """

    directions: frozenset[Direction] = frozenset(Direction)

    def __init__(self, model: Any, processor: Any, settings: Janus) -> None:
        self.model, self.processor, self._settings = model, processor, settings
        self.name = f"janus/{Path(settings.weights).name}"
        self.layout = Layout(model, processor)
        self._sites = settings.sites_in(model)
        self._trunk = model.model.language_model
        self._compiled = Compiled(self._trunk, wanted=settings.compile)

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        """A text answer to each prompt: the likeliest, or one drawn from the prompt's own seed."""
        same_length(prompts, seeds)
        limit, answers = self._settings.max_new_tokens, [""] * len(prompts)
        with torch.inference_mode(), self._compiled:
            for indices, embeddings, mask, _ in self._batches(prompts, Direction.UNDERSTANDING):
                stepper = Stepper(self._trunk, mask, room=limit - 1)
                tokens = continue_text(
                    stepper,
                    embeddings,
                    model=self.model,
                    stops=self.layout.stop_ids,
                    limit=limit,
                    seeds=[seeds[index] for index in indices],
                    temperature=self._settings.answer_temperature,
                )
                for index, row in zip(indices, tokens, strict=True):
                    answers[index] = self.layout.decode(row)
        return answers

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Image.Image]:
        """A picture for each prompt, drawn from the prompt's own seed."""
        return self.layout.pictures(self.draw_codes(prompts, seeds=seeds)) if prompts else []

    def draw_codes(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> Tensor:
        """The pictures of `draw` before they are decoded: code ids, (prompts, codes per picture)."""
        same_length(prompts, seeds)
        count, guidance = self.layout.picture_tokens, self._settings.guidance
        codes = torch.empty(len(prompts), count, dtype=torch.long)
        with torch.inference_mode(), self._compiled:
            for indices, embeddings, mask, ids in self._batches(prompts, Direction.GENERATION):
                if guidance != 1.0:
                    untold = self.layout.embed(self.layout.unconditional(ids), [])
                    embeddings, mask = torch.cat([embeddings, untold]), mask.repeat(2, 1)
                drawn = draw_codes(
                    Stepper(self._trunk, mask, room=count - 1),
                    embeddings,
                    model=self.model,
                    seeds=[seeds[index] for index in indices],
                    count=count,
                    temperature=self._settings.temperature,
                    guidance=guidance,
                )
                codes[indices] = drawn.cpu()
        return codes

    def loss(self, examples: Sequence[Example], direction: Direction) -> Tensor:
        """Teacher-forced negative log-likelihood of each answer, summed over its tokens.

        A text answer counts its tokens and the eos after them; a picture answer the codes that the
        model's own image tokenizer gives it.

        Args:
            examples: answers are texts for understanding, pictures for generation.
            direction: which of the two.

        Returns:
            (batch,) nats, float32, on the model's device; differentiable unless gradients are off.

        Raises:
            UserError: an answer is of the other kind.
        """
        if not examples:
            return torch.zeros(0, device=self.model.device)
        check_answers(examples, direction)
        prompts = [example.prompt for example in examples]
        asked = self.layout.ask(prompts, direction)
        replies = (
            [
                [*self.layout.reply(one, str(example.answer)).ids, self.layout.eos_id]
                for one, example in zip(asked, examples, strict=True)
            ]
            if direction is Direction.UNDERSTANDING
            else None
        )
        features = self._features(prompts)
        groups = pieces(
            [len(row) for row in replies or (one.ids for one in asked)], most=self._settings.batch
        )
        losses = []
        for group in groups:
            rows = [asked[index] for index in group]
            pictures = [features[digest] for row in rows for digest in row.pictures]
            if replies is None:
                answers = [examples[index].answer for index in group]
                losses.append(self._picture_loss(rows, pictures, answers))
            else:
                losses.append(self._text_loss(rows, pictures, [replies[index] for index in group]))
        order = torch.tensor([index for group in groups for index in group])
        return torch.cat(losses)[order.argsort()]

    def _text_loss(
        self, asked: Sequence[Asked], pictures: Sequence[Tensor], whole: Sequence[Sequence[int]]
    ) -> Tensor:
        """Losses of text answers; `whole` holds prompt, answer and eos of each row."""
        ids, mask = self.layout.padded(whole)
        states = self._states(self.layout.embed(ids[:, :-1], pictures), mask[:, :-1])
        answers = [len(row) - len(one.ids) for one, row in zip(asked, whole, strict=True)]
        return text_losses(self.model.lm_head, states, ids, answers)

    def _picture_loss(
        self, asked: Sequence[Asked], pictures: Sequence[Tensor], answers: Sequence[Any]
    ) -> Tensor:
        """Losses of picture answers."""
        ids, mask = self.layout.padded([one.ids for one in asked])
        return self._codes_loss(ids, mask, pictures, self.layout.codes(answers))

    def _codes_loss(self, ids: Tensor, mask: Tensor, pictures: Sequence[Tensor], codes: Tensor) -> Tensor:
        """Losses of codes after padded prompts: (batch,)."""
        drawn = self.model.prepare_embeddings_for_image_generation(codes[:, :-1])
        embeddings = torch.cat([self.layout.embed(ids, pictures), drawn], dim=1)
        states = self._states(embeddings, torch.cat([mask, torch.ones_like(codes[:, :-1])], dim=1))
        logits = self.model.model.generation_head(states[:, -codes.shape[1] :]).float()
        terms = functional.cross_entropy(logits.transpose(1, 2), codes.to(logits.device), reduction="none")
        return terms.sum(1).to(codes.device)

    def _states(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """The trunk's last hidden states over whole sequences, (batch, length, hidden)."""
        states: Tensor = self._trunk(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=False,
        ).last_hidden_state
        return states.to(embeddings.device)  # layers may lie on several devices

    def backbone(self) -> Backbone:
        """The trunk, for interventions. Targets are appended without eos, which is no part of a fact."""
        return Backbone(
            root=self.model,
            sites=self._sites,
            hidden_size=self.model.config.text_config.hidden_size,
            encode=lambda questions, targets: encoded(self.layout, questions, targets),
            logits=lambda encoded: encoded_logits(self.model, encoded),
            tokenizer=self.processor.tokenizer,
            encode_drawings=self._encode_drawings,
            drawing_loss=lambda drawing: self._codes_loss(
                drawing.prompt.input_ids, drawing.prompt.attention_mask, [], drawing.codes
            ),
        )

    def _encode_drawings(self, prompts: Sequence[str], pictures: Sequence[Image.Image]) -> Drawing:
        return Drawing(encoded_drawings(self.layout, prompts), self.layout.codes(pictures))

    def save(self, folder: Path) -> None:
        """Write weights, tokenizer and picture settings as a checkpoint that `load` reads."""
        with quiet():
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)

    def settings(self) -> dict[str, Any]:
        """Decoding settings, and a hash of tokenizer, template and picture settings."""
        chosen = self._settings
        return {
            "family": "janus",
            "dtype": chosen.dtype,
            "device": self.model.device.type,
            "temperature": chosen.temperature,
            "guidance": chosen.guidance,
            "max_new_tokens": chosen.max_new_tokens,
            "layout": self.layout.digest(),
            # Left out where it is the default, which was all there was when answers were stored first.
            **({"answer_temperature": chosen.answer_temperature} if chosen.answer_temperature else {}),
            **chosen.of_answers(),
        }

    def _batches(
        self, prompts: Sequence[Prompt], direction: Direction
    ) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
        """Prompts in batches: their indices, embeddings, mask and token ids."""
        asked = self.layout.ask(prompts, direction)
        features = self._features(prompts)
        for group in pieces([len(one.ids) for one in asked], most=self._settings.batch):
            rows = [asked[index] for index in group]
            ids, mask = self.layout.padded([row.ids for row in rows])
            pictures = [features[digest] for row in rows for digest in row.pictures]
            yield group, self.layout.embed(ids, pictures), mask, ids

    def _features(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        return self.layout.features([image for prompt in prompts for image in prompt.images])


class QuantisedJanus(Quantised, LoadedJanus):
    """A Janus whose weights are held in 8 or 4 bits: measured, never edited."""


def load(settings: Janus) -> LoadedJanus:
    """Read the weights that the settings name.

    Raises:
        UserError: weights or device are not there, not whole, or not a Janus.
    """
    find_device(settings.device)
    folder = find_checkpoint(settings.weights, embedded=EMBEDDED_FOLDER)
    check_checkpoint(folder, weights=settings.weights, model_type="janus")
    with quiet():
        processor = load_processor(folder, settings.weights)
    model = load_weights(JanusForConditionalGeneration, folder, settings)
    check_vocabulary(model, processor, settings.weights)
    return (LoadedJanus if settings.quantise is None else QuantisedJanus)(model, processor, settings)


def sketch(settings: Janus) -> nn.Module:
    """See `Janus.sketch`."""
    config = find_config(settings.weights, embedded=EMBEDDED_FOLDER, model_type="janus")
    return without_weights(
        lambda: JanusForConditionalGeneration(JanusConfig.from_dict(config)), settings.weights
    )
