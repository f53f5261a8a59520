"""Rows of several facts, and how a value acts on them while the model reads them.

Blocks below the place of a value run once; those above run as a `Tail` where they are of that kind.
Chooses no values, and knows not what a row asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from gapeval_lab.interfaces import Backbone, Encoded
from gapeval_lab.interventions.lookup import FactToken, token_positions
from gapeval_lab.interventions.request import ValueRequest
from gapeval_lab.interventions.tail import Cells, Tail, listening, tail_of
from gapeval_lab.interventions.trace import changing, first_tensor, reading, replaying, with_first

Given = TypeVar("Given")

IN_STREAM = (("mlp_down",), ("block",))
"""Sites whose output goes into the stream after their layer as it is."""


@dataclass(frozen=True)
class Places:
    """Where values act.

    Attributes:
        paths: modules whose output gets a value, all of one layer.
        lower: the blocks that nothing changes, from the lowest on; their output is kept and replayed.
        blocks: all blocks, where a value at a site is the same as one in the stream after the layer;
            else none.
        layer: theirs.
    """

    paths: tuple[str, ...]
    lower: tuple[str, ...]
    blocks: tuple[str, ...]
    layer: int


def places(backbone: Backbone, sites: Sequence[str], layer: int) -> Places:
    """The places of some sites at a layer. The stream after a block (site "block") is one too."""
    table = backbone.sites
    below = layer + 1 if set(sites) == {"block"} else layer
    blocks = (
        tuple(table.path("block", one) for one in range(table.layers)) if "block" in table.templates else ()
    )
    return Places(
        paths=tuple(table.path(site, layer) for site in sites),
        lower=blocks[:below],
        blocks=blocks if tuple(sites) in IN_STREAM else (),
        layer=layer,
    )


@dataclass(frozen=True)
class Rows:
    """Rows of several facts, and how a value acts on them.

    Attributes:
        fact: (batch,) index of each row's fact.
        position: (batch,) column of the fact's token.
        lower: what the highest of `places.lower` gave for these rows; None if it is not replayed.
        tail: the blocks above the layer; None: they run as they are.
        share: (batch, length) of a value that each position gets; None: all of it at `position`.
        initial: (batch, sites, width) what the sites gave at the fact's token, unedited.
    """

    backbone: Backbone
    places: Places
    fact: Tensor
    position: Tensor
    lower: Any
    tail: Tail | None
    share: Tensor | None
    initial: Tensor

    def as_it_is(self) -> Self:
        """The same rows without shortcuts: every block runs."""
        return replace(self, lower=None, tail=None)

    @property
    def cut_short(self) -> bool:
        """Whether not every block runs."""
        return self.lower is not None or self.tail is not None

    @property
    def rounding(self) -> float:
        """By how much, relatively, shortcuts may change a loss: more where a model computes in 16 bits."""
        states = self.tail.stream if self.tail else None if self.lower is None else first_tensor(self.lower)
        return 1e-3 if states is None or states.dtype in (torch.float32, torch.float64) else 3e-2

    @contextmanager
    def acting(self, delta: Tensor) -> Iterator[None]:
        """Runs inside have delta (facts, sites, width) added."""
        root = self.backbone.root
        if self.tail is not None:
            ends = self.tail.whole(self.through(self.tail, delta))
            with replaying(root, self.places.blocks, with_first(self.lower, ends)):
                yield
            return
        with ExitStack() as stack:
            for site, path in enumerate(self.places.paths):
                stack.enter_context(changing(root, path, partial(self._added, delta[:, site])))
            if self.lower is not None:
                stack.enter_context(replaying(root, self.places.lower, self.lower))
            yield

    def through(self, tail: Tail, delta: Tensor) -> Tensor:
        """What the last block gives at the cells seen, with delta (facts, 1, width) added."""
        row, column = tail.frame.row, tail.frame.column
        share = column == self.position[row] if self.share is None else self.share[row, column]
        value = delta[:, 0][self.fact[row]]
        return tail((share[:, None].to(value.dtype) * value).to(tail.stream.dtype))

    def _added(self, delta: Tensor, output: Tensor) -> Tensor:
        value = delta[self.fact].to(output.dtype)
        if self.share is not None:
            return output + self.share[..., None].to(output.dtype) * value[:, None]
        at = torch.arange(len(output), device=output.device)
        changed = output.clone()
        changed[at, self.position] = output[at, self.position] + value
        return changed

    def of_rows(self, keep: Tensor, **own: Any) -> Self:
        """The rows for which `keep` (batch,) is True."""
        lower = self.lower if self.lower is None else with_first(self.lower, first_tensor(self.lower)[keep])
        return replace(
            self,
            fact=self.fact[keep],
            position=self.position[keep],
            lower=lower,
            tail=None if self.tail is None else self.tail.rows(keep),
            share=None if self.share is None else self.share[keep],
            initial=self.initial[keep],
            **own,
        )


def look(
    backbone: Backbone,
    where: Places,
    run: Callable[[], Given],
    *,
    fact: Tensor,
    position: Tensor,
    mask: Tensor,
    reach: Tensor | None,
    wanted: tuple[Tensor, Tensor] | None = None,
) -> tuple[Given, dict[str, Any]]:
    """Run the unedited model once; what `run` gave, and those fields of `Rows` that it shows.

    `wanted` are the rows and columns whose stream is looked at in the end; None: all of them.
    """
    root = backbone.root
    with torch.no_grad(), ExitStack() as stack:
        outputs = [stack.enter_context(reading(root, path, side="output")) for path in where.paths]
        taken = stack.enter_context(reading(root, where.paths[0], side="input"))
        below = [stack.enter_context(reading(root, path, side="output")) for path in where.lower[-1:]]
        ends = [where.blocks[one] for one in (where.layer, -1)] if where.blocks else []
        streams = [stack.enter_context(reading(root, path, side="output")) for path in ends]
        heard = [stack.enter_context(listening(root, path)) for path in ends[:1]]
        given = run()
    at = torch.arange(len(fact), device=position.device)
    share = None
    if reach is not None:
        inputs = taken.tensor.float()
        share = torch.einsum("bli,bi->bl", inputs, reach.to(inputs.device, torch.float32)[fact])
        # A drawing goes on after its prompt; all of its codes count.
        share = share * torch.nn.functional.pad(mask, (0, share.shape[1] - mask.shape[1]), value=1)
    initial = torch.stack([output.tensor[at, position].float() for output in outputs], dim=1)
    tail = None
    if ends and (cells := _cells(streams[0].tensor.shape[1], position if share is None else share, wanted)):
        tail = tail_of(
            root,
            ends[0],
            where.blocks[where.layer + 1 :],
            given=heard[0],
            stream=streams[0].tensor,
            end=streams[1].tensor,
            cells=cells,
        )
    seen = {"lower": below[0].value if below else None, "tail": tail, "share": share, "initial": initial}
    return given, seen


def _cells(length: int, reached: Tensor, wanted: tuple[Tensor, Tensor] | None) -> Cells | None:
    """What has to be computed again for another value; None where something wanted is not reached.

    Args:
        length: of the rows.
        reached: (batch,) the columns where values act, or (batch, length) their share of them.
        wanted: see `look`.
    """
    columns = torch.arange(length, device=reached.device)
    seen = torch.ones(len(reached), length, dtype=torch.bool, device=reached.device)
    if wanted is not None:
        seen = torch.zeros_like(seen).index_put(wanted, torch.ones_like(wanted[0], dtype=torch.bool))
    changed = columns >= reached[:, None] if reached.dim() == 1 else (reached != 0).cumsum(1) > 0
    if wanted is not None and not changed[wanted].all():
        return None
    needed = changed & (seen.flip(1).cumsum(1).flip(1) > 0)
    row, column = needed.nonzero(as_tuple=True)
    return Cells(row, column, seen[row, column])


def positions_of(
    encoded: Encoded, requests: Sequence[ValueRequest], facts: Sequence[int], *, token: FactToken
) -> list[int]:
    """The column of the fact's token in each row; `facts` is each row's index into `requests`."""
    return token_positions(
        encoded,
        [requests[fact].subject for fact in facts],
        token=token,
        facts=[requests[fact].fact_id for fact in facts],
    )


def mean_by(values: Tensor, fact: Tensor, count: int) -> Tensor:
    """Mean of the rows of each fact; 0 for facts without rows."""
    total = torch.zeros(count, *values.shape[1:], dtype=values.dtype, device=values.device).index_add(
        0, fact, values
    )
    rows = torch.bincount(fact, minlength=count).clamp_min(1)
    return total / rows.reshape(-1, *[1] * (values.dim() - 1))
