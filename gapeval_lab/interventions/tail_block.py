"""One block of Llama's kind over cells of a batch: its answer, and its slope, in few operations.

    x         the stream, one row per cell, (cells, width)
    n(x)      x r w,  r = (mean x^2 + eps)^-1/2                     RMS norm
    y         x + O softmax(scale q k^T + mask) v                  q, k turned by rotary embedding
    z         y + D (silu(G n(y)) * U n(y))

Gradients go to the stream alone and are written out by hand: on small batches the bookkeeping of
autograd, and of modules, costs more than the arithmetic. Weights are read, never changed. Knows
nothing of facts, values or models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

Parts = tuple[tuple[Tensor, Tensor | None], ...]
"""Weights and biases of linear layers: (out, in), (out,)."""


@dataclass(frozen=True)
class Frame:
    """Where the cells of a batch stand.

    Attributes:
        row, column: (cells,) row by row, columns rising.
        end: (seen,) which cells the last block goes on with.
        start: the lowest column among them.
        cos, sin: (cells, 1, head width), the sine signed for a roll.
        mask: (batch, 1, 1, length - start, length), added to scores; 0 or a very negative number.
        heads, keys: numbers of query heads, and of key heads.
    """

    row: Tensor
    column: Tensor
    end: Tensor
    start: int
    cos: Tensor
    sin: Tensor
    mask: Tensor
    heads: int
    keys: int

    def rows(self, keep: Tensor) -> Frame:
        """That of the rows for which `keep` (batch,) is True, numbered anew."""
        kept = keep[self.row]
        number, cell = keep.cumsum(0) - 1, kept.cumsum(0) - 1
        return replace(
            self,
            row=number[self.row[kept]],
            column=self.column[kept],
            end=cell[self.end[kept[self.end]]],
            cos=self.cos[kept],
            sin=self.sin[kept],
            mask=self.mask[keep],
        )

    @cached_property
    def seen(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the cells that the last block goes on with."""
        return self.row[self.end], self.column[self.end]

    @cached_property
    def of_keys(self) -> Tensor:
        """(cells * keys,) where their keys stand among those of all columns, as `Block` lays them out."""
        first = (self.row * self.keys)[:, None] + torch.arange(self.keys, device=self.row.device)
        return (first * self.mask.shape[-1] + self.column[:, None]).flatten()

    @cached_property
    def of_queries(self) -> Tensor:
        """(cells * heads,) where their queries stand among those of all columns from `start` on."""
        return self._queries(self.row, self.column)

    @cached_property
    def of_seen(self) -> Tensor:
        """(seen * heads,), likewise."""
        return self._queries(*self.seen)

    def _queries(self, row: Tensor, column: Tensor) -> Tensor:
        first = (row * self.heads)[:, None] + torch.arange(self.heads, device=row.device)
        return (first * self.mask.shape[-2] + (column - self.start)[:, None]).flatten()


class Notes(NamedTuple):
    """What a block's slope needs of its answer; see `Block.answer` for the names."""

    x: Tensor
    r: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    p: Tensor
    y: Tensor
    s: Tensor
    gate: Tensor
    up: Tensor


