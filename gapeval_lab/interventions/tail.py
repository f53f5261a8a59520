"""The blocks above an edited layer, run many times over the same rows with another value each time.

    h         the stream after the layer, (batch, length, width)
    cells     the (row, column) pairs that are computed: from the first that the row's value reaches to the
              last that is looked at; (cells,) each

No other column changes, so its keys and values are kept from the one pass over everything. Cells of
all rows lie in one matrix, without padding, and in the last block only those that are looked at go on
behind their keys and values. Made for blocks of Llama's kind (RMS norm, rotary attention, gated MLP),
as Llama, Mistral, Qwen2, Janus and Emu3 have them. Other blocks, and blocks that somebody wraps or
hooks, get no tail: they are run as they are. So are blocks whose answer differs from the tail's on the
very rows that it is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gapeval_lab.interventions.tail_block import Block, Frame
from gapeval_lab.interventions.trace import module_at

FUSED = 50_000_000
"""Weights above the layer up to which those that read the same input are laid together: fewer, wider
products, at the price of a copy."""

_CHILDREN = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj"},
}


@dataclass(frozen=True)
class Surroundings:
    """What a trunk hands to each of its blocks beside the stream.

    Attributes:
        cos, sin: of the rotary embedding, (batch or 1, length, head width).
        mask: (batch or 1, 1, length, length) as attention takes it; None is plainly causal.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None


@contextmanager
def listening(root: nn.Module, path: str) -> Iterator[list[Surroundings]]:
    """Keep what the trunk hands to the block at `path`; the list stays empty where it is of no known form."""
    found: list[Surroundings] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rotary, mask = kwargs.get("position_embeddings"), kwargs.get("attention_mask")
        plain = mask is None or (isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] == 1)
        if plain and len(args) == 1 and isinstance(rotary, tuple) and len(rotary) == 2:
            cos, sin = rotary
            if cos.dim() == sin.dim() == 3:
                found.append(Surroundings(cos, sin, mask))

    handle = module_at(root, path).register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@dataclass(frozen=True)
class Cells:
    """Places in a batch.

    Attributes:
        row, column: (cells,) row by row, columns rising.
        seen: (cells,) True for those whose stream is wanted in the end.
    """

    row: Tensor
    column: Tensor
    seen: Tensor


@dataclass(frozen=True)
class Tail:
    """The blocks above a layer, for some rows.

    Attributes:
        frame: the cells.
        stream: (cells, width) what the layer gave there, unedited.
        last: (batch, length, width) what the last block gives, unedited.
        kept: per block, keys and values everywhere, unedited: (batch * keys, length, head width).
    """

    blocks: tuple[Block, ...]
    frame: Frame
    stream: Tensor
    last: Tensor
    kept: tuple[tuple[Tensor, Tensor], ...]

    def __call__(self, added: Tensor) -> Tensor:
        """What the last block gives at the cells seen where the layer's output has `added` on top of it.

        Args:
            added: (cells, width), in the model's dtype.

        Returns:
            (seen, width), differentiable in `added`, once.
        """
        ends: Tensor = _Through.apply(added, self)  # type: ignore[no-untyped-call]
        return ends

    def whole(self, ends: Tensor) -> Tensor:
        """What the last block gives everywhere, from what it gives at the cells seen."""
        return self.last.index_put(self.frame.seen, ends)

    def rows(self, keep: Tensor) -> Tail:
        """The tail of the rows for which `keep` (batch,) is True."""
        return replace(
            self,
            frame=self.frame.rows(keep),
            stream=self.stream[keep[self.frame.row]],
            last=self.last[keep],
            kept=tuple((_rows(key, keep), _rows(value, keep)) for key, value in self.kept),
        )


class _Through(torch.autograd.Function):
    """A tail's answer, with the slope that its blocks work out."""

    @staticmethod
    def forward(ctx: Any, added: Tensor, tail: Tail) -> Tensor:
        stream, highest, notes = tail.stream + added, len(tail.blocks) - 1, []
        for number, (block, kept) in enumerate(zip(tail.blocks, tail.kept, strict=True)):
            stream, noted = block.answer(stream, tail.frame, kept, last=number == highest)
            notes.append(noted)
        if added.requires_grad:
            ctx.tail, ctx.notes = tail, notes
        return stream

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        tail: Tail = ctx.tail
        highest = len(tail.blocks) - 1
        for number in range(highest, -1, -1):
            # Let go of each block's notes at once: the graph outlives its one backward pass.
            slope = tail.blocks[number].slope(slope, tail.frame, ctx.notes.pop(), last=number == highest)
        return slope, None


