"""ROME: one fact, one rank-one change of one linear layer.

    W         weight of the site, W k is its output, (out, in)
    C         uncentred second moment of its inputs over questions of the domain, (in, in)
    k*        its input at the subject's last token, averaged over contexts, (in,)
    v*        what it should give instead: W k* + delta*, (out,); delta* from values.py

    W' = W + Lambda (C^-1 k*)^T,   Lambda = (v* - W k*) / ((C^-1 k*)^T k*)

so that W' k* = v*, at the least disturbance of W K for the keys K behind C. After Meng et al. 2022,
"Locating and Editing Factual Associations in GPT" (arXiv 2202.05262), eqs. 2 to 4. A bias of the
layer stays as it is. Several facts are written one after the other, each into the model that
already holds the earlier ones; C is always the unedited model's.

Teaches through text alone, and knows no particular model: sites come from the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from gapeval_lab.delta import LowRank, WeightDelta
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM, Backbone, Log, Training
from gapeval_lab.interventions.lookup import FactToken, token_positions
from gapeval_lab.interventions.moments import SecondMoment, second_moment
from gapeval_lab.interventions.request import ValueRequest, value_request
from gapeval_lab.interventions.trace import inputs_at, left_as_found, linear_weight
from gapeval_lab.interventions.value_rows import KlOrder
from gapeval_lab.interventions.values import ValueSettings, optimise_values
from gapeval_lab.items import Fact


class Rome(BaseModel):
    """ROME's settings. The paper's values where it gives them, for models of its size.

    Attributes:
        layer: the layer to edit.
        site: name of the linear site to edit.
        fact_token: the token whose key and value are used.
        steps: updates of the value at most.
        lr: Adam's learning rate for the value.
        weight_decay: weight of |delta|^2 / |v_init|^2.
        kl_factor: weight of the divergence after the essence prompt; 0 leaves it out.
        kl_order: which distribution comes first in it; the paper has `edited_original`.
        essence: prompts that must go on as before, with `{subject}` in them. One that names a fact's
            relation is left out for that fact. The paper has one, "{subject} is a".
        clamp_norm_factor: longest delta, as a multiple of |v_init|.
        early_stop: loss at which the value is good enough; None runs all steps.
        value_at: where the value is tried while it is sought: at the fact's `token`, as in the paper, or
            `everywhere` that the changed weight will act, in the share that it will have there. The
            second finds values that hold where other tokens have keys like the subject's.
        contexts: how many times the question is also asked behind another text.
        context_words: length of such a text, in words.
        moment_texts: questions behind C, at most.
        ridge: added to C's diagonal, as a share of its mean. Guards against a singular C where there
            are fewer tokens than dimensions.
        max_relative_norm: an update whose Frobenius norm is more than so many times the weight's own
            is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[Literal["edit"]] = "edit"
    direction: ClassVar[Literal["text"]] = "text"

    layer: int = Field(ge=0)
    site: str = "mlp_down"
    fact_token: FactToken = "subject_last"
    steps: int = Field(default=20, ge=1)
    lr: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=1.5e-3, ge=0, allow_inf_nan=False)
    kl_factor: float = Field(default=0.0625, ge=0, allow_inf_nan=False)
    kl_order: KlOrder = "edited_original"
    essence: tuple[str, ...] = ("{subject} is",)
    clamp_norm_factor: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    early_stop: float | None = Field(default=0.05, gt=0, allow_inf_nan=False)
    value_at: Literal["token", "everywhere"] = "token"
    contexts: int = Field(default=5, ge=0)
    context_words: int = Field(default=10, ge=1)
    moment_texts: int = Field(default=1000, ge=1)
    ridge: float = Field(default=1e-2, ge=0, allow_inf_nan=False)
    max_relative_norm: float = Field(default=100.0, gt=0, allow_inf_nan=False)

    @field_validator("essence")
    @classmethod
    def _names_the_subject(cls, essence: tuple[str, ...]) -> tuple[str, ...]:
        if not all("{subject}" in template for template in essence):
            raise ValueError("every one must hold {subject}")
        return essence

    def check(self, umm: UMM) -> None:
        """Refuse a site or layer that the model does not have, or that is not linear."""
        backbone = umm.backbone()
        linear_weight(backbone.root, backbone.sites.path(self.site, self.layer))

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
        """Write the facts, in order; see `Intervention.fit`.

        Logs the value's loss as `loss/<fact id>` (step 0 is before the first update), and all of
        them in a row as `train/loss`.

        Args:
            umm: the model; unchanged on return.
            facts: what to write. Only `edit.understand`, `subject` and `target_new` are read.
            seed: of the contexts and of the choice of texts.
            texts: questions of the domain.
            log: takes the curves.
            cache: where second moments are kept; `moments.default_cache()` if None.
            training: not used; the value is sought on the edit wording alone.

        Raises:
            UserError: a fact, the layer, the site or a setting does not fit this model.
        """
        if not facts:
            raise UserError("facts: none were given; ROME needs at least one")
        backbone = umm.backbone()
        path = backbone.sites.path(self.site, self.layer)
        linear_weight(backbone.root, path)
        with left_as_found(backbone.root):
            moment = second_moment(backbone, path, texts, limit=self.moment_texts, seed=seed, cache=cache)
            done, step = WeightDelta.zero(), 0
            for fact in facts:
                # Fitted on exactly what the composed delta will make of the weights, rounding included.
                with done.applied(backbone.root):
                    change, losses = self._write(backbone, path, self._request(fact, texts, seed), moment)
                done = done.then(change)
                for update, loss in enumerate(losses):
                    log(f"loss/{fact.id}", loss, update)
                    log("train/loss", loss, step)
                    step += 1
        return done

    def _request(self, fact: Fact, texts: Sequence[str], seed: int) -> ValueRequest:
        return value_request(
            fact,
            texts,
            seed=seed,
            contexts=self.contexts,
            context_words=self.context_words,
            essence=self.essence,
        )

    def _write(
        self, backbone: Backbone, path: str, request: ValueRequest, moment: SecondMoment
    ) -> tuple[WeightDelta, tuple[float, ...]]:
        """The rank-one change for one fact on the model as it is now, and the value's losses."""
        settings = ValueSettings(
            steps=self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            kl_factor=self.kl_factor,
            clamp_norm_factor=self.clamp_norm_factor,
            early_stop=self.early_stop,
            fact_token=self.fact_token,
            kl_order=self.kl_order,
        )
        key = subject_key(backbone, path, request, token=self.fact_token)
        right = update_direction(key, moment, ridge=self.ridge)
        reach = [right / (right @ key)] if self.value_at == "everywhere" else None
        (value,) = optimise_values(
            backbone, [request], sites=[self.site], layer=self.layer, settings=settings, reach=reach
        )
        left = value.delta.cpu().double() / (right @ key)
        weight = linear_weight(backbone.root, path).detach()
        relative = float(left.norm() * right.norm() / weight.double().norm())
        if not relative <= self.max_relative_norm:  # also true of NaN
            raise UserError(
                f"facts: fact '{request.fact_id}': its update is {relative:.3g} times as large as the weight "
                f"{path} (max_relative_norm: {self.max_relative_norm}); raise ridge, or lower lr or "
                "clamp_norm_factor"
            )
        up, down = (right, left) if backbone.sites.transposed else (left, right)
        term = LowRank(up[:, None].float(), down[None, :].float())
        return WeightDelta({f"{path}.weight": term}), value.losses


def subject_key(backbone: Backbone, path: str, request: ValueRequest, *, token: FactToken) -> Tensor:
    """k*: the input of the module at the fact's token, averaged over the contexts: (in,), float64, CPU."""
    encoded = backbone.encode(request.contexts, None)
    rows = len(request.contexts)
    positions = token_positions(
        encoded, [request.subject] * rows, token=token, facts=[request.fact_id] * rows
    )
    return inputs_at(backbone, path, encoded, positions).cpu().double().mean(0)


def update_direction(key: Tensor, moment: SecondMoment, *, ridge: float) -> Tensor:
    """C^-1 k* at length 1, the input side of the update of eq. 2: (in,), float64, CPU.

    With it, W' = W + r right^T / (right @ key) gives W' key = W key + r.

    Args:
        key: k*, (in,).
        moment: C.
        ridge: see `SecondMoment.solve`.

    Raises:
        UserError: C is singular, or the key is zero.
    """
    key = key.detach().cpu().double()
    direction = moment.solve(key, ridge=ridge)
    right: Tensor = direction / direction.norm()
    if not right @ key > 0:  # C is positive definite: only a zero or non-finite key gets here
        raise UserError(
            "site: its input at the fact's token is zero or not finite; edit another site or layer"
        )
    return right
