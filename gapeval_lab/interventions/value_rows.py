"""What values are tried on: questions with their answers, prompts that must not move, drawings.

A batch of rows belongs to several facts. It runs the model with each fact's value added at the sites,
and says what each fact then loses. Chooses no values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone, Drawing, Encoded
from gapeval_lab.interventions.batches import chosen, drawing_of, stacked
from gapeval_lab.interventions.compat import Compat
from gapeval_lab.interventions.lookup import FactToken
from gapeval_lab.interventions.request import ValueRequest
from gapeval_lab.interventions.rows import Places, Rows, look, mean_by, positions_of
from gapeval_lab.interventions.trace import changing, linear_weight, module_at

KlOrder = Literal["original_edited", "edited_original"]
WIDE = 4096
"""Tokens of a vocabulary from which on the head is worth sparing."""


@dataclass(frozen=True)
class Wanted:
    """Where rows are looked at: where each token of a target is to come, then once per essence prompt.

    Attributes:
        row, column: (targets' tokens + essences,).
        token: (targets' tokens, 1) their ids.
        fact: (targets' tokens + essences,) whose they are.
        share: like `fact`, the weight in that fact's mean.
    """

    row: Tensor
    column: Tensor
    token: Tensor
    fact: Tensor
    share: Tensor

    def nll(self, logprobs: Tensor, count: int) -> Tensor:
        """-log P[o* | x_j + p], a mean over the fact's contexts: (count,)."""
        tokens = len(self.token)
        lost = -logprobs[:tokens].gather(1, self.token).flatten() * self.share[:tokens]
        return torch.zeros(count, device=lost.device).index_add(0, self.fact[:tokens], lost)

    def divergence(self, logprobs: Tensor, before: Tensor, order: KlOrder, count: int) -> Tensor:
        """What essence prompts give, against what they gave: a mean over those of a fact, (count,)."""
        after, tokens = logprobs[len(self.token) :], len(self.token)
        first, second = (before, after) if order == "original_edited" else (after, before)
        moved = (first.exp() * (first - second)).sum(-1) * self.share[tokens:]
        return torch.zeros(count, device=moved.device).index_add(0, self.fact[tokens:], moved)


@dataclass(frozen=True)
class TextRows(Rows):
    """First every context with its target, then the essence prompts.

    Attributes:
        encoded: the batch.
        compat: how -log P and the divergence are taken, and what the contexts' mean is.
        essence: (batch,) True for essence prompts.
        wanted: where these rows are looked at.
        before: (essence rows, vocabulary) log-probabilities after the essence prompts, unedited.
        plain: (facts,) -log P of the targets, unedited.
    """

    encoded: Encoded
    compat: Compat
    essence: Tensor
    wanted: Wanted
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
        logprobs = self._read(delta)
        loss = text * self.wanted.nll(logprobs, len(delta))
        if len(self.before):
            loss = loss + kl * self.wanted.divergence(logprobs, self.before, order, len(delta))
        return loss

    def _read(self, delta: Tensor) -> Tensor:
        """See `_read`, with delta added."""
        root, sites = self.backbone.root, self.backbone.sites.templates
        if self.tail is None or not {"final_norm", "head"} <= sites.keys():
            with self.acting(delta):
                return _read(self.backbone, self.encoded, self.wanted)
        states = module_at(root, sites["final_norm"])(self.through(self.tail, delta))
        logprobs: Tensor = module_at(root, sites["head"])(states).float().log_softmax(-1)
        return logprobs

    def of(self, facts: Tensor) -> TextRows:
        """The rows of some facts; `facts` is a boolean per fact."""
        keep = facts[self.fact]
        kept, essence = chosen(self.encoded, keep), self.essence[keep]
        return self.of_rows(
            keep,
            encoded=kept,
            essence=essence,
            wanted=_wanted(kept, essence, self.position[keep], self.fact[keep], self.compat),
            before=self.before[keep[self.essence]],
        )


@dataclass(frozen=True)
class DrawingRows(Rows):
    """Drawing prompts with the pictures that are wanted.

    Attributes:
        plain: (facts,) -log P of the pictures, unedited.
    """

    drawing: Drawing
    plain: Tensor

    def loss(self, delta: Tensor) -> Tensor:
        """-log P[picture | prompt], a mean over the fact's drawings: (facts,)."""
        assert self.backbone.drawing_loss is not None
        with self.acting(delta):
            losses = self.backbone.drawing_loss(self.drawing)
        return mean_by(losses, self.fact, len(delta))

    def of(self, facts: Tensor) -> DrawingRows:
        """The rows of some facts; `facts` is a boolean per fact."""
        keep = facts[self.fact]
        return self.of_rows(
            keep, drawing=Drawing(chosen(self.drawing.prompt, keep), self.drawing.codes[keep])
        )


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
    wanted = _wanted(encoded, essences, columns, fact, compat)
    logprobs, seen = look(
        backbone,
        where,
        lambda: _read(backbone, encoded, wanted),
        fact=fact,
        position=columns,
        mask=encoded.attention_mask,
        reach=reach,
        wanted=(wanted.row, wanted.column),
    )
    return TextRows(
        backbone=backbone,
        places=where,
        fact=fact,
        position=columns,
        encoded=encoded,
        compat=compat,
        essence=essences,
        wanted=wanted,
        before=logprobs[len(wanted.token) :],
        plain=wanted.nll(logprobs, len(requests)),
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
    losses, seen = look(
        backbone,
        where,
        lambda: loss(drawing),
        fact=fact,
        position=columns,
        mask=drawing.prompt.attention_mask,
        reach=reach,
    )
    return DrawingRows(
        backbone=backbone,
        places=where,
        fact=fact,
        position=columns,
        drawing=drawing,
        plain=mean_by(losses, fact, len(requests)),
        **seen,
    )


def _read(backbone: Backbone, encoded: Encoded, wanted: Wanted) -> Tensor:
    """Log-probabilities of the next token where they are wanted, (wanted, vocabulary).

    Only these go through the head where a wide vocabulary makes that worth while, and the model's table
    names the head.
    """
    head = backbone.sites.templates.get("head")
    if head is None or linear_weight(backbone.root, head).shape[0] < WIDE:
        logits = backbone.logits(encoded)[wanted.row, wanted.column]
    else:
        at = (wanted.row, wanted.column)
        with changing(backbone.root, head, lambda states: states[at][None], side="input"):
            logits = backbone.logits(encoded)[0]
    return logits.float().log_softmax(-1)


def _wanted(encoded: Encoded, essence: Tensor, position: Tensor, fact: Tensor, compat: Compat) -> Wanted:
    at, column = (encoded.labels != -100).nonzero(as_tuple=True)
    ends = essence.nonzero().flatten()
    last = torch.full_like(ends, encoded.input_ids.shape[1] - 1)
    share = 1 / torch.bincount(fact[~essence])[fact[at]].float()
    if compat.target_loss == "mean":
        share = share / torch.bincount(at)[at]
    owners = fact[ends]
    return Wanted(
        row=torch.cat([at, ends]),
        # A token is predicted by the position before it.
        column=torch.cat([column - 1, position[ends] if compat.kl_at == "token" else last]),
        token=encoded.labels[at, column][:, None],
        fact=torch.cat([fact[at], owners]),
        share=torch.cat([share, 1 / torch.bincount(owners)[owners].float()]),
    )


def _require_targets(encoded: Encoded, requests: Sequence[ValueRequest]) -> None:
    # Adapters may label an end-of-answer token even where the target is empty.
    bare = (encoded.labels == -100).all(dim=1).tolist()
    for request, empty in zip(requests, bare, strict=True):
        if empty or not request.target.strip():
            raise UserError(
                f"facts: fact '{request.fact_id}': target_new '{request.target}' has no tokens in this "
                "model's vocabulary; write another target"
            )
