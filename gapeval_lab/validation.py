"""Says in our words what is wrong with settings that people wrote: path, value, closest known name.

Knows pydantic's errors and nothing of recipes, facts or files.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ValidationError

KeyPath = tuple[str | int, ...]

Settings = TypeVar("Settings", bound=BaseModel)

LONGEST_VALUE = 80
"""Characters of a wrong value that a message repeats."""


WORDS = (
    (r"^(Input|String|List|Tuple|Set|Dictionary) ", ""),
    (r"\ban object\b|\ba valid dictionary\b", "a mapping"),
    (r"\ba valid array\b", "a list"),
    (r" after validation\b", ""),
    (r"^Unable to extract tag using discriminator '(\w+)'", r"'\1' is missing; it says what this is"),
    (r"^tag (.*) found using '(\w+)' does not match any of the expected tags:", r"\2: \1 is none of"),
)
"""What pydantic calls the things of JSON and Python, and what they are called in YAML."""


class Problem(NamedTuple):
    """One mistake: where, and what to do about it."""

    path: KeyPath
    message: str


def dotted(path: KeyPath) -> str:
    """`("intervention", "layers", 0)` as `intervention.layers.0`."""
    return ".".join(str(part) for part in path)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'layer'?` if a known word is close, else nothing: the end of a message."""
    close = difflib.get_close_matches(word, sorted(set(known)), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def validate(model: type[Settings], data: Mapping[str, Any]) -> Settings:
    """The settings as a `model`, types taken strictly: a text is no number, 1 is no true.

    Goes through JSON because YAML has lists where a model has tuples, and texts where it has paths
    or enumerations: strict validation accepts these from JSON only.

    Raises:
        ValidationError: see `explain`.
    """
    return model.model_validate_json(json.dumps(data), strict=True)


def explain(error: ValidationError, model: type[BaseModel], data: Any) -> list[Problem]:
    """Every mistake that pydantic found in `data`, one per path.

    Args:
        error: what validation of `data` raised.
        model: the class that it was validated against; the source of suggestions.
        data: the plain values that were validated.
    """
    found: dict[KeyPath, str] = {}
    for entry in error.errors():
        path = _real_path(entry["loc"], data, missing=entry["type"] == "missing")
        message = _message(entry, path, model)
        if path in found and message not in found[path]:
            message = f"{found[path]}, or {message}"  # the branches of a union fail one by one
        found[path] = message
    return [Problem(path, message) for path, message in found.items()]


def _real_path(loc: Sequence[str | int], data: Any, *, missing: bool) -> KeyPath:
    """`loc` without the names of union branches that pydantic puts between keys."""
    path: list[str | int] = []
    here = data
    for part in loc:
        inside = (isinstance(here, Mapping) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        )
        if inside:
            here = here[part]
            path.append(part)
    if missing and loc:
        path.append(loc[-1])
    return tuple(path)


def _message(entry: Any, path: KeyPath, model: type[BaseModel]) -> str:
    """One pydantic error in our words."""
    kind = entry["type"]
    if kind == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        hint = did_you_mean(str(path[-1]), known)
        return "unknown key" + (hint or (f"; known here: {', '.join(sorted(known))}" if known else ""))
    if kind == "missing":
        return "missing; this key must be given"
    if kind in ("value_error", "assertion_error"):
        return str(entry["ctx"]["error"])
    text = str(entry["msg"])
    for theirs, ours in WORDS:
        text = re.sub(theirs, ours, text)
    value = entry["input"]
    if isinstance(value, Mapping):
        return text
    shown = repr(value)
    return f"{text}; got {shown if len(shown) <= LONGEST_VALUE else shown[:LONGEST_VALUE] + '...'}"


def _keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that are known at a path below `model`; none where its type cannot be followed."""
    models = [model]
    for part in path:
        if isinstance(part, str):  # a list's index does not change which models may stand there
            models = [
                inner
                for outer in models
                for name, field in outer.model_fields.items()
                if part in (name, field.alias)
                for inner in _models_in(field.annotation)
            ]
    return [field.alias or name for found in models for name, field in found.model_fields.items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models named in a type such as `list[Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
