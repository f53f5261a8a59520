"""What values are tried on: questions with their answers, prompts that must not move, drawings.

A batch of rows belongs to several facts. It runs the model with each fact's value added at the sites,
and says what each fact then loses. Blocks below the sites run once. Chooses no values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone, Drawing, Encoded
from gapeval_lab.interventions.batches import chosen, drawing_of, stacked
from gapeval_lab.interventions.compat import Compat
from gapeval_lab.interventions.lookup import FactToken, token_positions
from gapeval_lab.interventions.request import ValueRequest
from gapeval_lab.interventions.trace import (
    changing,
    first_tensor,
    linear_weight,
    reading,
    replaying,
    with_first,
)

KlOrder = Literal["original_edited", "edited_original"]
Given = TypeVar("Given")
WIDE = 4096
"""Tokens of a vocabulary from which on the head is worth sparing."""


@dataclass(frozen=True)
class Places:
    """Where values act.

    Attributes:
        paths: modules whose output gets a value, all of one layer.
        lower: the blocks that nothing changes, from the lowest on; their output is kept and replayed.
    """

    paths: tuple[str, ...]
    lower: tuple[str, ...]


def places(backbone: Backbone, sites: Sequence[str], layer: int) -> Places:
    """The places of some sites at a layer. The stream after a block (site "block") is one too."""
    table = backbone.sites
    below = layer + 1 if set(sites) == {"block"} else layer
    known = range(below) if "block" in table.templates else ()
    return Places(
        paths=tuple(table.path(site, layer) for site in sites),
        lower=tuple(table.path("block", one) for one in known),
    )


@dataclass(frozen=True)
class Rows:
    """Rows of several facts, and how a value acts on them.

    Attributes:
        fact: (batch,) index of each row's fact.
        position: (batch,) column of the fact's token.
        lower: what the highest of `places.lower` gave for these rows; None if it is not replayed.
        share: (batch, length) of a value that each position gets; None: all of it at `position`.
        initial: (batch, sites, width) what the sites gave at the fact's token, unedited.
    """

    backbone: Backbone
    places: Places
    fact: Tensor
    position: Tensor
    lower: Any
    share: Tensor | None
    initial: Tensor

    @contextmanager
    def _acting(self, delta: Tensor) -> Iterator[None]:
        """Runs inside have delta (facts, sites, width) added."""
        root = self.backbone.root
        with ExitStack() as stack:
            for site, path in enumerate(self.places.paths):
                stack.enter_context(changing(root, path, partial(self._added, delta[:, site])))
            if self.lower is not None:
                stack.enter_context(replaying(root, self.places.lower, self.lower))
            yield

    def _added(self, delta: Tensor, output: Tensor) -> Tensor:
        value = delta[self.fact].to(output.dtype)
        if self.share is not None:
            return output + self.share[..., None].to(output.dtype) * value[:, None]
        at = torch.arange(len(output), device=output.device)
        changed = output.clone()
        changed[at, self.position] = output[at, self.position] + value
        return changed

    def _of(self, keep: Tensor, **own: Any) -> Self:
        """The rows for which `keep` (batch,) is True."""
        lower = self.lower if self.lower is None else with_first(self.lower, first_tensor(self.lower)[keep])
        return replace(
            self,
            fact=self.fact[keep],
            position=self.position[keep],
            lower=lower,
            share=None if self.share is None else self.share[keep],
            initial=self.initial[keep],
            **own,
        )


def _look(
    backbone: Backbone,
    where: Places,
    run: Callable[[], Given],
    *,
    fact: Tensor,
    position: Tensor,
    mask: Tensor,
    reach: Tensor | None,
) -> tuple[Given, dict[str, Any]]:
    """Run the unedited model once; what `run` gave, and those fields of `Rows` that it shows."""
    root = backbone.root
    with torch.no_grad(), ExitStack() as stack:
        outputs = [stack.enter_context(reading(root, path, side="output")) for path in where.paths]
        taken = stack.enter_context(reading(root, where.paths[0], side="input"))
        below = [stack.enter_context(reading(root, path, side="output")) for path in where.lower[-1:]]
        given = run()
    at = torch.arange(len(fact), device=position.device)
    share = None
    if reach is not None:
        inputs = taken.tensor.float()
        share = torch.einsum("bli,bi->bl", inputs, reach.to(inputs.device, torch.float32)[fact])
        # A drawing goes on after its prompt; all of its codes count.
        share = share * torch.nn.functional.pad(mask, (0, share.shape[1] - mask.shape[1]), value=1)
    initial = torch.stack([output.tensor[at, position].float() for output in outputs], dim=1)
    return given, {"lower": below[0].value if below else None, "share": share, "initial": initial}


@dataclass(frozen=True)
class TextRows(Rows):
    """First every context with its target, then the essence prompts.

    Attributes:
        encoded: the batch.
        compat: how -log P and the divergence are taken, and what the contexts' mean is.
        essence: (batch,) True for essence prompts.
        before: (essence rows, vocabulary) log-probabilities after the essence prompts, unedited.
        plain: (facts,) -log P of the targets, unedited.
    """

    encoded: Encoded
    compat: Compat
    essence: Tensor
    before: Tensor
    plain: Tensor

    def contexts(self, count: int) -> Tensor:
        """`initial` of the contexts, averaged per fact: (count, sites, width)."""
        kept = ~self.essence
        if self.compat.initial == "question":  # each fact's first row
            kept = kept & (self.fact.diff(prepend=self.fact.new_tensor([-1])) != 0)
        return mean_by(self.initial[kept], self.fact[kept], count)

    def loss(self, delta: Tensor, *, text: float, kl: float, order: KlOrder) -> Tensor:
        """text * -log P[o* | x_j + p] + kl * divergence, means over the fact's rows: (facts,)."""
        with self._acting(delta):
            answers, after = _read(self.backbone, self.encoded, self.essence, self.position, self.compat)
        loss = text * _nll(answers, self.encoded, self.fact, self.essence, len(delta), self.compat)
        if self.essence.any():
            first, second = (self.before, after) if order == "original_edited" else (after, self.before)
            divergence = (first.exp() * (first - second)).sum(-1)
            loss = loss + kl * mean_by(divergence, self.fact[self.essence], len(delta))
        return loss

    def of(self, facts: Tensor) -> TextRows:
        """The rows of some facts; `facts` is a boolean per fact."""
        keep = facts[self.fact]
        kept = chosen(self.encoded, keep)
        return self._of(
            keep, encoded=kept, essence=self.essence[keep], before=self.before[keep[self.essence]]
        )


