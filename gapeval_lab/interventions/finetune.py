"""Fine-tuning of one site, with a bound on how far each weight may move: FT-L and FT-M.

    ft_l   loss: every token of the answer is to be likely at the question's last position (text only)
    ft_m   loss: the answer, token by token, after the question (text, pictures, or both)
    both   |W' - W|_inf <= norm_constraint, by projection after each update

FT-L is the constrained baseline of Meng et al. 2022 (arXiv 2202.05262; the bound is that of Zhu et al.
2020, arXiv 2012.00363) in the form that the field's editing libraries gave it, where all tokens of the
answer share one position; FT-M mends that with the usual masked loss (Zhang et al. 2024, arXiv 2401.01286).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gapeval_lab.delta import Dense, WeightDelta
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM, Backbone, Log, Training
from gapeval_lab.interventions.trace import left_as_found, linear_weight
from gapeval_lab.interventions.training import TrainingSettings, train
from gapeval_lab.items import Direction, Example, Fact


class FineTune(TrainingSettings):
    """Fine-tuning's settings, beside those of training.

    Attributes:
        method: `ft_l` or `ft_m`, see the module.
        layer, site: the linear layer whose weight is trained.
        norm_constraint: the largest change of any single weight; None sets no bound.
    """

    method: Literal["ft_l", "ft_m"] = "ft_m"
    layer: int = Field(ge=0)
    site: str = "mlp_down"
    norm_constraint: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if self.method == "ft_l" and self.direction != "text":
            raise ValueError("direction: ft_l is defined on text alone; set direction: text, or method: ft_m")
        return self

    def check(self, umm: UMM) -> None:
        """Refuse a site or layer that the model does not have, or that is not linear."""
        self._weight(umm.backbone())

    def fit(
        self,
        umm: UMM,
        facts: Sequence[Fact],
        *,
        seed: int,
        texts: Sequence[str],
        log: Log,
        cache: Path | None = None,
        training: Training | None = None,
    ) -> WeightDelta:
        """Train the weight on the facts' lessons; see `Intervention.fit`.

        Raises:
            UserError: a setting does not fit this model, a side has no lessons, or the loss diverged.
        """
        if not facts:
            raise UserError("facts: none were given; fine-tuning needs at least one")
        backbone = umm.backbone()
        name, weight = self._weight(backbone)
        before = weight.detach().clone()

        def project() -> None:
            bound = self.norm_constraint
            if bound is not None:
                with torch.no_grad():
                    weight.copy_(before + (weight - before).clamp(-bound, bound))

        def last_position(examples: Sequence[Example], direction: Direction) -> Tensor:
            return _last_position(backbone, examples)

        with left_as_found(backbone.root):
            weight.requires_grad_(True)
            try:
                train(
                    umm,
                    self,
                    {name: weight},
                    loss=last_position if self.method == "ft_l" else umm.loss,
                    seed=seed,
                    log=log,
                    training=training,
                    after_update=project,
                )
                change = (weight.detach().float() - before.float()).cpu()
            finally:
                with torch.no_grad():
                    weight.copy_(before)
                weight.grad = None
        return WeightDelta({name: Dense(change)})

    def _weight(self, backbone: Backbone) -> tuple[str, nn.Parameter]:
        path = backbone.sites.path(self.site, self.layer)
        return f"{path}.weight", linear_weight(backbone.root, path)


def _last_position(backbone: Backbone, examples: Sequence[Example]) -> Tensor:
    """-sum over the answer's tokens of log p(token | question), all at the question's end: (batch,).

    The end of the sequence, where a model closes its answers with one, is no token of the answer.
    """
    questions = [example.prompt.text for example in examples]
    answers = backbone.encode(questions, [str(example.answer) for example in examples]).labels
    logits = backbone.logits(backbone.encode(questions, None))[:, -1].float().log_softmax(-1)
    told = (answers != -100) & (answers != backbone.tokenizer.eos_token_id)
    picked = logits.gather(1, answers.clamp(min=0).to(logits.device))
    losses: Tensor = -(picked * told.to(logits.device)).sum(1)
    return losses
