"""One experiment as YAML: schema, plug-in settings, overrides, content hash.

A field's dotted path is its YAML key, its override on the command line, its search parameter and
its tracked parameter. Knows no model and runs nothing; plug-in classes are imported only to
validate their own settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, model_validator

from gapeval_lab import registry
from gapeval_lab.errors import UserError
from gapeval_lab.evaluation_settings import Evaluation
from gapeval_lab.recipe_draft import Draft, override_key, resolve_node
from gapeval_lab.registry import Kind
from gapeval_lab.sections import Strict, Text
from gapeval_lab.shipped import find_file, read_text
from gapeval_lab.space import check
from gapeval_lab.study_settings import Search
from gapeval_lab.validation import explain, validate
from gapeval_lab.yaml_file import parse

NodeField = Literal["model", "benchmark", "judge", "intervention"]

KINDS: Mapping[NodeField, Kind] = {
    "model": "models",
    "benchmark": "benchmarks",
    "judge": "judges",
    "intervention": "interventions",
}
"""Which kind of plug-in each node names; also the folder of its configs."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
"""Names of recipes become names of folders and runs."""


class Node(Strict):
    """A plug-in by name, with its settings beside the name; they are checked against its class.

    In a file, a node may also be `{config: name}`: the config's content, under the node's own keys.
    """

    model_config = ConfigDict(extra="allow")

    use: Text

    @property
    def settings(self) -> dict[str, Any]:
        """Everything beside `use`, as plain values."""
        return dict(self.model_extra or {})


class FactsNode(Strict):
    """Which facts are written: of a file's split, the first `count` (None: all).

    `pictures` is a folder of pictures with captions (`metadata.jsonl`) that interventions are shown
    instead of the benchmark's own drawings. `texts` is a file of texts of the domain, one a line, that
    interventions are given instead of the benchmark's: for second moments, for what stands before a question,
    for what is to stay as it is. `format`, `draw` and `flawed`: see fact_files.py.
    """

    file: Text
    format: Literal["lines", "counterfact", "zsre", "knowedit", "unike", "easyedit"] = "lines"
    split: Text = "test"
    count: Annotated[int, Field(ge=1)] | None = None
    draw: Text | None = None
    flawed: Literal["refuse", "skip"] = "refuse"
    pictures: Text | None = None
    texts: Text | None = None


class Curve(Strict):
    """Where a training is measured on its way.

    Attributes:
        every: after every so many updates, and before the first one; 5 where `at` is not given either.
        at: after exactly these numbers of updates, instead of `every`.
        items: size of the benchmark's subset whose Gap Score is taken too; 0 asks the facts alone.
    """

    every: Annotated[int, Field(ge=1)] | None = None
    at: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    items: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.every is not None and self.at is not None:
            raise ValueError("every and at are both given; set one of them to null")
        return self

    def due(self, updates: int) -> bool:
        """Whether to measure now."""
        return updates in self.at if self.at is not None else updates % (self.every or 5) == 0


class Controls(Strict):
    """What runs beside the intervention: a delta of nothing, and a random delta of equal norm."""

    identity: bool = True
    placebo: bool = True


class Step(Strict):
    """A further intervention, on the model that holds the earlier ones, with facts of its own."""

    facts: FactsNode
    intervention: Node


class Recipe(Strict):
    """One experiment, resolved. `load` makes it; without an intervention it measures a baseline.

    `then` holds further interventions, in order; after each one everything is measured.
    """

    name: Name
    about: str
    seed: Annotated[int, Field(ge=0)]
    model: Node
    benchmark: Node
    judge: Node
    facts: FactsNode | None = None
    intervention: Node | None = None
    then: tuple[Step, ...] = ()
    evaluation: Evaluation = Evaluation()
    emergence: Curve | None = None
    controls: Controls = Controls()
    search: Search | None = None

    @property
    def interventions(self) -> tuple[Node, ...]:
        """All of them, in order; none for a baseline."""
        return () if self.intervention is None else (self.intervention, *(s.intervention for s in self.then))

    def build(self, field: NodeField) -> Any:
        """The plug-in of a node, with its settings.

        Raises:
            ValueError: the recipe has no such node.
            UserError: the plug-in cannot be imported, or refuses its settings.
        """
        node: Node | None = getattr(self, field)
        if node is None:
            raise ValueError(f"the recipe '{self.name}' has no {field}")
        return registry.build(KINDS[field], node.use, settings=node.settings)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with everything that a record of it needs.

    Attributes:
        recipe: validated.
        text: the file as the user wrote it.
        resolved: plain JSON values: configs inlined, overrides applied, defaults filled in.
        hash: SHA-256 over the canonical JSON of `resolved`.
        source: the file.
        overrides: the `path=value` strings, as given.
    """

    recipe: Recipe
    text: str
    resolved: dict[str, Any]
    hash: str
    source: str
    overrides: tuple[str, ...] = ()


def load(name_or_path: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, override, resolve and validate a recipe.

    Args:
        name_or_path: a path, or a name in ./recipes or among the packaged recipes.
        overrides: `dotted.path=value` strings; the value is YAML (JSON will do).

    Raises:
        UserError: with every mistake of the recipe, each with its path and line.
    """
    path = find_file(name_or_path, folder="recipes", suffix=".yaml")
    return resolve(read_text(path), source=str(path), overrides=overrides)


