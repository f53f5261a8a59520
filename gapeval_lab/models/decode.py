"""The two decoding loops of models that write and draw token by token, on the trunk's own modules.

Works on embeddings and masks; knows no model family, prompts, tokenizers or pictures. Never touches
global random state: each row draws from a generator of its own.

Faster than the library's generate because keys and values are written into memory set aside once
(growing them by concatenation copies everything at each step), the mask is built once and sliced,
and the branch without condition runs only where guidance asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_LEAST: Final = 2.0**-25
"""Half the smallest positive step of the uniform numbers behind an exponential one: a draw of
exactly 0 (one in 2**24) would otherwise be an infinite Gumbel value, which wins whatever the model says."""


OWN_MASK: Final = ("sdpa", "eager")
"""Attention that takes a mask over pairs of positions; flash attention has one over tokens."""


class _Room(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, in memory set aside for `total` positions."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self._total, self._filled = total, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new positions; give views of all so far: (batch, heads, positions, width)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            batch, heads, _, width = key_states.shape
            self._keys = key_states.new_empty(batch, heads, self._total, width)
            self._values = value_states.new_empty(batch, heads, self._total, value_states.shape[-1])
        end = self._filled + key_states.shape[-2]
        self._keys[:, :, self._filled : end] = key_states
        self._values[:, :, self._filled : end] = value_states
        self._filled = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these."""
        self._keys, self._values = self._keys[rows], self._values[rows]
        self.keys, self.values = self._keys[:, :, : self._filled], self._values[:, :, : self._filled]


