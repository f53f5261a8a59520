"""What may vary in a search: dotted path of a setting -> how. Checked against the plug-in's own schema.

    intervention.lr: {type: float, low: 0.05, high: 2.0, log: true}
    intervention.layers: {type: layers, first: [0, 4], count: [1, 3]}
    intervention.contexts: {type: int, low: 1, high: 8, when: {intervention.site: mlp_down}}

Knows neither Optuna nor any model.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from gapeval_lab import registry
from gapeval_lab.errors import UserError
from gapeval_lab.sections import Strict
from gapeval_lab.validation import KeyPath, Problem, did_you_mean, explain, validate

Finite = Annotated[float, Field(allow_inf_nan=False)]
Probe = tuple[KeyPath, Any]
"""A key of a distribution, and a value at the edge of what it allows."""

INTERVENTION = "intervention."


class _Varied(Strict):
    """`when` holds conditions: another searched path, and the value (or list of values) it must have."""

    when: dict[str, Any] = {}

    def allowed(self, path: str) -> list[Any]:
        """The values that a condition accepts."""
        values = self.when[path]
        return values if isinstance(values, list) else [values]


class Float(_Varied):
    """A real number, from low to high."""

    type: Literal["float"]
    low: Finite
    high: Finite
    log: bool = False
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        _ordered(self.low, self.high)
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: needs low above 0 and no step; mend one of them")
        return self

    @property
    def last(self) -> float:
        """The greatest value: with a step, the last one that does not go beyond `high`."""
        if self.step is None:
            return self.high
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return float(low + (high - low) // step * step)

    def probes(self) -> list[Probe]:
        """Both ends."""
        return [(("low",), self.low), (("high",), self.last)]


class Int(_Varied):
    """A whole number, from low to high, both included."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        _ordered(self.low, self.high)
        if self.log and (self.low < 1 or self.step != 1):
            raise ValueError("log: needs low at least 1 and no step; mend one of them")
        return self

    def values(self) -> range:
        """All of them."""
        return range(self.low, self.high + 1, self.step)

    def probes(self) -> list[Probe]:
        """Both ends."""
        return [(("low",), self.low), (("high",), self.values()[-1])]


