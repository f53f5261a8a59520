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

Where pictures are sought too, k* is the mean over questions and drawing prompts, and C one over both.
Knows no particular model: sites come from the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gapeval_lab.delta import WeightDelta
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM, Backbone, Encoded, Log, Training
from gapeval_lab.interventions.batches import drawing_of
from gapeval_lab.interventions.editing import (
    EditSettings,
    Memory,
    Written,
    drawn_examples,
    requests_of,
    require_drawing,
    update,
    value_settings,
    write,
)
from gapeval_lab.interventions.lookup import FactToken
from gapeval_lab.interventions.moments import SecondMoment, second_moments
from gapeval_lab.interventions.request import ValueRequest
from gapeval_lab.interventions.rows import positions_of
from gapeval_lab.interventions.trace import inputs_at, left_as_found, linear_weight
from gapeval_lab.interventions.values import ValueSettings, optimise_values
from gapeval_lab.items import Fact


class Rome(EditSettings):
    """ROME's settings, beside those of `EditSettings`. The paper's values where it gives them, for
    models of its size.

    Attributes:
        layer: the layer to edit.
        value_at: where the value is tried while it is sought: at the fact's `token`, as in the paper, or
            `everywhere` that the changed weight will act, in the share that it will have there. The
            second finds values that hold where other tokens have keys like the subject's.
        picture_layer: where pictures are sought, the layer to write them at, after the text has been
            written at `layer`; None is one value for both, at `layer`.
    """

    layer: int = Field(ge=0)
    value_at: Literal["token", "everywhere"] = "token"
    picture_layer: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _pictures_are_sought(self) -> Self:
        if self.picture_layer is not None and not (self.picture_factor and self.text_factor):
            raise ValueError("picture_layer: needs text_factor and picture_factor above 0; leave it out")
        return self

    def check(self, umm: UMM) -> None:
        """Refuse a site or layer that the model does not have, or that is not linear."""
        backbone = umm.backbone()
        for layer, _ in self._order():
            linear_weight(backbone.root, backbone.sites.path(self.site, layer))
        require_drawing(self, umm)

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
            training: where pictures are sought, the facts' and those of what is known already.

        Raises:
            UserError: a fact, the layer, the site or a setting does not fit this model.
        """
        if not facts:
            raise UserError("facts: none were given; ROME needs at least one")
        self.check(umm)
        backbone = umm.backbone()
        drawn = drawn_examples(self, training)
        with left_as_found(backbone.root):
            order = [(layer, backbone.sites.path(self.site, layer), one) for layer, one in self._order()]
            moments = second_moments(
                backbone,
                [path for _, path, _ in order],
                texts,
                limit=self.moment_texts,
                seed=seed,
                cache=cache,
                drawn=drawn,
            )
            writes = [_Write(layer, path, one, self._solver(moments[path])) for layer, path, one in order]

            def fact_by_fact(chunk: Sequence[Fact], memory: Memory) -> Written:
                (request,) = requests_of(self, chunk, texts=texts, seed=seed, training=training)
                done = WeightDelta.zero()
                losses: list[float] = []
                for one in writes:
                    with done.applied(backbone.root):
                        change, found = self._write(backbone, request, one)
                    done = done.then(change)
                    losses += found
                return Written(done, [tuple(losses)])

            return write(
                umm,
                facts,
                settings=self,
                size=1,
                seed=seed,
                log=log,
                training=training,
                fit=fact_by_fact,
            )

    def _order(self) -> list[tuple[int, ValueSettings]]:
        """Layers to write at, and what is sought there."""
        settings = value_settings(self)
        if self.picture_layer is None:
            return [(self.layer, settings)]
        return [(self.layer, replace(settings, picture_factor=0.0)), (self.picture_layer, settings)]

    def _solver(self, moment: SecondMoment) -> Callable[[Tensor], Tensor]:
        if self.compat.inverse == "float32":
            return moment.coarse_solver(self.ridge)
        return moment.solver(self.ridge)

    def _write(
        self, backbone: Backbone, request: ValueRequest, one: _Write
    ) -> tuple[WeightDelta, tuple[float, ...]]:
        """The rank-one change for one fact on the model as it is now, and the value's losses."""
        pictures = one.settings.picture_factor > 0
        key = subject_key(backbone, one.path, request, token=self.fact_token, pictures=pictures)
        right = update_direction(key, one.solve)
        if self.compat.divisor == "question":
            alone = replace(request, contexts=request.contexts[:1])
            key = subject_key(backbone, one.path, alone, token=self.fact_token)
        reach = [right / (right @ key)] if self.value_at == "everywhere" else None
        (value,) = optimise_values(
            backbone, [request], sites=[self.site], layer=one.layer, settings=one.settings, reach=reach
        )
        left = value.delta.cpu().double() / (right @ key)
        change = update(
            backbone.root,
            one.path,
            left[:, None],
            right[:, None],
            transposed=backbone.sites.transposed,
            facts=[request.fact_id],
            most=self.max_relative_norm,
        )
        return change, value.losses


@dataclass(frozen=True)
class _Write:
    """One of the writes that a fact takes: where, what is sought, and C^-1 there."""

    layer: int
    path: str
    settings: ValueSettings
    solve: Callable[[Tensor], Tensor]


def subject_key(
    backbone: Backbone, path: str, request: ValueRequest, *, token: FactToken, pictures: bool = False
) -> Tensor:
    """k*: the input of the module at the fact's token, averaged over the contexts: (in,), float64, CPU.

    With `pictures` the mean of that and of the same over the fact's drawing prompts.
    """
    keys = [inputs_of(backbone, path, request, backbone.encode(request.contexts, None), token=token)]
    if pictures:
        drawn = drawing_of(backbone, request.drawings)
        keys.append(inputs_of(backbone, path, request, drawn.prompt, token=token))
    return torch.stack([key.mean(0) for key in keys]).mean(0)


def inputs_of(
    backbone: Backbone, path: str, request: ValueRequest, encoded: Encoded, *, token: FactToken
) -> Tensor:
    """The module's input at the fact's token of each row: (batch, in), float64, CPU."""
    positions = positions_of(encoded, [request], [0] * len(encoded.texts), token=token)
    return inputs_at(backbone, path, encoded, positions).cpu().double()


def update_direction(key: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """C^-1 k* at length 1, the input side of the update of eq. 2: (in,), float64, CPU.

    With it, W' = W + r right^T / (right @ key) gives W' key = W key + r.

    Args:
        key: k*, (in,).
        solve: C^-1, see `SecondMoment.solver`.

    Raises:
        UserError: the key is zero.
    """
    key = key.detach().cpu().double()
    direction = solve(key)
    right: Tensor = direction / direction.norm()
    if not right @ key > 0:  # C is positive definite: only a zero or non-finite key gets here
        raise UserError(
            "site: its input at the fact's token is zero or not finite; edit another site or layer"
        )
    return right