class Stepper:
    """The trunk fed piece by piece: first the prompts, then what follows, mostly one position at a time.

    Args:
        trunk: the language model without its head.
        mask: (batch, length) of the left-padded prompts.
        room: how many positions will follow the prompts.
    """

    def __init__(self, trunk: Any, mask: Tensor, *, room: int) -> None:
        self._trunk, self._past = trunk, 0
        whole = torch.cat([mask, mask.new_ones(len(mask), room)], dim=1)
        self._positions = positions(whole)
        # Additive, since a boolean mask is turned into this one again in every layer. The lowest
        # finite number, not -inf: a padding position attends to nothing but itself and its like, and
        # a row of -inf would make it NaN.
        # Flash attention takes the plain mask alone.
        self._plain = trunk.config._attn_implementation not in OWN_MASK
        self._mask = whole
        if not self._plain:
            lowest = torch.finfo(trunk.dtype).min
            self._mask = torch.zeros(whole.shape, dtype=trunk.dtype, device=mask.device)
            self._mask = self._mask.masked_fill(whole == 0, lowest)[:, None, None, :]
        self._layers = [_Room(whole.shape[1]) for _ in range(trunk.config.num_hidden_layers)]
        self._cache = Cache(layers=self._layers)

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Feed (batch, new positions, hidden); the last position's output, (batch, hidden)."""
        new = embeddings.shape[1]
        end = self._past + new
        mask = self._mask[..., :end]
        if new > 1 and not self._plain:
            lowest = torch.finfo(mask.dtype).min
            ahead = torch.full((new, end), lowest, dtype=mask.dtype, device=mask.device)
            mask = torch.minimum(mask, ahead.triu(1 + self._past))
        output = self._trunk(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=self._positions[:, self._past : end],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._past = end
        last: Tensor = output.last_hidden_state[:, -1]
        return last

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these."""
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        for layer in self._layers:
            layer.keep(rows)


def continue_text(
    stepper: Stepper,
    embeddings: Tensor,
    *,
    model: Any,
    stops: Collection[int],
    limit: int,
    seeds: Sequence[int] = (),
    temperature: float = 0.0,
) -> list[list[int]]:
    """The likeliest next token, or one drawn, again and again, until a stop token or the limit.

    Drawing is by Gumbel-max, as in `draw_codes`. Rows that have ended leave the batch once they are half
    of it; the others keep their own noise.

    Args:
        stepper: over the prompts, with room for `limit` - 1 positions.
        embeddings: the prompts, (batch, length, hidden).
        model: gives the text head and the token embeddings.
        stops: tokens that end an answer; not part of it.
        limit: tokens at most.
        seeds: one per row; play no part at temperature 0.
        temperature: 0 takes the likeliest token.
    """
    noise = _Noise(seeds) if temperature > 0 else None
    answers: list[list[int]] = [[] for _ in range(len(embeddings))]
    live = list(range(len(embeddings)))  # the batch's rows: which answer each one writes
    ended: set[int] = set()
    head, embed = model.lm_head, model.get_input_embeddings()
    for step in range(limit):
        logits = head(stepper(embeddings))
        if noise is not None:
            logits = logits.float() / temperature + noise(logits.shape[-1]).to(logits.device)
        tokens = logits.argmax(-1)
        for row, token in zip(live, tokens.tolist(), strict=True):
            if row in ended:
                continue
            if token in stops:
                ended.add(row)
            else:
                answers[row].append(token)
        if len(ended) == len(answers) or step == limit - 1:
            break
        going = [place for place, row in enumerate(live) if row not in ended]
        if 2 * len(going) <= len(live):
            rows = torch.tensor(going)  # on the CPU: layers may lie on several devices
            stepper.keep(rows)
            if noise is not None:
                noise.keep(going)
            tokens, live = tokens[rows], [live[place] for place in going]
        embeddings = embed(tokens[:, None])
    return answers


def draw_codes(
    stepper: Stepper,
    embeddings: Tensor,
    *,
    head: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor, int], Tensor],
    seeds: Sequence[int],
    count: int,
    temperature: float,
    guidance: float,
    top_k: int | None = None,
) -> Tensor:
    """Picture codes, (batch, count).

    Sampling is by Gumbel-max: argmax(logits / temperature + noise), the noise of a row and step
    fixed by the row's seed alone. A model and a slightly edited one therefore draw the same code
    wherever their distributions allow it (Maddison et al. 2014 for the identity; common random
    numbers for the use), which running along the cumulative distribution does not give: there a
    shift in any code's probability moves all codes after it.

    Guidance: u + guidance * (c - u) on the logits c with and u without the prompt.

    Args:
        stepper: over the prompts, with room for all that `embed` gives.
        embeddings: the prompts, (batch, length, hidden); where guidance is not 1, the same
            prompts without their condition follow, (2 * batch, length, hidden).
        head: (rows, hidden) -> (rows, codes), the logits of the next code.
        embed: (rows,) codes and how many were drawn before them -> (rows, positions, hidden), what the
            trunk reads before the next code: the code, and what stands between the two.
        seeds: one per row.
        count: codes in a picture.
        temperature: 0 takes the likeliest code.
        guidance: 1 is none.
        top_k: only so many of the likeliest codes are drawn from; None: all.
    """
    chosen: list[Tensor] = []
    noise = _Noise(seeds) if temperature > 0 else None
    for step in range(count):
        logits = head(stepper(embeddings)).float()
        if guidance != 1.0:
            told, untold = logits.chunk(2)
            logits = untold + guidance * (told - untold)
        if noise is not None:
            if top_k is not None and top_k < logits.shape[-1]:
                least = logits.topk(top_k, dim=-1).values[:, -1:]
                logits = logits.masked_fill(logits < least, -torch.inf)
            logits = logits / temperature + noise(logits.shape[-1]).to(logits.device)
        codes = logits.argmax(-1)
        chosen.append(codes)
        if step < count - 1:
            following = codes if guidance == 1.0 else codes.repeat(2)
            embeddings = embed(following, step)
    return torch.stack(chosen, dim=1)


class _Noise:
    """Standard Gumbel noise, one generator per row, on the CPU so that devices draw the same."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, width: int) -> Tensor:
        """The next step's noise: (rows, width)."""
        exponential = torch.empty(len(self._generators), width)
        for row, generator in zip(exponential, self._generators, strict=True):
            row.exponential_(generator=generator)
        return -exponential.clamp_min_(_LEAST).log_()

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        self._generators = [self._generators[row] for row in rows]


def pieces(lengths: Sequence[int], *, most: int, spread: int = 32) -> list[list[int]]:
    """Indices grouped for batches: similar lengths together, at most `most` in a group.

    A group's lengths differ by at most `spread`, so that prompts without a picture are not padded
    to the length of those with one. Groups of one stretch are of equal size, give or take one.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    stretches: list[list[int]] = []
    for index in order:
        if not stretches or lengths[index] - lengths[stretches[-1][0]] > spread:
            stretches.append([])
        stretches[-1].append(index)
    groups = []
    for stretch in stretches:
        number = -(-len(stretch) // most)
        bounds = [len(stretch) * part // number for part in range(number + 1)]
        groups += [stretch[left:right] for left, right in zip(bounds, bounds[1:], strict=False)]
    return groups


def positions(mask: Tensor) -> Tensor:
    """Position ids of left-padded rows: 0 at each row's first real token, and on the padding."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
