"""The recipes of a search: of one trial, which sees dev alone, and of the test of a chosen trial.

Both are the searched recipe with overrides, so that `gapeval-lab edit` with the same overrides gives the
same numbers. What a trial leaves out (controls, the published estimator, narrow intervals, curves on the
way, drawing from words) is left out there, in words that anybody can read.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gapeval_lab.errors import UserError
from gapeval_lab.fact_files import read_fact_file
from gapeval_lab.items import Fact
from gapeval_lab.recipe import FactsNode, LoadedRecipe, Recipe, resolve
from gapeval_lab.splits import HALVES

REPLICATES = 1000
"""Bootstrap replicates of a trial; no value depends on them, only intervals do."""

SEARCHED = "intervention."
"""What a trial may change. The rest is what makes trials comparable, and is loaded once."""


def recipe_of_trial(
    loaded: LoadedRecipe, overrides: Mapping[str, Any], *, needs: Collection[str]
) -> LoadedRecipe:
    """The recipe of one trial.

    Args:
        loaded: the searched recipe.
        overrides: dotted path -> value.
        needs: metrics that the search's goals and constraints name; what they need is not left out.

    Raises:
        UserError: an override does not fit.
    """
    recipe = loaded.recipe
    official, placebo, identity, emergence, bounds = (
        any(name.startswith(prefixes) for name in needs)
        for prefixes in ("official/", "placebo/", "identity/", "emergence/", ("low/", "high/"))
    )
    lean = [
        *(() if official else ["evaluation.official=false"]),
        *(() if bounds else [f"evaluation.replicates={min(REPLICATES, recipe.evaluation.replicates)}"]),
        *(() if identity else ["controls.identity=false"]),
        *(() if placebo else ["controls.placebo=false"]),
        *(() if emergence or recipe.emergence is None else ["emergence=null"]),
        *(() if recipe.evaluation.reasoning is None else ["evaluation.reasoning=null"]),
        *(["evaluation.protocols={}"] if recipe.evaluation.protocols else []),
    ]
    return _resolved(loaded, [*words(overrides), *on_half(recipe, "dev"), *lean])


def recipe_of_test(loaded: LoadedRecipe, overrides: Mapping[str, Any]) -> LoadedRecipe:
    """The recipe of the test of a trial: whole, on the other half.

    Raises:
        UserError: an override does not fit.
    """
    return _resolved(loaded, [*words(overrides), *on_half(loaded.recipe, "test")])


def words(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as the command line takes them: `path=value`, the value as JSON (which is YAML)."""
    return [f"{path}={json.dumps(value)}" for path, value in overrides.items()]


def on_half(recipe: Recipe, split: str) -> list[str]:
    """The overrides that leave a recipe one half of the facts and of the items."""
    given = [f"facts.split={split}", f"evaluation.split={split}", "search=null"]
    if recipe.then:
        steps = [step.model_dump(mode="json") for step in recipe.then]
        steps = [step | {"facts": step["facts"] | {"split": split}} for step in steps]
        given.append(f"then={json.dumps(steps)}")
    return given


def check_recipe(loaded: LoadedRecipe, searched: Collection[str]) -> None:
    """Refuse what cannot be searched honestly, before any work.

    Args:
        loaded: the searched recipe.
        searched: dotted paths that trials change.

    Raises:
        UserError: no intervention, facts without both halves, sets that share facts then, or a path that
            trials may not change.
    """
    recipe = loaded.recipe
    if recipe.intervention is None or recipe.facts is None:
        raise UserError(f"--recipe: '{recipe.name}' has no intervention to search over; take one that has")
    for path in searched:
        if not path.startswith(SEARCHED):
            raise UserError(
                f"search.space.{path}: trials may change the intervention alone; what measures them is the "
                "same for all of them"
            )
    places: dict[str, str] = {}
    for where, node in (
        ("facts", recipe.facts),
        *((f"then.{number}.facts", step.facts) for number, step in enumerate(recipe.then)),
    ):
        if node.format != "lines":
            raise UserError(
                f"{where}.format: '{node.format}' files have no dev and test facts, so that a search would "
                "see what it is tested on; take a file of lines, each with its split"
            )
        for fact in (fact for split in HALVES for fact in _facts(node, split, where)):
            if places.setdefault(fact.id, where) != where:
                raise UserError(
                    f"{where}: a search takes the same half of every set, and fact '{fact.id}' stands in "
                    f"that of {places[fact.id]}, too; take another file"
                )


def _facts(node: FactsNode, split: str, where: str) -> tuple[Fact, ...]:
    try:
        return read_fact_file(node.file, format=node.format, split=split, count=node.count).facts
    except UserError as error:
        raise UserError(
            f"{error}; a search tries settings on 'dev' facts and tests the best on 'test' facts, so {where} "
            "needs both"
        ) from None


def _resolved(loaded: LoadedRecipe, given: Sequence[str]) -> LoadedRecipe:
    return resolve(loaded.text, source=loaded.source, overrides=[*loaded.overrides, *given])