def resolve(text: str, *, source: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """`load` for a text that is at hand; `source` names it in messages."""
    document = parse(text, source)
    if not isinstance(document.data, dict):
        raise UserError(f"{source}: a recipe is a mapping of keys to values; this file holds none")
    origins = {path: f"line {line}" for path, line in document.lines.items()}
    draft = Draft(document.data, origins, list(document.problems))
    for override in overrides:
        override_key(draft, override)
    broken = {name for name in KINDS if not resolve_node(draft, name, KINDS[name], draft.data, ())}
    broken |= _resolve_steps(draft)
    recipe = _validated(draft, broken)
    if recipe is None or draft.problems:
        raise draft.mistakes(source)
    resolved = recipe.model_dump(mode="json")
    return LoadedRecipe(recipe, text, resolved, content_hash(resolved), source, tuple(overrides))


def model_node(config: str, overrides: Sequence[str] = ()) -> Node:
    """The node of a model's config (a name or a path) with `path=value` overrides, outside any recipe.

    Raises:
        UserError: with every mistake of the node.
    """
    draft = Draft({"model": {"config": config}}, {})
    for override in overrides:
        override_key(draft, f"model.{override}")
    if not resolve_node(draft, "model", "models", draft.data, ()) or draft.problems:
        raise draft.mistakes(config)
    return Node.model_validate(draft.data["model"])


def content_hash(resolved: Mapping[str, Any]) -> str:
    """SHA-256 over canonical JSON (sorted keys, no spaces): the order of keys does not matter."""
    text = json.dumps(resolved, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path -> value for every leaf. Lists, and mappings without keys, are leaves."""
    flat: dict[str, Any] = {}
    for key, value in resolved.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}.{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def _resolve_steps(draft: Draft) -> set[NodeField]:
    """The nodes of `then`; an unusable one is reported and stands as a placeholder."""
    steps = draft.data.get("then")
    fine = True
    for number, step in enumerate(steps if isinstance(steps, list) else []):
        at = ("then", number)
        if isinstance(step, dict) and not resolve_node(draft, "intervention", "interventions", step, at):
            step["intervention"], fine = {"use": "broken"}, False
    return set() if fine else {"intervention"}


def _validated(draft: Draft, broken: set[NodeField]) -> Recipe | None:
    """The recipe, or None; mistakes go into the draft. Broken nodes have been reported already."""
    data = {key: {"use": "broken"} if key in broken else value for key, value in draft.data.items()}
    try:
        recipe = validate(Recipe, data)
    except ValidationError as error:
        draft.problems.extend(explain(error, Recipe, data))
        return None
    if recipe.intervention is not None and recipe.facts is None:
        draft.add(
            ("facts",), "missing; an intervention needs facts to write, such as {file: facts/name.jsonl}"
        )
    if recipe.then and recipe.intervention is None:
        draft.add(("then",), "there is no first intervention; move this list's first entry up")
    if recipe.evaluation.reasoning is not None and recipe.intervention is None:
        draft.add(
            ("evaluation", "reasoning"), "it asks about facts, and there is no intervention; take it out"
        )
    if recipe.search is not None and not broken:
        node, flat = recipe.intervention, flatten(recipe.model_dump(mode="json", exclude={"search"}))
        use, settings = (None, {}) if node is None else (node.use, node.settings)
        draft.problems.extend(check(recipe.search.space, use=use, settings=settings, paths=list(flat)))
    return recipe
