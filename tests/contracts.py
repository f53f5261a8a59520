"""What every plug-in must keep to, as checks that any test suite can run over its own.

An intervention's check takes the settings object and a `Case`; it fails by assertion. To run all:

    @pytest.mark.parametrize("check", INTERVENTION_CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(MyIntervention(...), Case(make_umm, facts, texts))
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from gapeval_lab.delta import WeightDelta
from gapeval_lab.interfaces import UMM, Intervention, Lesson, Training, side_of
from gapeval_lab.items import Direction, Example, Fact


class Fit(NamedTuple):
    """What an intervention gave for a fresh model and seed 0, and what it logged."""

    delta: WeightDelta
    points: list[tuple[str, float, int]]


@dataclass(frozen=True)
class Case:
    """A model maker (a fresh, identical model per call), facts it can be taught, texts of its domain."""

    make_umm: Callable[[], UMM]
    facts: Sequence[Fact]
    texts: Sequence[str]
    _fits: dict[tuple[type, str], Fit] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def training(self) -> Training:
        """The facts' edit wordings as lessons in text, the domain's other texts as anchors; nothing kept."""
        told = [
            Lesson(fact.id, Direction.UNDERSTANDING, Example(fact.edit.understand, fact.edit.reference_text))
            for fact in self.facts
        ]
        subjects = [fact.subject for fact in self.facts]
        others = [text for text in self.texts if not any(subject in text for subject in subjects)]
        return Training(lessons=told, anchors=others)

    def fit(self, intervention: Any, umm: UMM, *, seed: int = 0, log: Any = None) -> WeightDelta:
        return intervention.fit(
            umm,
            self.facts,
            seed=seed,
            texts=self.texts,
            log=log or (lambda *point: None),
            training=self.training,
        )

    def fitted(self, intervention: Any) -> Fit:
        """A fit as anyone makes it, once for all checks that look at nothing but what it gives."""
        key = (type(intervention), intervention.model_dump_json())
        if key not in self._fits:
            points: list[tuple[str, float, int]] = []
            delta = self.fit(intervention, self.make_umm(), log=lambda *point: points.append(point))
            self._fits[key] = Fit(delta, points)
        return self._fits[key]


@dataclass(frozen=True)
class Snapshot:
    """Everything of a model that an intervention must leave alone."""

    modules: list[tuple[str, int, type, bool, int, bool]]
    parameters: list[tuple[str, int, bool, bool]]
    tensors: dict[str, bytes]

    @staticmethod
    def of(root: nn.Module) -> Snapshot:
        return Snapshot(
            [
                (name, id(module), type(module), module.training, _hooks(module), "forward" in vars(module))
                for name, module in root.named_modules()
            ],
            [(name, id(p), p.requires_grad, p.grad is None) for name, p in root.named_parameters()],
            {name: _bits(tensor) for name, tensor in root.state_dict().items()},
        )


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _hooks(module: nn.Module) -> int:
    tables = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return sum(len(table) for table in tables)


def _random_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


def _unusual(umm: UMM) -> nn.Module:
    """Train mode here and there, frozen parameters here and there: nothing may be assumed."""
    root = umm.backbone().root
    root.train()
    for number, module in enumerate(root.modules()):
        module.training = number % 3 != 0
    for number, parameter in enumerate(root.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    return root


def settings_are_frozen_and_strict(intervention: Any, case: Case) -> None:
    assert isinstance(intervention, Intervention)
    assert isinstance(intervention, BaseModel)
    field = next(iter(type(intervention).model_fields))
    with pytest.raises(ValidationError):
        setattr(intervention, field, getattr(intervention, field))
    with pytest.raises(ValidationError):
        type(intervention)(**{**intervention.model_dump(), "no_such_setting": 1})
    again = type(intervention).model_validate_json(intervention.model_dump_json())
    assert again == intervention


def says_which_side_it_teaches(intervention: Any, case: Case) -> None:
    assert isinstance(intervention.direction, str)
    assert side_of(intervention.direction) in ("text", "image", "both")
    assert intervention.kind in ("edit", "inject")


def leaves_the_model_as_it_was(intervention: Any, case: Case) -> None:
    umm = case.make_umm()
    root = _unusual(umm)
    before = Snapshot.of(root)
    case.fit(intervention, umm)
    assert Snapshot.of(root) == before


def leaves_the_model_as_it_was_after_a_failure(intervention: Any, case: Case) -> None:
    umm = case.make_umm()
    root = _unusual(umm)
    before, state = Snapshot.of(root), _random_state()

    def fail(name: str, value: float, step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.fit(intervention, umm, log=fail)
    assert Snapshot.of(root) == before
    assert _random_state() == state


def leaves_global_random_state_alone(intervention: Any, case: Case) -> None:
    umm = case.make_umm()
    state = _random_state()
    case.fit(intervention, umm)
    assert _random_state() == state


def gives_the_same_delta_for_the_same_seed(intervention: Any, case: Case) -> None:
    first = case.fit(intervention, case.make_umm(), seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)  # all randomness must come from the argument
        second = case.fit(intervention, case.make_umm(), seed=3)
    assert first.digest == second.digest


def works_without_gradients_outside(intervention: Any, case: Case) -> None:
    with torch.no_grad():
        inside = case.fit(intervention, case.make_umm())
    assert inside.digest == case.fitted(intervention).delta.digest


def gives_a_delta_that_fits(intervention: Any, case: Case) -> None:
    delta, root = case.fitted(intervention).delta, case.make_umm().backbone().root
    before = Snapshot.of(root).tensors
    assert delta.is_finite and not delta.is_zero
    with delta.applied(root):
        inside = Snapshot.of(root).tensors
    changed = {name for name in before if inside[name] != before[name]}
    assert changed == set(delta.terms)
    assert Snapshot.of(root).tensors == before


def makes_the_new_answers_likelier(intervention: Any, case: Case) -> None:
    if intervention.direction == "image":
        pytest.skip("teaches through pictures; its own tests say what becomes likelier")
    umm, delta = case.make_umm(), case.fitted(intervention).delta
    examples = [Example(fact.edit.understand, fact.target_new) for fact in case.facts]
    with torch.no_grad():
        before = umm.loss(examples, Direction.UNDERSTANDING)
        with delta.applied(umm.backbone().root):
            after = umm.loss(examples, Direction.UNDERSTANDING)
    assert (after < before).all()


def logs_a_finite_loss(intervention: Any, case: Case) -> None:
    points = case.fitted(intervention).points
    curve = [(value, step) for name, value, step in points if name == "train/loss"]
    assert curve
    assert all(type(value) is float and math.isfinite(value) for _, value, _ in points)
    assert [step for _, step in curve] == sorted({step for _, step in curve})


INTERVENTION_CHECKS: tuple[Callable[[Any, Case], None], ...] = (
    settings_are_frozen_and_strict,
    says_which_side_it_teaches,
    leaves_the_model_as_it_was,
    leaves_the_model_as_it_was_after_a_failure,
    leaves_global_random_state_alone,
    gives_the_same_delta_for_the_same_seed,
    works_without_gradients_outside,
    gives_a_delta_that_fits,
    makes_the_new_answers_likelier,
    logs_a_finite_loss,
)