def tail_of(
    root: nn.Module,
    path: str,
    paths: Sequence[str],
    *,
    given: Sequence[Surroundings],
    stream: Tensor,
    end: Tensor,
    cells: Cells,
) -> Tail | None:
    """The tail of some rows, from one recorded pass over them; None where it would not be exact.

    Args:
        root: of the model.
        path: the block of the layer; what its parts give must go on as it is.
        paths: the blocks above the layer, from the lowest on.
        given: what `listening` heard at one of them.
        stream: (batch, length, width) what the layer gave.
        end: (batch, length, width) what the last block gave.
        cells: what is to be computed, of every row something.
    """
    if not _plain(module_at(root, path), stream.device):
        return None
    blocks = _blocks([module_at(root, above) for above in paths], stream.device)
    length = stream.shape[1]
    if blocks is None or not given or given[-1].cos.shape[1:] != (length, blocks[0].width):
        return None
    everything = torch.ones(stream.shape[:2], dtype=torch.bool, device=stream.device)
    row, column = everything.nonzero(as_tuple=True)
    whole = _frame(Cells(row, column, everything.flatten()), given[-1], stream, blocks[0])
    states, kept = stream.flatten(0, 1), []
    with torch.no_grad():
        for block in blocks:
            empty = stream.new_empty(len(stream) * block.keys, length, whole.cos.shape[-1])
            states, notes = block.answer(states, whole, (empty, empty), last=False)
            kept.append((notes.k, notes.v))
        real = whole.mask[:, 0, 0, -1] > _never(stream)  # padding sees nothing, and nothing sees it
        if not _same(states.view_as(end)[real], end[real]):
            return None
    frame = _frame(cells, given[-1], stream, blocks[0])
    return Tail(blocks, frame, stream[cells.row, cells.column], end, tuple(kept))


def _frame(cells: Cells, around: Surroundings, stream: Tensor, block: Block) -> Frame:
    """Where cells stand in a batch with the stream (batch, length, width), in blocks like this one."""
    batch, length = stream.shape[:2]
    half = around.sin.shape[-1] // 2
    signed = torch.cat([-around.sin[..., :half], around.sin[..., half:]], dim=-1)
    at = (cells.row, cells.column)
    cos, sin = (part.expand(batch, -1, -1)[at][:, None] for part in (around.cos, signed))
    columns = torch.arange(length, device=stream.device)
    mask = (columns[:, None] >= columns)[None, None] if around.mask is None else around.mask
    never = _never(stream)
    if mask.dtype is torch.bool:
        mask = torch.zeros(mask.shape, dtype=stream.dtype, device=mask.device).masked_fill(~mask, never)
    start = int(cells.column.min())
    mask = mask.clamp_min(never).to(stream.dtype).expand(batch, 1, length, length)[:, :, None, start:]
    return Frame(*at, cells.seen.nonzero().flatten(), start, cos, sin, mask, block.heads, block.keys)


def _never(stream: Tensor) -> float:
    """The score of what is not to be seen; finite, so that padding, which sees nothing, holds numbers."""
    return torch.finfo(stream.dtype).min / 2


def _rows(states: Tensor, keep: Tensor) -> Tensor:
    """Some rows of states (batch * keys, ...)."""
    return states.view(len(keep), -1, *states.shape[1:])[keep].flatten(0, 1)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two streams differ by rounding alone."""
    allowed = 1e-4 if one.dtype in (torch.float32, torch.float64) else 3e-2
    return bool((one - other).abs().max() <= allowed * other.abs().max())


def _blocks(modules: Sequence[nn.Module], device: torch.device) -> tuple[Block, ...] | None:
    """Their weights; None where one is not of the kind that a tail knows."""
    if not modules or not all(_plain(module, device) for module in modules):
        return None
    size = sum(parameter.numel() for module in modules for parameter in module.parameters())
    blocks = tuple(Block.of(module, fused=size <= FUSED) for module in modules)
    return blocks if len({(block.heads, block.keys) for block in blocks}) == 1 else None


def _plain(block: nn.Module, device: torch.device) -> bool:
    """Whether a block has the parts of Llama's, of plain make, unhooked, all on one device."""
    for name, expected in _CHILDREN.items():
        parts = dict(block.get_submodule(name).named_children())
        # What dropout and activation do is seen when the tail's answer is compared.
        named = {key for key, part in parts.items() if key != "act_fn" and not isinstance(part, nn.Dropout)}
        if named != expected:
            return False
        linear = [part for key, part in parts.items() if key.endswith("_proj")]
        norms = [part for key, part in parts.items() if key.endswith("norm")]
        if any(type(part) is not nn.Linear for part in linear):
            return False
        if any({key for key, _ in norm.named_parameters()} != {"weight"} for norm in norms):
            return False
        if any(not isinstance(getattr(norm, "variance_epsilon", None), float) for norm in norms):
            return False
    if any(parameter.device != device for parameter in block.parameters()):
        return False
    if not all(hasattr(block.self_attn, name) for name in ("head_dim", "scaling")):
        return False
    return not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        for module in block.modules()
    )
