"""Value optimisation: what a module should have given at the subject for a fact to be different.

    delta*    what is added to the module's output m at the fact's token, (width,)
    v_init    the output before, averaged over contexts, (width,)
    x_j, p    contexts: texts put before the question p, the empty one included
    o*        the target's tokens;  p' the essence prompts ("... is"), averaged
    d, y      the fact's drawing prompts, and the pictures wanted, as codes
    L(delta) = text_factor * 1/N sum_j -log P[o* | x_j + p; m + delta]
             + picture_factor * 1/M sum_i -log P[y_i | d_i; m + delta]
             + kl_factor * KL(P[. | p'; m + delta] || P[. | p'])
             + weight_decay * |delta|^2 / |v_init|^2             with |delta| <= clamp * |v_init|

After Meng et al. 2022 (arXiv 2202.05262), eq. 4, with the clamp of the authors' experiments; the term
of the pictures is ours. The divergence can be taken the other way round (`kl_order`). -log P sums over
the target's tokens, or the picture's codes. Of several modules each has its own delta, clamp and decay.

Many facts are optimised in one batch; each keeps its own stop and clamp, so the result is the one
it would have alone. Only `delta` gets a gradient, and blocks below the site run once. Chooses no
layer and computes no weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone
from gapeval_lab.interventions.compat import Compat
from gapeval_lab.interventions.lookup import FactToken
from gapeval_lab.interventions.request import ValueRequest
from gapeval_lab.interventions.rows import places
from gapeval_lab.interventions.value_rows import (
    DrawingRows,
    KlOrder,
    TextRows,
    drawing_rows,
    text_rows,
)

BETAS = (0.9, 0.999)

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValueSettings:
    """How values are optimised; the fields are those of the interventions that use them.

    Attributes:
        steps: updates at most.
        lr: Adam's learning rate.
        weight_decay, kl_factor, text_factor, picture_factor: weights of the loss terms above.
        clamp_norm_factor: longest delta, as a multiple of |v_init|.
        early_stop: a fact stops once its whole loss is below this; None never.
        fact_token: which token carries the fact.
        kl_order: which distribution comes first in the divergence.
        compat: see `Compat`; it changes terms of L and what v_init is.
    """

    steps: int
    lr: float
    weight_decay: float
    kl_factor: float
    clamp_norm_factor: float
    early_stop: float | None
    fact_token: FactToken
    kl_order: KlOrder
    text_factor: float = 1.0
    picture_factor: float = 0.0
    compat: Compat = Compat()


@dataclass(frozen=True)
class Value:
    """What was found for one fact, at the first of the sites.

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
    sites: Sequence[str],
    layer: int,
    settings: ValueSettings,
    reach: Sequence[Tensor] | None = None,
    batch_facts: int = 16,
) -> list[Value]:
    """delta* of every fact at the output of a site. Call inside `left_as_found`.

    Args:
        backbone: the model; read only.
        requests: the facts.
        sites: names of the sites whose output is changed, together; "block" is the stream after a layer.
        layer: their layer.
        settings: see `ValueSettings`.
        reach: per fact, what a position's input to the (only) site is multiplied with to give its share
            of delta, (in,); an edit of the weight reaches every position so. None: the fact's token
            alone.
        batch_facts: facts optimised together; bounds memory, changes no result.

    Raises:
        UserError: a target without tokens, a subject that is not in its prompt, a loss that is not
            finite, a fact without the picture that the settings ask for.
    """
    values: list[Value] = []
    for start in range(0, len(requests), batch_facts):
        chunk = requests[start : start + batch_facts]
        near = None if reach is None else torch.stack(list(reach[start : start + batch_facts]))
        values += _Batch(backbone, chunk, sites=sites, layer=layer, settings=settings, reach=near).optimise()
    return values


