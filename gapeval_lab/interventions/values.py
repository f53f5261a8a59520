"""Value optimisation: what a module should have given at the subject for a fact to be different.

    delta*    what is added to the module's output m at the fact's token, (width,)
    v_init    the output before, averaged over contexts, (width,)
    x_j, p    contexts: texts put before the question p, the empty one included
    o*        the target's tokens;  p' the essence prompts ("... is"), averaged
    L(delta) = 1/N sum_j -log P[o* | x_j + p; m + delta]
             + kl_factor * KL(P[. | p'; m + delta] || P[. | p'])
             + weight_decay * |delta|^2 / |v_init|^2             with |delta| <= clamp * |v_init|

After Meng et al. 2022 (arXiv 2202.05262), eq. 4, with the clamp of the authors' experiments. The
divergence can be taken the other way round (`kl_order`). -log P sums over the target's tokens.

Many facts are optimised in one batch; each keeps its own stop and clamp, so the result is the one
it would have alone. Only `delta` gets a gradient, and blocks below the site run once. Chooses no
layer and computes no weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone, Encoded
from gapeval_lab.interventions.lookup import FactToken, token_positions
from gapeval_lab.interventions.request import ValueRequest
from gapeval_lab.interventions.trace import changing, first_tensor, reading, replaying, with_first

_LOGGER = logging.getLogger(__name__)

KlOrder = Literal["original_edited", "edited_original"]


@dataclass(frozen=True)
class ValueSettings:
    """How values are optimised; the fields are those of the interventions that use them.

    Attributes:
        steps: updates at most.
        lr: Adam's learning rate.
        weight_decay, kl_factor: weights of the loss terms above.
        clamp_norm_factor: longest delta, as a multiple of |v_init|.
        early_stop: a fact stops once its whole loss is below this; None never.
        fact_token: which token carries the fact.
        kl_order: which distribution comes first in the divergence.
    """

    steps: int
    lr: float
    weight_decay: float
    kl_factor: float
    clamp_norm_factor: float
    early_stop: float | None
    fact_token: FactToken
    kl_order: KlOrder


@dataclass(frozen=True)
class Value:
    """What was found for one fact.

    Attributes:
        delta: (width,), float32.
        initial: v_init, (width,), float32.
        losses: the whole loss before the first update, after it, and so on.
    """

    delta: Tensor
    initial: Tensor
    losses: tuple[float, ...]


def optimise_values(
    backbone: Backbone,
    requests: Sequence[ValueRequest],
    *,
    site: str,
    layer: int,
    settings: ValueSettings,
    reach: Sequence[Tensor] | None = None,
    batch_facts: int = 16,
) -> list[Value]:
    """delta* of every fact at the output of a site. Call inside `left_as_found`.

    Args:
        backbone: the model; read only.
        requests: the facts.
        site: name of the site whose output is changed.
        layer: its layer.
        settings: see `ValueSettings`.
        reach: per fact, what a position's input is multiplied with to give its share of delta, (in,);
            an edit of the weight reaches every position so. None: the fact's token alone.
        batch_facts: facts optimised together; bounds memory, changes no result.

    Raises:
        UserError: a target without tokens, a subject that is not in its prompt, a loss that is not
            finite.
    """
    values: list[Value] = []
    for start in range(0, len(requests), batch_facts):
        chunk = requests[start : start + batch_facts]
        near = None if reach is None else torch.stack(list(reach[start : start + batch_facts]))
        values += _Batch(backbone, chunk, site=site, layer=layer, settings=settings, reach=near).optimise()
    return values


@dataclass(frozen=True)
class _Rows:
    """Prompts of several facts: first every context with its target, then the essence prompts.

    Attributes:
        encoded: the batch.
        fact: (batch,) index of each row's fact.
        position: (batch,) column of the fact's token.
        essence: (batch,) True for essence prompts.
        lower: what the block below the edited one gave for these rows; None if it is not replayed.
        before: (essence rows, vocabulary) log-probabilities after the essence prompts, unedited.
        share: (batch, length) of delta that each position gets; None: all of it at `position`.
    """

    encoded: Encoded
    fact: Tensor
    position: Tensor
    essence: Tensor
    lower: Any
    before: Tensor
    share: Tensor | None = None

    def of(self, facts: Tensor) -> _Rows:
        """The rows of some facts; `facts` is a boolean per fact."""
        keep = facts[self.fact]
        rows = keep.nonzero().flatten().tolist()
        encoded = Encoded(
            input_ids=self.encoded.input_ids[keep],
            attention_mask=self.encoded.attention_mask[keep],
            labels=self.encoded.labels[keep],
            texts=[self.encoded.texts[row] for row in rows],
            offsets=[self.encoded.offsets[row] for row in rows],
        )
        lower = self.lower if self.lower is None else with_first(self.lower, first_tensor(self.lower)[keep])
        before = self.before[keep[self.essence]]
        share = None if self.share is None else self.share[keep]
        return _Rows(encoded, self.fact[keep], self.position[keep], self.essence[keep], lower, before, share)


class _Batch:
    """Facts that share forward passes."""

    def __init__(
        self,
        backbone: Backbone,
        requests: Sequence[ValueRequest],
        *,
        site: str,
        layer: int,
        settings: ValueSettings,
        reach: Tensor | None,
    ) -> None:
        self.backbone, self.requests, self.settings, self.reach = backbone, requests, settings, reach
        sites = backbone.sites
        self.path = sites.path(site, layer)
        self.lower = (
            [sites.path("block", below) for below in range(layer)] if "block" in sites.templates else []
        )
        contexts = [(index, text) for index, request in enumerate(requests) for text in request.contexts]
        targets = [requests[index].target for index, _ in contexts]
        encoded = backbone.encode([text for _, text in contexts], targets)
        self._require_targets(encoded, [index for index, _ in contexts])
        fact = [index for index, _ in contexts]
        position = self._positions(encoded, fact)
        essence = [False] * len(contexts)
        kept = [(index, text) for index, request in enumerate(requests) for text in request.essence]
        if settings.kl_factor > 0 and kept:
            extra = backbone.encode([text for _, text in kept], None)
            owners = [index for index, _ in kept]
            found = self._positions(extra, owners)
            encoded, shifts = _stack(encoded, extra)
            position = [column + shifts[0] for column in position] + [column + shifts[1] for column in found]
            fact += owners
            essence += [True] * len(kept)
        at, columns, essences = (
            torch.tensor(part, device=encoded.input_ids.device) for part in (fact, position, essence)
        )
        self.rows = self._look(_Rows(encoded, at, columns, essences, lower=None, before=torch.empty(0)))

    def _positions(self, encoded: Encoded, facts: Sequence[int]) -> list[int]:
        return token_positions(
            encoded,
            [self.requests[fact].subject for fact in facts],
            token=self.settings.fact_token,
            facts=[self.requests[fact].fact_id for fact in facts],
        )

    def _require_targets(self, encoded: Encoded, facts: Sequence[int]) -> None:
        # Adapters may label an end-of-answer token even where the target is empty.
        bare = (encoded.labels == -100).all(dim=1).tolist()
        for request, empty in zip((self.requests[fact] for fact in facts), bare, strict=True):
            if empty or not request.target.strip():
                raise UserError(
                    f"facts: fact '{request.fact_id}': target_new '{request.target}' has no tokens in this "
                    "model's vocabulary; write another target"
                )

    def _look(self, rows: _Rows) -> _Rows:
        """One pass over the unedited model: v_init, the essence distributions, the lower blocks."""
        root = self.backbone.root
        with torch.no_grad(), ExitStack() as stack:
            output = stack.enter_context(reading(root, self.path, side="output"))
            taken = stack.enter_context(reading(root, self.path, side="input"))
            below = [stack.enter_context(reading(root, path, side="output")) for path in self.lower[-1:]]
            logits = self.backbone.logits(rows.encoded)
        at = torch.arange(len(rows.fact), device=rows.position.device)
        values = output.tensor[at, rows.position].float()
        self.initial = _mean_by(values[~rows.essence], rows.fact[~rows.essence], len(self.requests))
        self.plain = self._nll(logits, rows)
        return replace(
            rows,
            lower=below[0].value if below else None,
            before=logits[rows.essence, -1].float().log_softmax(-1),
            share=None if self.reach is None else self._share(taken.tensor, rows),
        )

    def _share(self, inputs: Tensor, rows: _Rows) -> Tensor:
        """What each position gets of delta once the weight is changed: (batch, length)."""
        assert self.reach is not None
        reach = self.reach.to(inputs.device, torch.float32)[rows.fact]
        return torch.einsum("bli,bi->bl", inputs.float(), reach) * rows.encoded.attention_mask

    def _nll(self, logits: Tensor, rows: _Rows) -> Tensor:
        """-log P[o* | x_j + p], averaged over the contexts of each fact: (facts,)."""
        at, column = (rows.encoded.labels != -100).nonzero(as_tuple=True)
        # A token is predicted by the position before it.
        logprobs = logits[at, column - 1].float().log_softmax(-1)
        token = -logprobs.gather(1, rows.encoded.labels[at, column][:, None]).flatten()
        row = torch.zeros(len(rows.fact), device=token.device).index_add(0, at, token)
        return _mean_by(row[~rows.essence], rows.fact[~rows.essence], len(self.requests))

    def _loss(self, rows: _Rows, delta: Tensor) -> Tensor:
        """L(delta) of each fact; facts without rows get their weight decay only."""

        def add(output: Tensor) -> Tensor:
            if rows.share is not None:
                return output + (rows.share[..., None] * delta[rows.fact][:, None]).to(output.dtype)
            at = torch.arange(len(rows.fact), device=output.device)
            changed = output.clone()
            changed[at, rows.position] = output[at, rows.position] + delta[rows.fact].to(output.dtype)
            return changed

        lower = nullcontext() if rows.lower is None else replaying(self.backbone.root, self.lower, rows.lower)
        with changing(self.backbone.root, self.path, add), lower:
            logits = self.backbone.logits(rows.encoded)
        loss = self._nll(logits, rows)
        if rows.essence.any():
            after = logits[rows.essence, -1].float().log_softmax(-1)
            first, second = (
                (rows.before, after) if self.settings.kl_order == "original_edited" else (after, rows.before)
            )
            divergence = (first.exp() * (first - second)).sum(-1)
            drift = _mean_by(divergence, rows.fact[rows.essence], len(self.requests))
            loss = loss + self.settings.kl_factor * drift
        size = self.initial.square().sum(1).clamp_min(1e-12)
        return loss + self.settings.weight_decay * delta.square().sum(1) / size

    def _replay_is_exact(self) -> bool:
        """Whether replaying the lower blocks gives the same answer as running them.

        It does not where upper blocks read more than the stream: keys and values shared between
        layers, say.
        """
        with torch.no_grad():
            again = self._loss(self.rows, torch.zeros_like(self.initial))
        return torch.allclose(again, self.plain, rtol=1e-3, atol=1e-3)

    def optimise(self) -> list[Value]:
        """Adam on delta, all facts at once; a fact that is done drops out of the batch."""
        settings = self.settings
        if self.rows.lower is not None and not self._replay_is_exact():
            self.rows = replace(self.rows, lower=None)
        delta = torch.zeros_like(self.initial, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=settings.lr)
        active = torch.ones(len(self.requests), dtype=torch.bool, device=delta.device)
        losses: list[list[float]] = [[] for _ in self.requests]
        rows = self.rows
        for step in range(settings.steps + 1):
            with torch.set_grad_enabled(step < settings.steps):
                loss = self._loss(rows, delta)
                total = loss.sum()
            self._record(loss.detach(), active, losses, step)
            going = active
            if settings.early_stop is not None:
                going = active & (loss.detach() >= settings.early_stop)
            if step == settings.steps or not going.any():
                break
            (delta.grad,) = torch.autograd.grad(total, delta)
            if step == 0:
                self._warn_of_unread(delta.grad, going)
            self._update(delta, adam, going)
            if not going.equal(active):
                active, rows = going, self.rows.of(going)
        return [
            Value(delta.detach()[fact].clone(), self.initial[fact].clone(), tuple(losses[fact]))
            for fact in range(len(self.requests))
        ]

    def _update(self, delta: Tensor, adam: torch.optim.Adam, going: Tensor) -> None:
        """One step, the clamp, and facts that are done put back: Adam's momentum would carry them on."""
        before = delta.detach().clone()
        adam.step()
        longest = self.settings.clamp_norm_factor * self.initial.norm(dim=1, keepdim=True)
        with torch.no_grad():
            length = delta.norm(dim=1, keepdim=True)
            delta.mul_(torch.where(length > longest, longest / length, 1.0))
            delta.copy_(torch.where(going[:, None], delta, before))

    def _warn_of_unread(self, gradient: Tensor, going: Tensor) -> None:
        """An edit that cannot work is a result (of a sweep over layers, say), but not a silent one."""
        for fact in (going & ~gradient.any(dim=1)).nonzero().flatten().tolist():
            _LOGGER.warning(
                "facts: the answer to fact '%s' does not depend on %s at its token, so its edit is zero; "
                "choose a lower layer, or fact_token=last",
                self.requests[fact].fact_id,
                self.path,
            )

    def _record(self, loss: Tensor, active: Tensor, losses: list[list[float]], step: int) -> None:
        for fact in active.nonzero().flatten().tolist():
            value = float(loss[fact])
            if not math.isfinite(value):
                raise UserError(
                    f"lr: {self.settings.lr} makes the loss of fact '{self.requests[fact].fact_id}' "
                    f"{value} at step {step}; lower lr or clamp_norm_factor (or load the model in float32)"
                )
            losses[fact].append(value)


