"""The search section: every distribution against the schema, conditions, goals, constraints, options."""

import pytest
from test_recipe import GOOD, errors_of, resolved, table  # noqa: F401 (a fixture)

from gapeval_lab.space import Choice, Float, Int, Layers, active, order
from gapeval_lab.study_settings import Constraint, Measure, Search

LR = "intervention.lr: {type: float, low: 0.1, high: 1.0}"


def section(space: str = LR, rest: str = "goal: {a: minimize}") -> str:
    return GOOD + f"search: {{{rest}, space: {{{space}}}}}\n"


def searched(space: str = LR, rest: str = "goal: {a: minimize}") -> Search:
    found = resolved(section(space, rest)).recipe.search
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("intervention.lr: {type: float, low: 0.1, high: 1.0, log: true}", Float),
        ("intervention.layer: {type: int, low: 0, high: 7, step: 2}", Int),
        ("intervention.site: {type: choice, choices: [mlp_down, mlp_up]}", Choice),
        ("intervention.layers: {type: choice, choices: [null, [1, 2], [3]]}", Choice),
        ("intervention.layers: {type: layers, first: [0, 4], count: [1, 3]}", Layers),
        ("intervention.nested.layers: {type: int, low: 1, high: 3}", Int),
    ],
)
def test_every_distribution(space: str, expected: type) -> None:
    text = section(space)
    if "nested" in space:
        text = text.replace("  layer: 2\n", "  layer: 2\n  nested: {layers: 2}\n")
    found = resolved(text).recipe.search
    assert found is not None
    assert [type(varied) for varied in found.space.values()] == [expected]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        # the schema's own bounds, types and names
        (
            "intervention.layer: {type: int, low: -1, high: 3}",
            "search.space.intervention.layer.low: -1 is refused: should be greater than or equal to 0",
        ),
        (
            "intervention.layer: {type: float, low: 0.5, high: 3}",
            "search.space.intervention.layer.low: 0.5 is refused: should be a valid integer",
        ),
        (
            "intervention.layers: {type: int, low: 1, high: 3}",
            "search.space.intervention.layers.low: 1 is refused: should be a list",
        ),
        (
            "intervention.lr: {type: layers, first: [0, 1], count: [1, 2]}",
            "search.space.intervention.lr.first: [0] is refused: should be a valid number",
        ),
        (
            "intervention.site: {type: choice, choices: [mlp_down, 3]}",
            "search.space.intervention.site.choices.1: 3 is refused: should be a valid string",
        ),
        # a check of the plug-in as a whole
        (
            "intervention.lr: {type: float, low: 1, high: 101}",
            "search.space.intervention.lr.high: 101.0 is refused: lr and layer do not go together",
        ),
        (
            "intervention.lr: {type: float, low: -2, high: 1}",
            "search.space.intervention.lr.low: -2.0 is refused: lr is negative",
        ),
        # paths
        (
            "intervention.lrr: {type: float, low: 0, high: 1}",
            "search.space.intervention.lrr: no field of this recipe; did you mean 'intervention.lr'?",
        ),
        (
            "evaluation.batch: {type: int, low: 1, high: 3}",
            "search.space.evaluation.batch: only settings of the intervention can be searched",
        ),
        (
            "intervention.use: {type: choice, choices: [edit, other]}",
            "search.space.intervention.use: only settings of the intervention can be searched",
        ),
        # ranges
        ("intervention.lr: {type: float, low: 1, high: 1}", "search.space.intervention.lr: the range from 1"),
        ("intervention.layer: {type: int, low: 3, high: 2}", "search.space.intervention.layer: the range"),
        (
            "intervention.layers: {type: layers, first: [4, 1], count: [1, 1]}",
            "search.space.intervention.layers: first: the range from 4 to 1 is empty",
        ),
        (
            "intervention.layers: {type: layers, first: [1, 1], count: [1, 1]}",
            "search.space.intervention.lay",
        ),
        (
            "intervention.lr: {type: float, low: 0, high: 1, log: true}",
            "search.space.intervention.lr: log: needs low above 0",
        ),
        (
            "intervention.site: {type: choice, choices: [a, a]}",
            "search.space.intervention.site: choices: 'a'",
        ),
        ("intervention.lr: {low: 0, high: 1}", "search.space.intervention.lr: 'type' is missing"),
        (
            "intervention.lr: {type: flaot, low: 0, high: 1}",
            "search.space.intervention.lr: type: 'flaot' is none of 'float', 'int', 'choice', 'layers'",
        ),
    ],
)
def test_a_distribution_that_the_recipe_would_refuse(space: str, said: str) -> None:
    lines = errors_of(section(space))
    assert lines[0].startswith(said)
    assert len(lines) <= 2 and all("(line 15)" in line for line in lines)


def test_a_search_needs_an_intervention() -> None:
    lines = errors_of(section(), "intervention=null", "facts=null")
    assert "search: there is no intervention to vary" in lines[0]


