"""Nodes inside a plug-in's settings: other plug-ins by name, as they stand at the top level of a recipe.

A field of type `JudgeNode` or `ModelNode` takes `{use: name, ...settings}` or `{config: name, ...}`. Its
mistakes come out with their paths and in the same words as a recipe's own; what is left out is filled in,
so that the resolved recipe holds all. Builds nothing by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from gapeval_lab import registry
from gapeval_lab.errors import UserError
from gapeval_lab.recipe_draft import Draft, override_key, resolve_node
from gapeval_lab.shipped import find_file, names_in
from gapeval_lab.validation import Problem, did_you_mean
from gapeval_lab.yaml_file import parse


class NestedNode(BaseModel):
    """A plug-in by name, with all of its settings beside the name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    use: str

    @property
    def settings(self) -> dict[str, Any]:
        """Everything beside `use`, as plain values."""
        return dict(self.model_extra or {})


def _resolved(kind: registry.Kind, raw: Any) -> NestedNode:
    """The node with its config inlined and its defaults filled in.

    Raises:
        ValidationError: with every mistake; pydantic puts the outer path before theirs.
    """
    if isinstance(raw, NestedNode):
        raw = raw.model_dump()
    if not isinstance(raw, dict):
        raise ValueError(f"should be a mapping such as {{use: name}}; got {raw!r}")
    draft = Draft({"node": raw}, {})
    if not resolve_node(draft, "node", kind, draft.data, ()) or draft.problems:
        raise _mistakes(draft, raw)
    return NestedNode(**draft.data["node"])


def _mistakes(draft: Draft, raw: dict[str, Any]) -> ValidationError:
    """The draft's mistakes at their paths below the node, as pydantic hands them on."""
    details = []
    for place, message in draft.problems:
        path = place[1:]
        # Only what stands in a config has an origin here; a recipe's own lines are known further out.
        words = draft.report(Problem(place, message)).partition(": ")[2]
        # A path that the file does not hold would be cut; the message names the key then.
        here: Any = raw
        for part in path:
            try:
                here = here[part]
            except (KeyError, IndexError, TypeError):
                words = f"{'.'.join(map(str, path))}: {words}"
                break
        error = PydanticCustomError("value_error", "{error}", {"error": words})
        details.append(InitErrorDetails(type=error, loc=path, input=None))
    return ValidationError.from_exception_data("node", details)


JudgeNode = Annotated[NestedNode, BeforeValidator(partial(_resolved, "judges"))]
"""A judge inside another judge's settings."""

ModelNode = Annotated[NestedNode, BeforeValidator(partial(_resolved, "models"))]
"""A model inside the settings of a judge or of another model."""


def load_judge(given: str, overrides: Sequence[str] = ()) -> tuple[str, NestedNode]:
    """A judge named on a command line, and what to call it.

    Args:
        given: a config's name or path, else a plug-in's name, or a node as YAML ("{use: ...}").
        overrides: `path=value` strings, the path within the node, the value YAML.

    Raises:
        UserError: with every mistake.
    """
    name, node = _given(given)
    draft = Draft({"judge": node}, {})
    for override in overrides:
        override_key(draft, f"judge.{override}")
    if draft.problems or not resolve_node(draft, "judge", "judges", draft.data, ()) or draft.problems:
        # A node is not repeated: what is wrong in it may be a secret that has no place there.
        raise draft.mistakes(f"--judge '{name}'" if name else "--judge")
    found = NestedNode(**draft.data["judge"])
    return name or found.use, found


def _given(given: str) -> tuple[str, dict[str, Any]]:
    """What the judge is called, "" for its plug-in's name, and its node as it was given."""
    if given.lstrip().startswith("{"):
        document = parse(given, "--judge")
        if not isinstance(document.data, dict) or document.problems:
            reason = document.problems[0].message if document.problems else "it holds no mapping"
            raise UserError(f"--judge: {reason}; write it as {{use: name, key: value}}")
        return "", document.data
    try:
        path = find_file(given, folder="configs/judges", suffix=".yaml")
    except UserError:
        known, configs = registry.names("judges"), names_in("configs/judges", suffix=".yaml")
        if given not in known:
            raise UserError(
                f"--judge: '{given}' is neither a config ({', '.join(configs)}) nor a plug-in "
                f"({', '.join(known)}){did_you_mean(given, [*configs, *known])}"
            ) from None
        return "", {"use": given}
    return path.stem, {"config": given}
