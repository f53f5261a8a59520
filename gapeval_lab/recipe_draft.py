"""A recipe on its way: plain data with its origins and mistakes, overrides, and nodes put in place.

Knows nodes as mappings and plug-ins by their classes; knows no recipe's schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from gapeval_lab import registry
from gapeval_lab.errors import UserError
from gapeval_lab.registry import Kind
from gapeval_lab.shipped import find_file, read_text
from gapeval_lab.validation import KeyPath, Problem, dotted, explain, validate
from gapeval_lab.yaml_file import Document, parse


@dataclass
class Draft:
    """A recipe on its way: plain data, where each key came from, and what is wrong so far."""

    data: dict[str, Any]
    origins: dict[KeyPath, str]
    problems: list[Problem] = field(default_factory=list)

    def add(self, path: KeyPath, message: str) -> None:
        """Note a mistake."""
        self.problems.append(Problem(path, message))

    def report(self, problem: Problem) -> str:
        """The mistake as a line: path, message, origin of the nearest key that has one."""
        path = problem.path
        ends = range(len(path), 0, -1)
        origin = next((self.origins[path[:end]] for end in ends if path[:end] in self.origins), "")
        return f"{dotted(path) or 'recipe'}: {problem.message}" + (f" ({origin})" if origin else "")

    def mistakes(self, source: str) -> UserError:
        """All of them as one error."""
        lines = list(dict.fromkeys(self.report(problem) for problem in self.problems))
        return UserError("\n  ".join([f"{source}: {len(lines)} to mend", *lines]))


def override_key(draft: Draft, override: str) -> None:
    """Apply one `dotted.path=value`. Whether the path is known shows when the whole is validated."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or not text.strip():
        raise UserError(f"--set: '{override}' is not of the form path=value (null is a value, too)")
    if parts[:2] == ["search", "space"] and len(parts) > 3:  # the keys of the space have dots themselves
        parts = ["search", "space", ".".join(parts[2:-1]), parts[-1]]
    document = parse(text, f"--set {override}")
    path: KeyPath = ()
    here: Any = draft.data
    for depth, part in enumerate(parts, start=1):
        if isinstance(here, list):
            if not part.isdecimal() or int(part) >= len(here):
                draft.add(
                    tuple(parts), f"there is no '{part}' in this list of {len(here)}; set it whole (--set)"
                )
                return
        elif not isinstance(here, dict):
            draft.add(tuple(parts), f"'{dotted(path)}' is no mapping; set it whole (--set)")
            return
        step: Any = int(part) if isinstance(here, list) else part
        path = (*path, step)
        if depth == len(parts):
            here[step] = document.data
        elif isinstance(here, dict) and here.get(step) is None:
            here[step] = {}
            draft.origins[path] = "--set"
        here = here[step]
    draft.problems.extend(Problem((*path, *problem.path), problem.message) for problem in document.problems)
    kept = {place: at for place, at in draft.origins.items() if place[: len(path)] != path}
    draft.origins = {**kept, path: "--set"}


def resolve_node(draft: Draft, name: str, kind: Kind, holder: dict[str, Any], place: KeyPath) -> bool:
    """Inline a node's config and fill in its plug-in's defaults; False if that was not possible.

    Nodes inside a plug-in's settings are its own: see `nested`.

    Args:
        draft: takes the mistakes.
        name: the node's key.
        kind: which plug-ins it names.
        holder: the mapping that the node stands in.
        place: the path of that mapping.
    """
    raw, at = holder.get(name), (*place, name)
    if raw is None:
        return True  # whether the node may be missing is the schema's to say
    if not isinstance(raw, dict):
        draft.add(at, f"should be a mapping such as {{use: name}}; got {raw!r}")
        return False
    node = _with_config(draft, kind, raw, at)
    if node is None:
        return False
    use = node.pop("use", None)
    if not isinstance(use, str):
        choices = ", ".join(registry.names(kind))
        draft.add((*at, "use"), f"should name one of: {choices}; got {use!r}")
        return False
    try:
        plugin = registry.find(kind, use)
    except UserError as error:
        draft.add((*at, "use"), str(error))
        return False
    try:
        settings = validate(plugin, node)
    except ValidationError as error:
        for problem in explain(error, plugin, node):
            draft.add((*at, *problem.path), problem.message)
        return False
    except UserError as error:  # from a plug-in's own check
        draft.add(at, str(error))
        return False
    holder[name] = {"use": use, **settings.model_dump(mode="json", by_alias=True)}
    return True


def _with_config(draft: Draft, kind: Kind, raw: dict[str, Any], at: KeyPath) -> dict[str, Any] | None:
    """The node with its config as the base; None if there is no such config."""
    if "config" not in raw:
        return dict(raw)
    own = {key: value for key, value in raw.items() if key != "config"}
    config = raw["config"]
    if not isinstance(config, str):
        draft.add((*at, "config"), f"should be the name of a config; got {config!r}")
        return None
    try:
        path = find_file(config, folder=f"configs/{kind}", suffix=".yaml")
        document: Document = parse(read_text(path), str(path))
    except UserError as error:
        draft.add((*at, "config"), str(error))
        return None
    if not isinstance(document.data, dict):
        draft.add((*at, "config"), f"{path} should hold a mapping of keys to values")
        return None
    for place, line in document.lines.items():
        draft.origins.setdefault((*at, *place), f"{path} line {line}")
    draft.problems.extend(Problem((*at, *problem.path), problem.message) for problem in document.problems)
    return _merge(document.data, own)


def _merge(base: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `base`; mappings merge key by key, everything else replaces."""
    merged = dict(base)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        merged[key] = value
    return merged