def test_a_bound_is_tried_among_what_the_other_settings_may_be() -> None:
    """A value that the recipe refuses as it stands, but not under its condition, is fine."""
    text = section(LR).replace("  layer: 2\n", "  layer: 2\n  lr: -0.0\n")
    assert resolved(text).recipe.search is not None
    conditional = (
        "intervention.lr: {type: choice, choices: [0.5, 1.0]}, "
        "intervention.site: {type: choice, choices: [mlp_down, mlp_up], when: {intervention.lr: [1.0]}}"
    )
    found = searched(conditional)
    assert order(found.space) == ["intervention.lr", "intervention.site"]
    site = found.space["intervention.site"]
    assert active(site, {"intervention.lr": 1.0})
    assert not active(site, {"intervention.lr": 0.5}) and not active(site, {})


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("{intervention.lr: 3}", "'intervention.lr' is not searched"),
        ("{intervention.layer: 9}", "'intervention.layer' is never 9"),
        ("{intervention.layer: [1, x]}", "'intervention.layer' is never 'x'"),
        ("{intervention.site: a}", "go in a circle"),
    ],
)
def test_conditions_that_cannot_hold(when: str, said: str) -> None:
    space = (
        "intervention.layer: {type: int, low: 0, high: 3}, "
        f"intervention.site: {{type: choice, choices: [a, b], when: {when}}}"
    )
    (line,) = errors_of(section(space))
    assert line.startswith("search: space: ") and said in line


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("goal: {}", "search.goal: "),
        ("goal: {a: up}", "search.goal.a: should be 'maximize' or 'minimize'"),
        ("goal: {a: minimize}, constraints: [a > 1]", "search: constraints: 'a > 1' should read like"),
        ("goal: {a: minimize}, constraints: [a >= x]", "search: constraints: 'a >= x' should read like"),
        (
            "goal: {a: minimize}, sampler: {use: tpee}",
            "search.sampler: use: 'tpee' is none of 'tpe', 'nsga2'",
        ),
        (
            "goal: {a: minimize}, sampler: {use: gp, population_size: 3}",
            "search.sampler.population_size: unk",
        ),
        (
            "goal: {a: minimize}, sampler: {use: nsga2, population_size: 1}",
            "search.sampler.population_size: ",
        ),
        (
            "goal: {a: minimize}, sampler: {use: grid}",
            "search: sampler: a grid needs a step for intervention",
        ),
        (
            "goal: {a: minimize}, sampler: {use: tpe, group: true, multivariate: false}",
            "search: sampler: group",
        ),
        ("goal: {a: minimize, b: maximize}, pruner: {use: median}", "search: pruner: works with a single"),
        ("goal: {a: minimize}, pruner: {use: wilcoxon, p_threshold: 2}", "search.pruner.p_threshold: "),
    ],
)
def test_settings_of_the_study_that_are_refused(rest: str, said: str) -> None:
    (line,) = errors_of(section(LR, rest))
    assert line.startswith(said)


def test_measures_and_constraints() -> None:
    metrics = {"delta/gap_score": -0.25, "nothing": float("nan")}
    assert Measure.parse("abs(delta/gap_score)").of(metrics) == 0.25
    assert Measure.parse("delta/gap_score").of(metrics) == -0.25
    assert Measure.parse("nothing").of(metrics) is None and Measure.parse("other").of(metrics) is None
    least, most = Constraint.parse("delta/gap_score >= -0.5"), Constraint.parse("abs(delta/gap_score)<=2e-1")
    assert (least.violation(metrics), most.violation(metrics)) == (-0.25, pytest.approx(0.05))
    assert Constraint.parse("nothing >= 0").violation(metrics) is None


@pytest.mark.parametrize(
    ("pruner", "compared"),
    [
        ("{use: none}", "a"),
        ("{use: median}", "a"),
        ("{use: wilcoxon}", "part/a"),
        ("{use: wilcoxon, metric: c}", "c"),
        ("{use: halving, metric: part/c}", "part/c"),
    ],
)
def test_every_metric_that_the_section_names(pruner: str, compared: str) -> None:
    found = searched(LR, f"goal: {{abs(a): minimize}}, constraints: [b >= 0], pruner: {pruner}")
    assert found.compared().name == compared
    assert found.needs() == [
        ("search.goal.abs(a)", "a"),
        ("search.constraints", "b"),
        ("search.pruner.metric", compared.removeprefix("part/")),
    ]


@pytest.mark.parametrize("wrong", ["intervention.lr.x", "intervention.site.0"])
def test_a_path_through_a_value_is_no_field(wrong: str) -> None:
    said = "\n".join(errors_of(section(f"{LR}, {wrong}: {{type: float, low: 0.1, high: 1.0}}")))
    assert f"search.space.{wrong}: no field of this recipe" in said
    assert "search.space.intervention.lr.low" not in said


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("pruner: {use: wilcoxon}, warm_start: true", "past runs have no parts for wilcoxon"),
        (
            "pruner: {use: median, metric: official/after}",
            "'official/after' is not known before a trial ends",
        ),
        ("pruner: {use: wilcoxon, metric: part/time/fit}", "'time/fit' is not known before a trial ends"),
    ],
)
def test_a_pruner_that_could_never_prune_is_refused(rest: str, said: str) -> None:
    assert said in "\n".join(errors_of(section(rest="goal: {a: minimize}, " + rest)))
    assert searched(rest="goal: {a: minimize}, pruner: {use: median, metric: after/gap_score}")