@dataclass(frozen=True)
class DrawingRows(Rows):
    """Drawing prompts with the pictures that are wanted."""

    drawing: Drawing

    def loss(self, delta: Tensor) -> Tensor:
        """-log P[picture | prompt], a mean over the fact's drawings: (facts,)."""
        assert self.backbone.drawing_loss is not None
        with self._acting(delta):
            losses = self.backbone.drawing_loss(self.drawing)
        return mean_by(losses, self.fact, len(delta))

    def of(self, facts: Tensor) -> DrawingRows:
        """The rows of some facts; `facts` is a boolean per fact."""
        keep = facts[self.fact]
        return self._of(keep, drawing=Drawing(chosen(self.drawing.prompt, keep), self.drawing.codes[keep]))


def text_rows(
    backbone: Backbone,
    requests: Sequence[ValueRequest],
    where: Places,
    *,
    token: FactToken,
    essence: bool,
    reach: Tensor | None,
    compat: Compat,
) -> TextRows:
    """The rows of all contexts and, if wanted, essence prompts.

    Args:
        backbone: the model, as it is now.
        requests: the facts.
        where: the places.
        token: which token carries the fact.
        essence: whether the prompts that must not move are among the rows.
        reach: (facts, in), see `optimise_values`.
        compat: see `TextRows`.

    Raises:
        UserError: a target without tokens, or a subject that is not in its prompt.
    """
    contexts = [(index, text) for index, request in enumerate(requests) for text in request.contexts]
    facts = [index for index, _ in contexts]
    encoded = backbone.encode([text for _, text in contexts], [requests[index].target for index in facts])
    _require_targets(encoded, [requests[index] for index in facts])
    position = positions_of(encoded, requests, facts, token=token)
    marks = [False] * len(contexts)
    kept = [(index, text) for index, request in enumerate(requests) for text in request.essence]
    if essence and kept:
        extra = backbone.encode([text for _, text in kept], None)
        owners = [index for index, _ in kept]
        found = positions_of(extra, requests, owners, token=token)
        encoded, shifts = stacked(encoded, extra)
        position = [column + shifts[0] for column in position] + [column + shifts[1] for column in found]
        facts = facts + owners
        marks += [True] * len(kept)
    fact, columns, essences = (
        torch.tensor(part, device=encoded.input_ids.device) for part in (facts, position, marks)
    )
    (answers, before), seen = _look(
        backbone,
        where,
        lambda: _read(backbone, encoded, essences, columns, compat),
        fact=fact,
        position=columns,
        mask=encoded.attention_mask,
        reach=reach,
    )
    return TextRows(
        backbone=backbone,
        places=where,
        fact=fact,
        position=columns,
        encoded=encoded,
        compat=compat,
        essence=essences,
        before=before,
        plain=_nll(answers, encoded, fact, essences, len(requests), compat),
        **seen,
    )


