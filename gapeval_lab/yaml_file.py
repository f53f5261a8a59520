"""YAML as plain values with the line of every key. Stricter than PyYAML, and with fewer surprises.

Values follow YAML 1.2's core schema: `1e-4` is a number, `no` and `2024-01-01` are texts, `010` is
ten. A key that stands twice is an error. Knows nothing of recipes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from gapeval_lab.errors import UserError
from gapeval_lab.validation import KeyPath, Problem

TAG = "tag:yaml.org,2002:"
BOOLEANS = {"true": True, "false": False}


class _CoreLoader(yaml.SafeLoader):
    """Composes nodes; plain scalars are resolved by YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
):
    _CoreLoader.add_implicit_resolver(TAG + _tag, re.compile(_pattern), _first)


@dataclass(frozen=True)
class Document:
    """A YAML text, read.

    Attributes:
        data: plain values: dict, list, str, int, float, bool, None.
        lines: path of a key or list entry -> its line, counted from 1.
        problems: what is wrong with the text itself, such as keys that stand twice.
    """

    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def parse(text: str, source: str) -> Document:
    """Read one YAML document.

    Args:
        text: the YAML.
        source: what the text is called in messages.

    Raises:
        UserError: it is not YAML, so that nothing else can be said about it.
    """
    try:
        loader = _CoreLoader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        what = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise UserError(f"{source}:{where} not valid YAML: {what}") from None
    document = Document(None)
    data = None if node is None else _plain(node, (), document, ())
    return Document(data, document.lines, document.problems)


def _plain(node: yaml.Node, path: KeyPath, document: Document, above: tuple[yaml.Node, ...]) -> Any:
    """The node as plain values; lines and problems go into the document."""
    if any(node is outer for outer in above):
        document.problems.append(Problem(path, "an alias refers to the mapping or list that holds it"))
        return None
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str):
                document.problems.append(Problem(path, "a key is no text; write plain words as keys"))
                continue
            here = (*path, key)
            line = key_node.start_mark.line + 1
            if key in result:
                first = document.lines[here]
                document.problems.append(
                    Problem(here, f"stands twice (lines {first} and {line}); keep one of them")
                )
                continue
            document.lines[here] = line
            result[key] = _plain(value_node, here, document, (*above, node))
        return result
    if isinstance(node, yaml.SequenceNode):
        for index, entry in enumerate(node.value):
            document.lines[(*path, index)] = entry.start_mark.line + 1
        return [
            _plain(entry, (*path, index), document, (*above, node)) for index, entry in enumerate(node.value)
        ]
    return _scalar(node, path, document)


def _scalar(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    """A scalar's value by its tag."""
    text: str = node.value
    kind = node.tag.removeprefix(TAG)
    try:
        match kind:
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return BOOLEANS[text.lower()]
            case "int":
                return int(text)
            case "float":
                return float(re.sub(r"\.(?=[iInN])", "", text))
    except (KeyError, ValueError):
        document.problems.append(Problem(path, f"{text!r} is not a {kind}; leave out the tag"))
        return None
    document.problems.append(Problem(path, f"the tag {node.tag!r} is not supported; leave it out"))
    return None
