"""The `search` section of a recipe: what is sought, what must be kept, how trials are chosen and stopped.

    search:
      goal: {edit/reliability/image: maximize}      # metrics as logged; abs(delta/gap_score) is one, too
      constraints: ["edit/locality/text >= 0.95"]
      sampler: {use: tpe}                           # tpe | nsga2 | nsga3 | gp | random | grid
      pruner: {use: none}                           # none | median | halving | wilcoxon
      space: ...                                    # see space.py

Options of samplers and pruners have Optuna's names. Knows neither Optuna nor any model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from gapeval_lab.sections import Strict
from gapeval_lab.space import Float, Varied, order

Text = Annotated[str, StringConstraints(min_length=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Direction = Literal["maximize", "minimize"]

ALONE = "part/"
"""What stands before a metric's name where it is estimated on the last measured part alone."""


AT_THE_END = ("official", "placebo", "identity", "emergence", "merge_error", "delta_rank", "time", "memory")
"""What the metrics begin with that a trial has no estimate of while it is measured."""


class _Sampler(Strict):
    """`seed` None is the recipe's seed."""

    seed: Annotated[int, Field(ge=0)] | None = None


class Tpe(_Sampler):
    """Optuna's tree-structured Parzen estimator.

    `multivariate` None: where there is a single goal. `group` None: where, beside that, settings are
    conditional.
    """

    use: Literal["tpe"] = "tpe"
    n_startup_trials: Annotated[int, Field(ge=0)] = 10
    n_ei_candidates: Annotated[int, Field(ge=1)] = 24
    multivariate: bool | None = None
    group: bool | None = None
    constant_liar: bool = True


class Nsga2(_Sampler):
    """Optuna's NSGA-II; wants hundreds of trials."""

    use: Literal["nsga2"]
    population_size: Annotated[int, Field(ge=2)] = 50
    mutation_prob: Probability | None = None
    crossover_prob: Probability = 0.9
    swapping_prob: Probability = 0.5


class Nsga3(_Sampler):
    """Optuna's NSGA-III."""

    use: Literal["nsga3"]
    population_size: Annotated[int, Field(ge=2)] = 50
    mutation_prob: Probability | None = None
    crossover_prob: Probability = 0.9
    swapping_prob: Probability = 0.5
    dividing_parameter: Annotated[int, Field(ge=1)] = 3


class Gp(_Sampler):
    """Optuna's Gaussian process; for up to about 200 trials."""

    use: Literal["gp"]
    n_startup_trials: Annotated[int, Field(ge=0)] = 10
    deterministic_objective: bool = False


class Random(_Sampler):
    """Independent draws."""

    use: Literal["random"]


class Grid(_Sampler):
    """Every combination once, in an order that the seed gives; ends by itself."""

    use: Literal["grid"]


Sampler = Annotated[Tpe | Nsga2 | Nsga3 | Gp | Random | Grid, Field(discriminator="use")]


class _Pruner(Strict):
    """`metric` is what is compared after each measured part, in the goal's direction; None is the goal.

    It is an estimate on everything measured so far; with `part/` before the name, on the last part alone.
    """

    metric: Text | None = None


class NoPruner(Strict):
    """Every trial is measured whole."""

    use: Literal["none"] = "none"


class Median(_Pruner):
    """Stops a trial that is worse than the median of the earlier ones at the same part."""

    use: Literal["median"]
    n_startup_trials: Annotated[int, Field(ge=0)] = 5
    n_warmup_steps: Annotated[int, Field(ge=0)] = 0
    n_min_trials: Annotated[int, Field(ge=1)] = 1


class Halving(_Pruner):
    """Asynchronous successive halving over the measured parts."""

    use: Literal["halving"]
    min_resource: Annotated[int, Field(ge=1)] = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    min_early_stopping_rate: Annotated[int, Field(ge=0)] = 0
    bootstrap_count: Annotated[int, Field(ge=0)] = 0


class Wilcoxon(_Pruner):
    """Stops a trial whose parts, paired with the best trial's, are worse by a signed-rank test.

    The pairs are to be independent, so that here None is the goal on the last part alone.
    """

    use: Literal["wilcoxon"]
    p_threshold: Annotated[float, Field(gt=0, le=1)] = 0.1
    n_startup_steps: Annotated[int, Field(ge=0)] = 2


Pruner = Annotated[NoPruner | Median | Halving | Wilcoxon, Field(discriminator="use")]


