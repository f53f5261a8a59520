"""Nodes inside a plug-in's settings: other plug-ins by name, as they stand at the top level of a recipe.

A field of type `JudgeNode` takes `{use: name, ...settings}` or `{config: name, ...}`. Its mistakes come
out with their paths and in the same words as a recipe's own; what is left out is filled in, so that the
resolved recipe holds all. Builds nothing by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from gapeval_lab import registry
from gapeval_lab.errors import UserError
from gapeval_lab.shipped import find_file, read_text
from gapeval_lab.validation import KeyPath, did_you_mean, dotted, explain, validate
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
    node = {**_config(kind, raw.get("config")), **raw} if "config" in raw else dict(raw)
    node.pop("config", None)
    use = node.pop("use", None)
    if not isinstance(use, str):
        raise _mistakes(
            [(("use",), f"should name one of: {', '.join(registry.names(kind))}; got {use!r}")], raw
        )
    try:
        plugin = registry.find(kind, use)
    except UserError as error:
        raise _mistakes([(("use",), str(error))], raw) from None
    try:
        settings = validate(plugin, node)
    except ValidationError as error:
        raise _mistakes(
            [(problem.path, problem.message) for problem in explain(error, plugin, node)], raw
        ) from None
    except UserError as error:  # from a plug-in's own check
        raise ValueError(str(error)) from None
    return NestedNode(use=use, **settings.model_dump(mode="json", by_alias=True))


def _config(kind: registry.Kind, name: Any) -> dict[str, Any]:
    if not isinstance(name, str):
        raise _mistakes([(("config",), f"should be the name of a config; got {name!r}")], {"config": name})
    try:
        path = find_file(name, folder=f"configs/{kind}", suffix=".yaml")
        document = parse(read_text(path), str(path))
    except UserError as error:
        raise _mistakes([(("config",), str(error))], {"config": name}) from None
    if not isinstance(document.data, dict) or document.problems:
        reason = document.problems[0].message if document.problems else "it holds no mapping"
        raise _mistakes([(("config",), f"{path}: {reason}")], {"config": name})
    return document.data


def _mistakes(found: list[tuple[KeyPath, str]], raw: dict[str, Any]) -> ValidationError:
    """Mistakes at paths below the node, as pydantic hands them on."""
    details = []
    for path, message in found:
        # A path that the file does not hold would be cut; the message names the key then.
        here: Any = raw
        held = True
        for part in path:
            try:
                here = here[part]
            except (KeyError, IndexError, TypeError):
                held = False
                break
        words = message if held else f"{'.'.join(map(str, path))}: {message}"
        error = PydanticCustomError("value_error", "{error}", {"error": words})
        details.append(InitErrorDetails(type=error, loc=path, input=raw))
    return ValidationError.from_exception_data("node", details)


JudgeNode = Annotated[NestedNode, BeforeValidator(partial(_resolved, "judges"))]
"""A judge inside another judge's settings."""


class _One(BaseModel):
    """A judge by itself, for messages with the path that they have in a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: JudgeNode


def load_judge(given: str, overrides: Sequence[str] = ()) -> tuple[str, NestedNode]:
    """A judge named on a command line, and what to call it.

    Args:
        given: a config's name or path, else a plug-in's name, or a node as YAML ("{use: ...}").
        overrides: `path=value` strings, the path within the node, the value YAML.

    Raises:
        UserError: with every mistake.
    """
    name, node = _given(given)
    for override in overrides:
        _override(node, override)
    try:
        found = validate(_One, {"judge": node}).judge
    except ValidationError as error:
        problems = explain(error, _One, {"judge": node})
        lines = [f"{dotted(problem.path)}: {problem.message}" for problem in problems]
        raise UserError("\n  ".join([f"--judge: {len(lines)} to mend in '{given}'", *lines])) from None
    return name or found.use, found


def _given(given: str) -> tuple[str, dict[str, Any]]:
    """What the judge is called, "" for its plug-in's name, and its node as it was given."""
    if given.lstrip().startswith("{"):
        document = parse(given, "--judge")
        if not isinstance(document.data, dict) or document.problems:
            reason = document.problems[0].message if document.problems else "it holds no mapping"
            raise UserError(f"--judge: {given}: {reason}; write it as {{use: name, key: value}}")
        return "", document.data
    try:
        path = find_file(given, folder="configs/judges", suffix=".yaml")
    except UserError:
        known = registry.names("judges")
        if given not in known:
            raise UserError(
                f"--judge: '{given}' is neither a config nor a plug-in{did_you_mean(given, known)} "
                f"(plug-ins: {', '.join(known)})"
            ) from None
        return "", {"use": given}
    return path.stem, {"config": given}


def _override(node: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or not text.strip():
        raise UserError(f"--set: '{override}' is not of the form path=value (null is a value, too)")
    document = parse(text, f"--set {override}")
    if document.problems:
        raise UserError(f"--set {override}: {document.problems[0].message}")
    here: Any = node
    for part in parts[:-1]:
        step: Any = int(part) if isinstance(here, list) and part.isdigit() else part
        try:
            here = here[step]
        except (KeyError, IndexError, TypeError):
            raise UserError(f"--set {override}: there is no '{part}' in the judge; set it whole") from None
    if isinstance(here, list) and parts[-1].isdigit() and int(parts[-1]) < len(here):
        here[int(parts[-1])] = document.data
    elif isinstance(here, dict):
        here[parts[-1]] = document.data
    else:
        raise UserError(f"--set {override}: '{parts[-1]}' has no place in the judge; set it whole")
