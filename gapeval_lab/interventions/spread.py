"""MEMIT's shape: values are sought high up and written into the weights of several layers below.

    L         the highest of the layers;  h_i the stream after it at fact i's token, or another goal
    z_i       what h_i should be: h_i + delta_i, delta_i from values.py, (width,)
    K         (in, n) inputs of a layer's site at the facts' tokens, averaged over contexts
    R         (width, n) what is still missing: z_i - h_i, as the model is once the lower layers changed
    W' = W + (R / d) X^T        X (in, n) from K by the method's own formula; d by the layers left

Layers are written from the lowest to the highest, h looked at again before each. Where pictures are
sought, a fact's drawing prompts are columns of their own, with their own h and the same delta. After
Meng et al. 2023, "Mass-Editing Memory in a Transformer" (arXiv 2210.07229), sections 4.2 and 4.3.
Knows no formula for X.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
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
from gapeval_lab.interventions.rows import mean_by, positions_of
from gapeval_lab.interventions.trace import left_as_found, linear_weight, reading
from gapeval_lab.interventions.values import ValueSettings, optimise_values
from gapeval_lab.items import Fact

ROWS = 256  # prompts per pass while keys are read


KeyMean = Literal["contexts", "kinds"]


class SpreadSettings(EditSettings):
    """Settings of methods of this shape, beside those of `EditSettings`; a method adds its `_shape`.

    Attributes:
        layers: the layers to edit, from the lowest to the highest.
        batch: facts written together; None is all of them. The next batch is sought and written in
            the model that holds the earlier ones.
        key_mean: a key is the mean over all contexts, or over the two `kinds` of them, the bare question
            and those behind another text, as EasyEdit has it.
        shared_contexts: whether the facts of a batch are asked behind the same texts, as in EasyEdit.
        picture_layers: where pictures are sought, the layers to write them at, after the text has been
            written at `layers`; None is one value for both, at `layers`.
    """

    layers: tuple[int, ...] = Field(min_length=1)
    batch: int | None = Field(default=None, ge=1)
    key_mean: KeyMean = "contexts"
    shared_contexts: bool = False
    picture_layers: tuple[int, ...] | None = Field(default=None, min_length=1)

    @field_validator("layers", "picture_layers")
    @classmethod
    def _rise(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is None:
            return None
        if any(low >= high for low, high in zip(layers, layers[1:], strict=False)) or layers[0] < 0:
            raise ValueError(f"should rise from one to the next; got {list(layers)}")
        return layers

    @model_validator(mode="after")
    def _pictures_are_sought(self) -> Self:
        if self.picture_layers is not None and not (self.picture_factor and self.text_factor):
            raise ValueError("picture_layers: needs text_factor and picture_factor above 0; leave it out")
        return self

    @abstractmethod
    def _shape(self) -> Shape:
        """How the method departs from MEMIT."""

    def check(self, umm: UMM) -> None:
        """Refuse a model that lacks a site or a layer, or draws nothing where pictures are sought."""
        backbone = umm.backbone()
        for layers, _ in _order(self):
            for layer in layers:
                linear_weight(backbone.root, backbone.sites.path(self.site, layer))
            for goal in self._shape().goals:
                backbone.sites.path(goal, layers[-1])
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
        """Write the facts, a batch at a time; see `Intervention.fit`.

        Raises:
            UserError: a fact, a layer, the site or a setting does not fit this model.
        """
        if not facts:
            raise UserError(f"facts: none were given; {type(self).__name__} needs at least one")
        self.check(umm)
        backbone, drawn = umm.backbone(), drawn_examples(self, training)

        def sites(layers: Sequence[int]) -> list[str]:
            return [backbone.sites.path(self.site, layer) for layer in layers]

        with left_as_found(backbone.root):
            order = _order(self)
            moments = second_moments(
                backbone,
                [path for layers, _ in order for path in sites(layers)],
                texts,
                limit=self.moment_texts,
                seed=seed,
                cache=cache,
                drawn=drawn,
            )
            writes = [
                _Write(layers[-1], values, [(path, moments[path]) for path in sites(layers)])
                for layers, values in order
            ]

            def batch(chunk: Sequence[Fact], memory: Memory) -> Written:
                requests = requests_of(
                    self, chunk, texts=texts, seed=seed, training=training, shared=self.shared_contexts
                )
                done = WeightDelta.zero()
                losses: list[tuple[float, ...]] = [()] * len(requests)
                for one in writes:
                    with done.applied(backbone.root):
                        written = _write(self, self._shape(), backbone, requests, one, memory)
                    done = done.then(written.delta)
                    losses = [before + more for before, more in zip(losses, written.losses, strict=True)]
                return Written(done, losses)

            return write(
                umm,
                facts,
                settings=self,
                size=self.batch or len(facts),
                seed=seed,
                log=log,
                training=training,
                fit=batch,
            )


Solve = Callable[[SecondMoment, Tensor, str, Memory], Tensor]
"""(C, K (in, n), the site's path, memory) -> X (in, n), float64."""


@dataclass(frozen=True)
class Shape:
    """How a method departs from MEMIT.

    Attributes:
        solve: its formula for X.
        divide: layers left, this one included -> d.
        goals: sites whose output gets a value; the first one's is what the weights are to reach.
    """

    solve: Solve
    divide: Callable[[int], float] = float
    goals: tuple[str, ...] = ("block",)


def _order(settings: SpreadSettings) -> list[tuple[tuple[int, ...], ValueSettings]]:
    """Layers to write at, and what is sought there."""
    values = value_settings(settings)
    if settings.picture_layers is None:
        return [(settings.layers, values)]
    return [(settings.layers, replace(values, picture_factor=0.0)), (settings.picture_layers, values)]


@dataclass(frozen=True)
class _Write:
    """One of the writes that a batch takes: what is sought after which layer, and the sites below it."""

    highest: int
    values: ValueSettings
    sites: Sequence[tuple[str, SecondMoment]]


def _write(
    settings: SpreadSettings,
    shape: Shape,
    backbone: Backbone,
    requests: Sequence[ValueRequest],
    one: _Write,
    memory: Memory,
) -> Written:
    """One batch at some layers, on the model as it is now."""
    values = optimise_values(backbone, requests, sites=shape.goals, layer=one.highest, settings=one.values)
    delta = torch.stack([value.delta for value in values]).cpu().double()
    prompts = _Prompts(
        backbone,
        requests,
        token=settings.fact_token,
        pictures=one.values.picture_factor > 0,
        key_mean=settings.key_mean,
    )
    goal = backbone.sites.path(shape.goals[0], one.highest)
    wanted, done = None, WeightDelta.zero()
    for left, (path, moment) in zip(range(len(one.sites), 0, -1), one.sites, strict=True):
        with done.applied(backbone.root):
            keys, states = prompts.look(path, goal)
        if wanted is None:
            wanted = states + delta[prompts.owners]
        missing = (wanted - states) / shape.divide(left)
        done = done.then(
            update(
                backbone.root,
                path,
                missing.T,
                shape.solve(moment, keys.T, path, memory),
                transposed=backbone.sites.transposed,
                facts=[request.fact_id for request in requests],
                most=settings.max_relative_norm,
            )
        )
    return Written(done, [value.losses for value in values])


@dataclass(frozen=True)
class _Part:
    """Prompts of one kind: the fact of each, and some of them encoded."""

    owners: list[int]
    encode: Callable[[slice], Encoded]


class _Prompts:
    """All prompts of a batch of facts; each fact has one column of text and, maybe, one of pictures.

    owners: the fact of each column.
    """

    def __init__(
        self,
        backbone: Backbone,
        requests: Sequence[ValueRequest],
        *,
        token: FactToken,
        pictures: bool,
        key_mean: KeyMean = "contexts",
    ) -> None:
        self._backbone, self._requests, self._token = backbone, requests, token
        self._key_mean = key_mean
        told = [(index, text) for index, request in enumerate(requests) for text in request.contexts]
        texts = [text for _, text in told]
        self._parts = [_Part([i for i, _ in told], lambda some: backbone.encode(texts[some], None))]
        self.owners = list(range(len(requests)))
        if pictures:
            drawn = [(index, one) for index, request in enumerate(requests) for one in request.drawings]
            examples = [one for _, one in drawn]
            self._parts.append(
                _Part([i for i, _ in drawn], lambda some: drawing_of(backbone, examples[some]).prompt)
            )
            self.owners = self.owners * 2

    def look(self, path: str, goal: str) -> tuple[Tensor, Tensor]:
        """Keys at a site and the goal's state, per column: (columns, in), (columns, width), float64.

        A key is the mean over the fact's contexts; the state is that of its bare question.
        """
        keys, states = [], []
        for part in self._parts:
            owners = part.owners
            seen = [
                self._pass(part, slice(start, start + ROWS), path, goal)
                for start in range(0, len(owners), ROWS)
            ]
            fact, count = torch.tensor(owners), len(self._requests)
            found = torch.cat([key for key, _ in seen])
            first = [owners.index(index) for index in range(count)]
            mean = mean_by(found, fact, count)
            if self._key_mean == "kinds" and len(owners) > count:
                others = torch.ones(len(owners), dtype=torch.bool)
                others[first] = False
                mean = (found[first] + mean_by(found[others], fact[others], count)) / 2
            keys.append(mean)
            states.append(torch.cat([state for _, state in seen])[first])
        return torch.cat(keys), torch.cat(states)

    def _pass(self, part: _Part, some: slice, path: str, goal: str) -> tuple[Tensor, Tensor]:
        root, encoded = self._backbone.root, part.encode(some)
        position = positions_of(encoded, self._requests, part.owners[some], token=self._token)
        with torch.no_grad(), ExitStack() as stack:
            # The outer reader ends the pass; both have seen theirs by then.
            state = stack.enter_context(reading(root, goal, side="output", stop=True))
            key = stack.enter_context(reading(root, path, side="input"))
            self._backbone.logits(encoded)
        at = torch.arange(len(position))
        return key.tensor.cpu()[at, position].double(), state.tensor.cpu()[at, position].double()