def drawing_rows(
    backbone: Backbone,
    requests: Sequence[ValueRequest],
    where: Places,
    *,
    token: FactToken,
    reach: Tensor | None,
) -> DrawingRows:
    """The rows of all drawings.

    Raises:
        UserError: the model draws nothing, a fact has no picture, or its subject is not in the prompt.
    """
    if backbone.encode_drawings is None or backbone.drawing_loss is None:
        raise UserError("picture_factor: this model does not draw; set it to 0")
    for request in requests:
        if not request.drawings:
            raise UserError(
                f"picture_factor: fact '{request.fact_id}' has no picture of its target; set it to 0, or "
                "add facts.pictures, a folder of pictures"
            )
    facts = [index for index, request in enumerate(requests) for _ in request.drawings]
    drawn = [example for request in requests for example in request.drawings]
    drawing = drawing_of(backbone, drawn)
    position = positions_of(drawing.prompt, requests, facts, token=token)
    fact, columns = (torch.tensor(part, device=drawing.codes.device) for part in (facts, position))
    loss = backbone.drawing_loss
    _, seen = _look(
        backbone,
        where,
        lambda: loss(drawing),
        fact=fact,
        position=columns,
        mask=drawing.prompt.attention_mask,
        reach=reach,
    )
    return DrawingRows(backbone=backbone, places=where, fact=fact, position=columns, drawing=drawing, **seen)


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


def _read(
    backbone: Backbone, encoded: Encoded, essence: Tensor, position: Tensor, compat: Compat
) -> tuple[Tensor, Tensor]:
    """Log-probabilities where a target's token is to come, and where the divergence is taken.

    Both (positions, vocabulary). Only these go through the head where a wide vocabulary makes that worth
    while, and the model's table names the head.
    """
    at, column = (encoded.labels != -100).nonzero(as_tuple=True)
    ends = essence.nonzero().flatten()
    last = torch.full_like(ends, encoded.input_ids.shape[1] - 1)
    rows = torch.cat([at, ends])
    # A token is predicted by the position before it.
    columns = torch.cat([column - 1, position[essence] if compat.kl_at == "token" else last])
    head = backbone.sites.templates.get("head")
    if head is None or linear_weight(backbone.root, head).shape[0] < WIDE:
        logits = backbone.logits(encoded)[rows, columns]
    else:
        with changing(backbone.root, head, lambda states: states[rows, columns][None], side="input"):
            logits = backbone.logits(encoded)[0]
    logprobs = logits.float().log_softmax(-1)
    return logprobs[: len(at)], logprobs[len(at) :]


def _nll(
    answers: Tensor, encoded: Encoded, fact: Tensor, essence: Tensor, count: int, compat: Compat
) -> Tensor:
    """-log P[o* | x_j + p], averaged over the contexts of each fact: (count,)."""
    at, column = (encoded.labels != -100).nonzero(as_tuple=True)
    token = -answers.gather(1, encoded.labels[at, column][:, None]).flatten()
    row = torch.zeros(len(fact), device=token.device).index_add(0, at, token)
    if compat.target_loss == "mean":
        row = row / torch.bincount(at, minlength=len(row)).clamp_min(1)
    return mean_by(row[~essence], fact[~essence], count)


def _require_targets(encoded: Encoded, requests: Sequence[ValueRequest]) -> None:
    # Adapters may label an end-of-answer token even where the target is empty.
    bare = (encoded.labels == -100).all(dim=1).tolist()
    for request, empty in zip(requests, bare, strict=True):
        if empty or not request.target.strip():
            raise UserError(
                f"facts: fact '{request.fact_id}': target_new '{request.target}' has no tokens in this "
                "model's vocabulary; write another target"
            )