class Choice(_Varied):
    """One of several values of any kind."""

    type: Literal["choice"]
    choices: Annotated[list[Any], Field(min_length=2)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for number, value in enumerate(self.choices):
            if value in self.choices[:number]:
                raise ValueError(f"choices: {value!r} stands twice; keep one of them")
        return self

    @property
    def names(self) -> list[Any]:
        """The choices as plain scalars: lists and mappings as their JSON."""
        return [
            json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value
            for value in self.choices
        ]

    def probes(self) -> list[Probe]:
        """Every choice."""
        return [(("choices", number), value) for number, value in enumerate(self.choices)]


class Layers(_Varied):
    """A run of neighbouring layers: the first one and how many, each from a least to a greatest."""

    type: Literal["layers"]
    first: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    count: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        for name, (least, most) in (("first", self.first), ("count", self.count)):
            if least > most:
                raise ValueError(f"{name}: the range from {least} to {most} is empty; put the smaller first")
        if self.first[0] == self.first[1] and self.count[0] == self.count[1]:
            raise ValueError("first and count leave a single value; set the field itself instead")
        return self

    def probes(self) -> list[Probe]:
        """The lowest and the highest run."""
        ends = zip(self.first, self.count, strict=True)
        return [(("first",), list(range(first, first + count))) for first, count in ends]


Varied = Annotated[Float | Int | Choice | Layers, Field(discriminator="type")]


def order(space: Mapping[str, Varied]) -> list[str]:
    """The paths, each after those that its conditions name; else by name.

    Raises:
        ValueError: a condition names what is not searched, cannot hold, or goes in a circle.
    """
    for path, varied in space.items():
        for other in varied.when:
            _check_condition(space, path, other)
    placed: list[str] = []
    left = sorted(space)
    while left:
        ready = next((path for path in left if set(space[path].when) <= set(placed)), None)
        if ready is None:
            raise ValueError(f"space: the conditions of {', '.join(left)} go in a circle; remove one")
        placed.append(ready)
        left.remove(ready)
    return placed


def active(varied: Varied, chosen: Mapping[str, Any]) -> bool:
    """Whether it varies, given the values of the paths before it (one that does not vary is missing)."""
    return all(other in chosen and chosen[other] in varied.allowed(other) for other in varied.when)


def _check_condition(space: Mapping[str, Varied], path: str, other: str) -> None:
    at = f"space: {path}: when:"
    known = space.get(other)
    if known is None:
        raise ValueError(f"{at} '{other}' is not searched{did_you_mean(other, space)}")
    for value in space[path].allowed(other):
        if isinstance(known, Choice):
            fine = value in known.choices
        else:
            fine = isinstance(known, Int) and isinstance(value, int) and value in known.values()
        if not fine:
            raise ValueError(f"{at} '{other}' is never {value!r}; name values that it can have")


def check(
    space: Mapping[str, Varied], *, use: str | None, settings: Mapping[str, Any], paths: Sequence[str]
) -> Iterator[Problem]:
    """Whatever in the space the recipe would refuse: unknown paths, and ends that a field does not take.

    Args:
        space: of the recipe's search section.
        use: the intervention's name; None where the recipe has none.
        settings: of the intervention, as in the recipe.
        paths: every dotted path of the recipe.
    """
    if use is None:
        yield Problem(("search",), "there is no intervention to vary; add one, or leave the section out")
        return
    plugin = registry.find("interventions", use)
    for path, varied in space.items():
        at: KeyPath = ("search", "space", path)
        if path not in paths:
            yield Problem(at, f"no field of this recipe{did_you_mean(path, paths)}")
        elif not path.startswith(INTERVENTION) or path == "intervention.use":
            yield Problem(
                at,
                "only settings of the intervention can be searched: what is asked of the model must stay "
                "the same; make a recipe of its own for another method",
            )
        else:
            inside = tuple(path.removeprefix(INTERVENTION).split("."))
            for key, value in varied.probes():
                grounds = _grounds(space, settings, path, paths=paths)
                said = [_refusal(plugin, ground, inside, value) for ground in grounds]
                # An error of the whole may be due to what the other settings happen to be.
                own = next((words for words in said if words and words[1]), None)
                if own or all(said):
                    words = own or said[0]
                    yield Problem((*at, *key), f"{value!r} is refused: {words[0] if words else ''}")


def _grounds(
    space: Mapping[str, Varied], settings: Mapping[str, Any], path: str, *, paths: Collection[str]
) -> list[dict[str, Any]]:
    """Settings to try a value among: the recipe's own, and the others at one and at the other end.

    The conditions of the path hold in all of them.
    """
    real = [one for one in paths if one.startswith(INTERVENTION)]
    others = [other for other in space if other != path and other in real]
    grounds = []
    for end in (None, 0, -1):
        ground = copy.deepcopy(dict(settings))
        for other in others if end is not None else ():
            _put(ground, other, space[other].probes()[end or 0][1])
        for other in (one for one in space[path].when if one in real):
            _put(ground, other, space[path].allowed(other)[0])
        grounds.append(ground)
    return grounds


def _put(settings: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.removeprefix(INTERVENTION).split(".")
    here = settings
    for part in above:
        here = here.setdefault(part, {})
    here[last] = value


def _refusal(
    plugin: type[BaseModel], ground: dict[str, Any], inside: tuple[str, ...], value: Any
) -> tuple[str, bool] | None:
    """What the plug-in says against a value, and whether it is against this very field; None if nothing."""
    _put(ground, ".".join(inside), value)
    try:
        validate(plugin, ground)
    except ValidationError as error:
        problems = explain(error, plugin, ground)
        own = [problem.message for problem in problems if problem.path[: len(inside)] == inside]
        return (own or [problem.message for problem in problems])[0], bool(own)
    except UserError as error:
        return str(error), False
    return None


def _ordered(low: float, high: float) -> None:
    if low >= high:
        raise ValueError(f"the range from {low} to {high} is empty; low must be under high")
