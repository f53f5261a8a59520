"""Optuna's samplers, pruners and distributions, made from a recipe's search section.

What a trial draws depends on the seed and on its *place* alone (the how-manieth trial it is, retries
not counted) and on what finished before: Optuna keeps no state of a sampler, so one that was made
once would draw other numbers after a restart.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from gapeval_lab.errors import UserError
from gapeval_lab.space import Choice, Float, Int, Layers, Varied, active, order
from gapeval_lab.study_settings import Gp, Grid, Halving, Median, Nsga2, Nsga3, Search, Tpe, Wilcoxon

MOST_POINTS = 100_000

PlaceOf = Callable[[Any], int]
"""The place of an Optuna trial in its study."""


def distributions(path: str, varied: Varied) -> dict[str, Any]:
    """The Optuna parameters of a searched path: one, or two for layers."""
    if isinstance(varied, Float):
        return {path: FloatDistribution(varied.low, varied.last, log=varied.log, step=varied.step)}
    if isinstance(varied, Int):
        return {path: IntDistribution(varied.low, varied.values()[-1], log=varied.log, step=varied.step)}
    if isinstance(varied, Choice):
        return {path: CategoricalDistribution(varied.names)}
    return {f"{path}.first": IntDistribution(*varied.first), f"{path}.count": IntDistribution(*varied.count)}


def setting(path: str, varied: Varied, params: Mapping[str, Any]) -> Any:
    """The value of the recipe's field for what was drawn."""
    if isinstance(varied, Layers):
        first = params[f"{path}.first"]
        return list(range(first, first + params[f"{path}.count"]))
    if isinstance(varied, Choice):
        return varied.choices[varied.names.index(params[path])]
    return params[path]