@dataclass(frozen=True)
class Measure:
    """A logged metric, or its size without the sign: `abs(name)`."""

    name: str
    absolute: bool = False

    @staticmethod
    def parse(text: str) -> Measure:
        """From how a recipe names it."""
        inside = re.fullmatch(r"abs\((.+)\)", text.strip())
        return Measure(inside[1].strip(), absolute=True) if inside else Measure(text.strip())

    def of(self, metrics: Mapping[str, float]) -> float | None:
        """Its value; None where it was not logged or is no number."""
        value = metrics.get(self.name, math.nan)
        return None if math.isnan(value) else abs(value) if self.absolute else value


@dataclass(frozen=True)
class Constraint:
    """A bound that a metric must keep."""

    text: str
    measure: Measure
    at_least: bool
    bound: float

    @staticmethod
    def parse(text: str) -> Constraint:
        """From `metric >= number` or `metric <= number`.

        Raises:
            ValueError: the text is neither.
        """
        found = re.fullmatch(r"\s*(\S.*?)\s*(<=|>=)\s*(\S+)\s*", text)
        try:
            bound = float(found[3]) if found else math.nan
        except ValueError:
            bound = math.nan
        if found is None or not math.isfinite(bound):
            raise ValueError(f"constraints: {text!r} should read like 'edit/locality/text >= 0.95'")
        return Constraint(text, Measure.parse(found[1]), found[2] == ">=", bound)

    def violation(self, metrics: Mapping[str, float]) -> float | None:
        """By how much it is broken; 0 or less where it holds, None where the metric is missing."""
        value = self.measure.of(metrics)
        if value is None:
            return None
        return self.bound - value if self.at_least else value - self.bound


class Search(Strict):
    """The section.

    Attributes:
        goal: metric -> direction; several make a Pareto front.
        constraints: what a trial must keep to count as a result.
        sampler, pruner: how trials are chosen, and when one is stopped early.
        defaults_first: the first trial is the recipe as it stands, where it lies in the space.
        warm_start: also learn from past runs of this recipe.
        tests: of a Pareto front, so many at most are run on test; of a single goal, the best one.
        space: dotted path of a setting -> how it varies.
    """

    goal: Annotated[dict[str, Direction], Field(min_length=1)]
    constraints: tuple[Text, ...] = ()
    sampler: Sampler = Tpe()
    pruner: Pruner = NoPruner()
    defaults_first: bool = True
    warm_start: bool = False
    tests: Annotated[int, Field(ge=1)] = 5
    space: Annotated[dict[str, Varied], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.limits()
        if len(self.goal) > 1 and self.pruner.use != "none":
            raise ValueError("pruner: works with a single goal; turn goals into constraints, or use none")
        if self.warm_start and isinstance(self.pruner, Wilcoxon):
            raise ValueError(
                "warm_start: past runs have no parts for wilcoxon to compare; use another pruner, or false"
            )
        compared = self.compared().name.removeprefix(ALONE)
        if self.pruner.use != "none" and compared.split("/")[0] in AT_THE_END:
            raise ValueError(f"pruner: '{compared}' is not known before a trial ends; name another metric")
        if self.sampler.use == "tpe" and self.sampler.group and self.sampler.multivariate is False:
            raise ValueError("sampler: group needs multivariate; leave one of them out")
        if self.sampler.use == "grid":
            endless = [path for path, v in self.space.items() if isinstance(v, Float) and v.step is None]
            if endless:
                raise ValueError(f"sampler: a grid needs a step for {', '.join(endless)}")
        order(self.space)
        return self

    def goals(self) -> list[tuple[Measure, Direction]]:
        """What is sought."""
        return [(Measure.parse(name), direction) for name, direction in self.goal.items()]

    def limits(self) -> list[Constraint]:
        """The constraints, read."""
        return [Constraint.parse(text) for text in self.constraints]

    def compared(self) -> Measure:
        """What the pruner compares."""
        if isinstance(self.pruner, NoPruner):
            return self.goals()[0][0]
        if self.pruner.metric is not None:
            return Measure.parse(self.pruner.metric)
        goal = self.goals()[0][0]
        return replace(goal, name=ALONE + goal.name) if isinstance(self.pruner, Wilcoxon) else goal

    def measures(self) -> list[tuple[str, Measure]]:
        """The metrics that goals and constraints name, each with the key that names it."""
        named = [(f"search.goal.{name}", Measure.parse(name)) for name in self.goal]
        return [*named, *(("search.constraints", limit.measure) for limit in self.limits())]

    def needs(self) -> list[tuple[str, str]]:
        """Every metric that the section is about, with its key."""
        named = [(key, measure.name) for key, measure in self.measures()]
        return [*named, ("search.pruner.metric", self.compared().name.removeprefix(ALONE))]