def _mean_by(values: Tensor, fact: Tensor, count: int) -> Tensor:
    """Mean of the rows of each fact; 0 for facts without rows."""
    total = torch.zeros(count, *values.shape[1:], device=values.device).index_add(0, fact, values)
    rows = torch.bincount(fact, minlength=count).clamp_min(1)
    return total / rows.reshape(-1, *[1] * (values.dim() - 1))


def _stack(first: Encoded, second: Encoded) -> tuple[Encoded, tuple[int, int]]:
    """Two batches as one, padded on the left, and how far the columns of each moved."""
    width = max(first.input_ids.shape[1], second.input_ids.shape[1])
    shifts = (width - first.input_ids.shape[1], width - second.input_ids.shape[1])

    def joined(one: Tensor, two: Tensor, fill: int) -> Tensor:
        parts = zip((one, two), shifts, strict=True)
        return torch.cat([torch.nn.functional.pad(part, (shift, 0), value=fill) for part, shift in parts])

    offsets = [
        [(0, 0)] * shift + spans
        for part, shift in zip((first, second), shifts, strict=True)
        for spans in part.offsets
    ]
    encoded = Encoded(
        # Masked positions may hold any id.
        input_ids=joined(first.input_ids, second.input_ids, 0),
        attention_mask=joined(first.attention_mask, second.attention_mask, 0),
        labels=joined(first.labels, second.labels, -100),
        texts=[*first.texts, *second.texts],
        offsets=offsets,
    )
    return encoded, shifts