@dataclass(frozen=True)
class Block:
    """One block's weights.

    Attributes:
        norm, second_norm: weight (None where it lies in what reads it) and eps.
        taken: what reads the normed stream: q, k and v, as one or as three.
        gated: what reads it behind the attention: gate and up, as one or as two.
        heads, keys, width: numbers of query heads and of key heads, and their width.
        scale: of the scores.
    """

    norm: tuple[Tensor | None, float]
    taken: Parts
    out: tuple[Tensor, Tensor | None]
    second_norm: tuple[Tensor | None, float]
    gated: Parts
    down: tuple[Tensor, Tensor | None]
    heads: int
    keys: int
    width: int
    scale: float

    @classmethod
    def of(cls, module: Any, *, fused: bool) -> Self:
        """The weights of a module of Llama's kind.

        Args:
            module: the block.
            fused: lay together, in a copy, weights that read the same input, and the norm before them.
        """
        attention, mlp, head = module.self_attn, module.mlp, int(module.self_attn.head_dim)
        norms = [module.input_layernorm, module.post_attention_layernorm]
        readers = [(attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)]
        first, second = (_laid(norm, layers, fused) for norm, layers in zip(norms, readers, strict=True))
        return cls(
            norm=first[0],
            taken=first[1],
            out=(attention.o_proj.weight, attention.o_proj.bias),
            second_norm=second[0],
            gated=second[1],
            down=(mlp.down_proj.weight, mlp.down_proj.bias),
            heads=attention.q_proj.out_features // head,
            keys=attention.k_proj.out_features // head,
            width=head,
            scale=float(attention.scaling),
        )

    def answer(
        self, x: Tensor, frame: Frame, kept: tuple[Tensor, Tensor], *, last: bool
    ) -> tuple[Tensor, Notes]:
        """The stream after the block.

        Args:
            x: (cells, width).
            frame: of the cells.
            kept: keys and values of all columns, (batch * keys, length, head width); those of the cells
                are computed anew.
            last: go on with `frame.end` alone.

        Returns:
            (cells or seen, width), and what `slope` needs.
        """
        normed, r = _norm(x, *self.norm)
        states = _linear(normed, self.taken).view(len(x), self.heads + 2 * self.keys, -1)
        turned, value = states[:, : self.heads + self.keys], states[:, self.heads + self.keys :]
        turned = torch.addcmul(turned * frame.cos, turned.roll(turned.shape[-1] // 2, -1), frame.sin)
        query, key = turned[:, : self.heads], turned[:, self.heads :]
        k, v = (_put(old, frame.of_keys, new) for old, new in zip(kept, (key, value), strict=True))
        at, y = frame.of_queries, x
        if last:
            at, query, y = frame.of_seen, query[frame.end], x[frame.end]
        q = self._spread(query * self.scale, frame, at)  # scaled first: 16 bits hold no large scores
        scores = (q @ k.transpose(1, 2)).view(len(frame.mask), self.keys, -1, *frame.mask.shape[-2:])
        p = (scores + frame.mask).softmax(-1).view(len(q), q.shape[1], -1)
        y = y + functional.linear(_taken(p @ v, at).view(len(y), -1), *self.out)
        normed, s = _norm(y, *self.second_norm)
        gate, up = _halves(normed, self.gated)
        z = y + functional.linear(functional.silu(gate) * up, *self.down)
        return z, Notes(x, r, q, k, v, p, y, s, gate, up)

    def slope(self, dz: Tensor, frame: Frame, notes: Notes, *, last: bool) -> Tensor:
        """d loss / d x, from d loss / d z: (cells, width)."""
        n, cells, at = notes, len(notes.x), frame.of_seen if last else frame.of_queries
        inner = dz @ self.down[0]
        d_gate = torch.ops.aten.silu_backward(inner * n.up, n.gate)
        d_up = inner * functional.silu(n.gate)
        dy = dz + _norm_slope(_linear_slope([d_gate, d_up], self.gated), n.y, n.s, self.second_norm[0])
        d_seen = self._spread(dy @ self.out[0], frame, at)
        dp = d_seen @ n.v.transpose(1, 2) * n.p
        d_scores = torch.addcmul(dp, n.p, dp.sum(-1, keepdim=True), value=-1)
        dk = _taken(d_scores.transpose(1, 2) @ n.q, frame.of_keys).view(cells, self.keys, -1)
        dv = _taken(n.p.transpose(1, 2) @ d_seen, frame.of_keys).view(cells, self.keys, -1)
        dq = _taken(d_scores @ n.k, at).view(len(dz), self.heads, -1) * self.scale
        if last:
            dq = dq.new_zeros(cells, *dq.shape[1:]).index_copy_(0, frame.end, dq)
            dy = torch.zeros_like(n.x).index_copy_(0, frame.end, dy)
        turned = torch.cat([dq, dk], dim=1)
        turned = torch.addcmul((turned * frame.sin).roll(-(turned.shape[-1] // 2), -1), turned, frame.cos)
        if len(self.taken) == 1:
            parts = [torch.cat([turned, dv], dim=1).flatten(1)]
        else:
            parts = [part.flatten(1) for part in (turned[:, : self.heads], turned[:, self.heads :], dv)]
        return dy + _norm_slope(_linear_slope(parts, self.taken), n.x, n.r, self.norm[0])

    def _spread(self, states: Tensor, frame: Frame, at: Tensor) -> Tensor:
        """Cells' heads where attention has them, else 0: (batch * keys, group * columns, head width)."""
        states = states.reshape(len(at), -1)
        size, width = len(frame.mask) * self.heads * frame.mask.shape[-2], states.shape[-1]
        placed = states.new_zeros(size, width).index_copy_(0, at, states)
        return placed.view(len(frame.mask) * self.keys, -1, width)


def _put(old: Tensor, at: Tensor, new: Tensor) -> Tensor:
    """`old` (..., n) with the rows `at` of its flattened form replaced."""
    width = old.shape[-1]
    return old.view(-1, width).index_copy(0, at, new.reshape(-1, width)).view_as(old)


def _taken(states: Tensor, at: Tensor) -> Tensor:
    """The rows `at` of states (..., n) in their flattened form: (at, n)."""
    return states.view(-1, states.shape[-1]).index_select(0, at)


def _laid(norm: Any, layers: tuple[nn.Linear, ...], fused: bool) -> tuple[tuple[Tensor | None, float], Parts]:
    """A norm and what reads it: as they are, or as one linear layer that holds the norm's weight."""
    eps = float(norm.variance_epsilon)
    parts: Parts = tuple((layer.weight, layer.bias) for layer in layers)
    biases = [bias for _, bias in parts if bias is not None]
    if not fused or 0 < len(biases) < len(parts):
        return (norm.weight, eps), parts
    weights: list[Tensor] = [weight for weight, _ in parts]
    return (None, eps), ((torch.cat(weights) * norm.weight, torch.cat(biases) if biases else None),)


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """n(x), and r in float32."""
    wide = x.float() if x.dtype != torch.float64 else x
    r = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    normed = (wide * r).to(x.dtype)
    return normed if weight is None else normed * weight, r


def _norm_slope(dn: Tensor, x: Tensor, r: Tensor, weight: Tensor | None) -> Tensor:
    """d loss / d x from d loss / d n: r (g - x r^2 mean(g x)),  g = dn w."""
    g = (dn if weight is None else dn * weight).to(r.dtype)
    wide = x.to(r.dtype)
    share = (g * wide).mean(-1, keepdim=True) * r.square()
    return (torch.addcmul(g, wide, share, value=-1) * r).to(x.dtype)


def _linear(x: Tensor, parts: Parts) -> Tensor:
    """What linear layers that read the same input give, side by side."""
    given = [functional.linear(x, weight, bias) for weight, bias in parts]
    return given[0] if len(given) == 1 else torch.cat(given, dim=-1)


def _halves(x: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:
    """What two layers give, whether they lie together or not."""
    given = [functional.linear(x, weight, bias) for weight, bias in parts]
    first, second = given[0].chunk(2, dim=-1) if len(given) == 1 else given
    return first, second


def _linear_slope(slopes: list[Tensor], parts: Parts) -> Tensor:
    """d loss / d x from those of what `parts` give; one for each of the layers, whether fused or not."""
    if len(parts) == 1:
        whole = slopes[0] if len(slopes) == 1 else torch.cat(slopes, dim=-1)
        return whole @ parts[0][0]
    total = slopes[0] @ parts[0][0]
    for slope, (weight, _) in zip(slopes[1:], parts[1:], strict=True):
        total = total.addmm_(slope, weight)
    return total
