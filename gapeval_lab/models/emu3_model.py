"""An Emu3 in memory, as a unified multimodal model: reading its weights, and the five things a UMM does.

Token sequences are emu3_layout's, decoding loops are decode's. Knows no benchmark, judge or
intervention, and changes no weight.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import Emu3Config, Emu3ForConditionalGeneration

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone, Drawing
from gapeval_lab.items import Direction, Example, Prompt
from gapeval_lab.models.checkpoint import check_checkpoint, find_checkpoint, find_config, unusable
from gapeval_lab.models.decode import Stepper, continue_text, draw_codes, pieces, positions
from gapeval_lab.models.emu3 import Emu3
from gapeval_lab.models.emu3_layout import Layout
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
    check_answers,
    encoded,
    encoded_drawings,
    encoded_logits,
    same_length,
    text_losses,
)

EMBEDDED_FOLDER: Final = Path(__file__).parent / "embedded_emu3"


class LoadedEmu3:
    """An Emu3 in memory: the protocol `UMM`.

    Attributes:
        model: the Emu3ForConditionalGeneration; owner of every live weight.
        processor: its tokenizer, template and picture settings.
        layout: its token sequences.
    """

    directions: frozenset[Direction] = frozenset(Direction)

    def __init__(self, model: Any, processor: Any, settings: Emu3) -> None:
        self.model, self.processor, self._settings = model, processor, settings
        self.name = f"emu3/{Path(settings.weights).name}"
        self.layout = Layout(model, processor, settings.size)
        self._sites = settings.sites_in(model)
        self._trunk = model.model.text_model
        self._compiled = Compiled(self._trunk, wanted=settings.compile)

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        """A text answer to each prompt: the likeliest, or one drawn from the prompt's own seed."""
        same_length(prompts, seeds)
        limit, answers = self._settings.max_new_tokens, [""] * len(prompts)
        with torch.inference_mode(), self._compiled:
            for indices, rows in self._batches(prompts, Direction.UNDERSTANDING):
                ids, mask = self.layout.padded(rows)
                tokens = continue_text(
                    Stepper(self._trunk, mask, room=limit - 1),
                    self._embed(ids),
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
        return self.layout.pictures(self.draw_codes(prompts, seeds=seeds))

    def draw_codes(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> Tensor:
        """The pictures of `draw` before they are decoded: code ids, (prompts, codes per picture).

        Rows end and pictures end where the size says, so that only visual tokens are ever chosen.
        """
        same_length(prompts, seeds)
        layout, chosen = self.layout, self._settings
        codes = torch.empty(len(prompts), layout.count, dtype=torch.long)
        (untold,) = layout.ask([Prompt(chosen.negative_prompt)], Direction.GENERATION)

        def following(drawn: Tensor, step: int) -> Tensor:
            tokens = layout.tokens(drawn)[:, None]
            if (step + 1) % layout.width == 0:
                tokens = torch.cat([tokens, torch.full_like(tokens, layout.eol_id)], dim=1)
            return self._embed(tokens)

        with torch.inference_mode(), self._compiled:
            for indices, rows in self._batches(prompts, Direction.GENERATION):
                branch = [] if chosen.guidance == 1.0 else [untold.ids] * len(rows)
                ids, mask = layout.padded([*rows, *branch])
                drawn = draw_codes(
                    # An eol follows every row of the picture but the last.
                    Stepper(self._trunk, mask, room=layout.count - 1 + layout.height - 1),
                    self._embed(ids),
                    head=lambda states: layout.visual(self.model.lm_head(states)),
                    embed=following,
                    seeds=[seeds[index] for index in indices],
                    count=layout.count,
                    temperature=chosen.temperature,
                    guidance=chosen.guidance,
                    top_k=chosen.top_k,
                )
                codes[indices] = drawn.cpu()
        return codes

    def loss(self, examples: Sequence[Example], direction: Direction) -> Tensor:
        """Teacher-forced negative log-likelihood of each answer, summed over its tokens.

        A text answer counts its tokens and the eos after them; a picture answer the codes that the
        model's own picture tokenizer gives it at the size of drawings, each among all codes, as they are
        drawn: ends of rows and of pictures are given and count nothing.

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
        asked = self.layout.ask([example.prompt for example in examples], direction)
        rows = [one.ids for one in asked]
        if direction is Direction.UNDERSTANDING:
            rows = [
                [*self.layout.reply(one, str(example.answer)).ids, self.layout.eos_id]
                for one, example in zip(asked, examples, strict=True)
            ]
        groups = pieces([len(row) for row in rows], most=self._settings.batch)
        losses = []
        for group in groups:
            ids, mask = self.layout.padded([rows[index] for index in group])
            if direction is Direction.UNDERSTANDING:
                answers = [len(rows[index]) - len(asked[index].ids) for index in group]
                states = self._states(ids[:, :-1], mask[:, :-1])
                losses.append(text_losses(self.model.lm_head, states, ids, answers))
            else:
                pictures: list[Any] = [examples[index].answer for index in group]
                losses.append(self._codes_loss(ids, mask, self.layout.codes(pictures)))
        order = torch.tensor([index for group in groups for index in group])
        return torch.cat(losses)[order.argsort()]

    def _codes_loss(self, ids: Tensor, mask: Tensor, codes: Tensor) -> Tensor:
        """Losses of codes after padded prompts: (batch,)."""
        layout = self.layout
        height, width = layout.height, layout.width
        # Neither the last code nor the eol after it is read.
        drawn = layout.rows(codes.view(-1, height, width))[:, :-2]
        states = self._states(
            torch.cat([ids, drawn], dim=1), torch.cat([mask, torch.ones_like(drawn)], dim=1)
        )
        # Each code is foretold at the position before it; the codes of a row stand width + 1 from row to row.
        before = torch.arange(height)[:, None] * (width + 1) + torch.arange(width) + ids.shape[1] - 1
        logits = layout.visual(self.model.lm_head(states[:, before.flatten().to(states.device)])).float()
        terms = functional.cross_entropy(logits.transpose(1, 2), codes.to(logits.device), reduction="none")
        return terms.sum(1).to(codes.device)

    def _embed(self, ids: Tensor) -> Tensor:
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The trunk's last hidden states over whole sequences, (batch, length, hidden)."""
        embeddings = self._embed(ids)
        states: Tensor = self._trunk(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=False,
        ).last_hidden_state
        return states.to(embeddings.device)  # layers may lie on several devices

    def backbone(self) -> Backbone:
        """The trunk, for interventions. Targets are appended without eos, which is no part of a fact."""
        config = self.model.config.text_config
        return Backbone(
            root=self.model,
            sites=self._sites,
            hidden_size=config.hidden_size,
            encode=lambda questions, targets: encoded(self.layout, questions, targets),
            logits=lambda encoded: encoded_logits(self.model, encoded),
            tokenizer=self.processor.tokenizer,
            encode_drawings=lambda prompts, pictures: Drawing(
                encoded_drawings(self.layout, prompts), self.layout.codes(pictures)
            ),
            drawing_loss=lambda drawing: self._codes_loss(
                drawing.prompt.input_ids, drawing.prompt.attention_mask, drawing.codes
            ),
        )

    def save(self, folder: Path) -> None:
        """Write weights, tokenizer and picture settings as a checkpoint that `load` reads."""
        with quiet():
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)

    def settings(self) -> dict[str, Any]:
        """Decoding settings, and a hash of tokenizer, template, picture settings and drawing size."""
        chosen = self._settings
        return {
            "family": "emu3",
            "dtype": chosen.dtype,
            "device": self.model.device.type,
            "temperature": chosen.temperature,
            "top_k": chosen.top_k,
            "guidance": chosen.guidance,
            "negative_prompt": chosen.negative_prompt,
            "max_new_tokens": chosen.max_new_tokens,
            "layout": self.layout.digest(),
            # Left out where it is the default, which was all there was when answers were stored first.
            **({"answer_temperature": chosen.answer_temperature} if chosen.answer_temperature else {}),
            **chosen.of_answers(),
        }

    def _batches(
        self, prompts: Sequence[Prompt], direction: Direction
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Prompts in batches: their indices and token ids."""
        asked = self.layout.ask(prompts, direction)
        for group in pieces([len(one.ids) for one in asked], most=self._settings.batch):
            yield group, [asked[index].ids for index in group]


class QuantisedEmu3(Quantised, LoadedEmu3):
    """An Emu3 whose weights are held in 8 or 4 bits: measured, never edited."""


def load(settings: Emu3) -> LoadedEmu3:
    """Read the weights that the settings name.

    Raises:
        UserError: weights or device are not there, not whole, or not an Emu3.
    """
    device = find_device(settings.device)
    if settings.attention.startswith("flash") and device.type != "cuda":
        raise UserError(f"model.attention: '{settings.attention}' needs a CUDA device; use 'sdpa'")
    weights = settings.weights
    folder = find_checkpoint(weights, embedded=EMBEDDED_FOLDER)
    check_checkpoint(folder, weights=weights, model_type="emu3")
    _check_visual_tokens(folder, weights)
    with quiet():
        processor = load_processor(folder, weights)
    # Heads of the picture tokenizer are too wide for flash attention.
    parts = {"text_config": settings.attention, "vq_config": "sdpa"}
    model = load_weights(Emu3ForConditionalGeneration, folder, settings, attention=parts)
    check_vocabulary(model, processor, weights)
    return (LoadedEmu3 if settings.quantise is None else QuantisedEmu3)(model, processor, settings)


def sketch(settings: Emu3) -> nn.Module:
    """See `Emu3.sketch`."""
    config = find_config(settings.weights, embedded=EMBEDDED_FOLDER, model_type="emu3")
    return without_weights(
        lambda: Emu3ForConditionalGeneration(Emu3Config.from_dict(config)), settings.weights
    )


def _check_visual_tokens(folder: Path, weights: str) -> None:
    """Make sure that the config says which tokens are pictures, before the library stumbles over it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    known, codes = config.get("vocabulary_map"), (config.get("vq_config") or {}).get("codebook_size", 32768)
    needed = ["<image>", "<|extra_200|>", *(f"<|visual token {code:06d}|>" for code in range(codes))]
    lacking = [name for name in needed if name not in (known or {})]
    if lacking:
        raise unusable(
            weights,
            f"lacks {len(lacking)} tokens in the vocabulary_map of its config.json ('{lacking[0]}', ...)",
            "take config.json from the original checkpoint",
        )