@dataclass
class _Adam:
    """Adam (Kingma and Ba 2015), with their decay rates, for one tensor that is small.

    torch's own spends more time on its bookkeeping than on numbers of this size.
    """

    lr: float
    mean: Tensor
    square: Tensor
    steps: int = 0

    def step(self, value: Tensor, gradient: Tensor) -> Tensor:
        """The value after one update, to the bit that of torch's."""
        self.steps += 1
        self.mean.lerp_(gradient, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        rates = [1 - beta**self.steps for beta in BETAS]
        size = self.square.sqrt().div_(rates[1] ** 0.5).add_(1e-8)
        return torch.addcdiv(value.detach(), self.mean, size, value=-self.lr / rates[0])


class _Batch:
    """Facts that share forward passes."""

    def __init__(
        self,
        backbone: Backbone,
        requests: Sequence[ValueRequest],
        *,
        sites: Sequence[str],
        layer: int,
        settings: ValueSettings,
        reach: Tensor | None,
    ) -> None:
        self.requests, self.settings = requests, settings
        self.where = places(backbone, sites, layer)
        token = settings.fact_token
        self.told = text_rows(
            backbone,
            requests,
            self.where,
            token=token,
            essence=settings.kl_factor > 0,
            reach=reach,
            compat=settings.compat,
        )
        self.drawn = (
            drawing_rows(backbone, requests, self.where, token=token, reach=reach)
            if settings.picture_factor > 0
            else None
        )
        self.initial = self.told.contexts(len(requests))

    def _loss(self, told: TextRows, drawn: DrawingRows | None, delta: Tensor) -> Tensor:
        """L(delta) of each fact; facts without rows get their weight decay only."""
        settings = self.settings
        loss = told.loss(delta, text=settings.text_factor, kl=settings.kl_factor, order=settings.kl_order)
        if drawn is not None:
            loss = loss + settings.picture_factor * drawn.loss(delta)
        size = self.initial.square().sum(-1).clamp_min(1e-12)
        length = delta.norm(dim=-1) if settings.compat.decay_power == 1 else delta.square().sum(-1)
        return loss + settings.weight_decay * (length / size).sum(-1)

    def _cut_short(self) -> bool:
        return self.told.cut_short or (self.drawn is not None and self.drawn.cut_short)

    def _is_plain(self, loss: Tensor) -> bool:
        """Whether a loss without any delta is the unedited model's, which ran without shortcuts.

        It is not where upper blocks read more than the stream: keys and values shared between layers, say.
        """
        settings = self.settings
        plain = settings.text_factor * self.told.plain
        if self.drawn is not None:
            plain = plain + settings.picture_factor * self.drawn.plain
        allowed = max(rows.rounding for rows in (self.told, self.drawn) if rows is not None)
        return torch.allclose(loss, plain, rtol=allowed, atol=allowed)

    def optimise(self) -> list[Value]:
        """Adam on delta, all facts at once; a fact that is done drops out of the batch."""
        settings = self.settings
        delta = torch.zeros_like(self.initial, requires_grad=True)
        adam = _Adam(settings.lr, torch.zeros_like(self.initial), torch.zeros_like(self.initial))
        active = torch.ones(len(self.requests), dtype=torch.bool, device=delta.device)
        losses: list[list[float]] = [[] for _ in self.requests]
        told, drawn = self.told, self.drawn
        for step in range(settings.steps + 1):
            with torch.set_grad_enabled(step < settings.steps):
                loss = self._loss(told, drawn, delta)
                total = loss.sum()
            if step == 0 and self._cut_short() and not self._is_plain(loss.detach()):
                self.told = self.told.as_it_is()
                self.drawn = None if self.drawn is None else self.drawn.as_it_is()
                return self.optimise()
            self._record(loss.detach(), active, losses, step)
            going = active
            if settings.early_stop is not None:
                going = active & (loss.detach() >= settings.early_stop)
            if step == settings.steps or not going.any():
                break
            (gradient,) = torch.autograd.grad(total, delta)
            if step == 0:
                self._warn_of_unread(gradient, going)
            self._update(delta, adam.step(delta, gradient), going)
            if not going.equal(active):
                active, told = going, self.told.of(going)
                drawn = None if self.drawn is None else self.drawn.of(going)
        return [
            Value(delta.detach()[fact, 0].clone(), self.initial[fact, 0].clone(), tuple(losses[fact]))
            for fact in range(len(self.requests))
        ]

    def _update(self, delta: Tensor, moved: Tensor, going: Tensor) -> None:
        """The clamp; facts that are done stay, though Adam's momentum would carry them on."""
        longest = self.settings.clamp_norm_factor * self.initial.norm(dim=-1, keepdim=True)
        length = moved.norm(dim=-1, keepdim=True)
        moved = moved * torch.where(length > longest, longest / length, 1.0)
        with torch.no_grad():
            delta.copy_(torch.where(going[:, None, None], moved, delta))

    def _warn_of_unread(self, gradient: Tensor, going: Tensor) -> None:
        """An edit that cannot work is a result (of a sweep over layers, say), but not a silent one."""
        for fact in (going & ~gradient.flatten(1).any(dim=1)).nonzero().flatten().tolist():
            _LOGGER.warning(
                "facts: the answer to fact '%s' does not depend on %s at its token, so its edit is zero; "
                "choose a lower layer, or fact_token=last",
                self.requests[fact].fact_id,
                " or ".join(self.where.paths),
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