def settings(section: Search, params: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path -> value of everything that varies, for a trial's parameters."""
    chosen: dict[str, Any] = {}
    for path in order(section.space):
        varied = section.space[path]
        if active(varied, chosen):
            chosen[path] = setting(path, varied, params)
    return chosen


def suggest(trial: Any, section: Search) -> dict[str, Any]:
    """Draw every parameter of an Optuna trial; dotted path -> value."""
    # Samplers that work in generations note a trial's own there, also where all is given (a retry).
    _ = trial.relative_params
    chosen: dict[str, Any] = {}
    for path in order(section.space):
        varied = section.space[path]
        if not active(varied, chosen):
            continue
        drawn: dict[str, Any] = {}
        for name, found in distributions(path, varied).items():
            if isinstance(found, CategoricalDistribution):
                drawn[name] = trial.suggest_categorical(name, found.choices)
            elif isinstance(found, IntDistribution):
                drawn[name] = trial.suggest_int(name, found.low, found.high, step=found.step, log=found.log)
            else:
                drawn[name] = trial.suggest_float(name, found.low, found.high, step=found.step, log=found.log)
        chosen[path] = setting(path, varied, drawn)
    return chosen


def parameters(section: Search, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(parameters, distributions) that give these values; None where they do not lie in the space.

    Args:
        section: of the recipe.
        values: dotted path -> value; paths that are not searched are passed over.
    """
    params: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for path in order(section.space):
        varied = section.space[path]
        if not active(varied, values):
            continue
        drawn = _drawn(path, varied, values.get(path))
        if drawn is None:
            return None
        params |= drawn
        found |= distributions(path, varied)
    try:
        for name, one in found.items():
            if not one._contains(one.to_internal_repr(params[name])):
                return None
    except ValueError:
        return None
    return params, found


def _drawn(path: str, varied: Varied, value: Any) -> dict[str, Any] | None:
    """The parameters that would have given a value; None where none can."""
    if isinstance(varied, Layers):
        if not isinstance(value, list) or not value or value != list(range(value[0], value[0] + len(value))):
            return None
        return {f"{path}.first": value[0], f"{path}.count": len(value)}
    if isinstance(varied, Choice):
        return {path: varied.names[varied.choices.index(value)]} if value in varied.choices else None
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    return {path: value} if fits else None


def make_sampler(section: Search, *, seed: int, place_of: PlaceOf) -> Any:
    """The sampler of a study.

    Args:
        section: of the recipe.
        seed: where the section has none of its own.
        place_of: of a trial.

    Raises:
        UserError: the grid has too many points.
    """
    seed = seed if section.sampler.seed is None else section.sampler.seed
    if isinstance(section.sampler, Grid):
        return _GridSampler(grid(section, seed=seed), place_of)
    return _PlacedSampler(lambda place: _sampler(section, seed=_seed(seed, place)), place_of)


def make_pruner(section: Search) -> Any:
    """The pruner of a study."""
    pruner = section.pruner
    options = pruner.model_dump(exclude={"use", "metric"})
    if isinstance(pruner, Median):
        return optuna.pruners.MedianPruner(**options)
    if isinstance(pruner, Halving):
        return optuna.pruners.SuccessiveHalvingPruner(**options)
    if isinstance(pruner, Wilcoxon):
        return optuna.pruners.WilcoxonPruner(**options)
    return optuna.pruners.NopPruner()


def grid(section: Search, *, seed: int) -> list[dict[str, Any]]:
    """Every combination of parameters once, in an order that the seed gives.

    Raises:
        UserError: there are too many.
    """
    found = list(itertools.islice(_points(section, order(section.space), {}, {}), MOST_POINTS + 1))
    if len(found) > MOST_POINTS:
        raise _too_many()
    random.Random(seed).shuffle(found)
    return found


def _points(
    section: Search, paths: list[str], chosen: Mapping[str, Any], params: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The combinations of the paths left, behind what is chosen already."""
    if not paths:
        yield dict(params)
        return
    path, *left = paths
    varied = section.space[path]
    if not active(varied, chosen):
        yield from _points(section, left, chosen, params)
        return
    names = distributions(path, varied)
    for levels in itertools.product(*(_levels(one) for one in names.values())):
        drawn = dict(zip(names, levels, strict=True))
        value = setting(path, varied, drawn)
        yield from _points(section, left, {**chosen, path: value}, {**params, **drawn})


def _levels(found: Any) -> list[Any]:
    if isinstance(found, CategoricalDistribution):
        return list(found.choices)
    number = round((found.high - found.low) / found.step) + 1
    if number > MOST_POINTS:
        raise _too_many()
    low, step = Decimal(str(found.low)), Decimal(str(found.step))
    kind = int if isinstance(found, IntDistribution) else float
    return [kind(low + n * step) for n in range(number)]


def _too_many() -> UserError:
    return UserError(
        f"search.sampler: the grid has more than {MOST_POINTS:,} points; widen the steps, or use random"
    )


def _seed(seed: int, place: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:4], "big")


def _sampler(section: Search, *, seed: int) -> Any:
    chosen = section.sampler
    options = chosen.model_dump(exclude={"use", "seed"}) | {"seed": seed}
    if isinstance(chosen, Tpe):
        conditional = any(varied.when for varied in section.space.values())
        if chosen.group is None:
            single = len(section.goal) == 1
            together = chosen.multivariate or (chosen.multivariate is None and single)
            options["group"] = conditional and together
        return optuna.samplers.TPESampler(**options)
    if isinstance(chosen, Nsga2):
        return optuna.samplers.NSGAIISampler(**options)
    if isinstance(chosen, Nsga3):
        return optuna.samplers.NSGAIIISampler(**options)
    if isinstance(chosen, Gp):
        return optuna.samplers.GPSampler(**options, warn_independent_sampling=False)
    return optuna.samplers.RandomSampler(seed=seed)


class _PlacedSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """A sampler that is made anew for every trial, from the trial's place."""

    def __init__(self, make: Callable[[int], Any], place_of: PlaceOf) -> None:
        self._make, self._place_of = make, place_of
        self._inner: Any = make(0)

    def before_trial(self, study: Any, trial: Any) -> None:
        self._inner = self._make(self._place_of(trial))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self._inner.after_trial(study, trial, state, values)


class _GridSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """The grid's point at the trial's place. Optuna's own forgets the point of a trial that is retried."""

    def __init__(self, points: list[dict[str, Any]], place_of: PlaceOf) -> None:
        self._points, self._place_of = points, place_of

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self._points[self._place_of(trial) % len(self._points)][param_name]
