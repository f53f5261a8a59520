"""Which recipes there are and what they say of themselves, read from their YAML alone."""

from __future__ import annotations

from dataclasses import dataclass

from gapeval_lab.errors import UserError
from gapeval_lab.recipe import KINDS, NodeField
from gapeval_lab.shipped import find_file, names_in, read_text
from gapeval_lab.yaml_file import parse


@dataclass(frozen=True)
class Summary:
    """What a list of recipes shows, read from the YAML alone; nothing is validated."""

    name: str
    about: str
    source: str
    uses: dict[NodeField, str]


def available() -> list[str]:
    """Names of the recipes in ./recipes and of the packaged ones."""
    return names_in("recipes", suffix=".yaml")


def is_recipe(name_or_path: str) -> bool:
    """Whether a recipe is found by that word, valid or not."""
    try:
        find_file(name_or_path, folder="recipes", suffix=".yaml")
    except UserError:
        return False
    return True


def describe(name_or_path: str) -> Summary:
    """What a recipe says of itself. Imports no plug-in.

    Raises:
        UserError: not found, or not YAML.
    """
    path = find_file(name_or_path, folder="recipes", suffix=".yaml")
    data = parse(read_text(path), str(path)).data
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values; this file holds none")
    uses: dict[NodeField, str] = {}
    for name in KINDS:
        node = data.get(name)
        if isinstance(node, dict):
            uses[name] = str(node.get("config") or node.get("use") or "?")
    about = " ".join(str(data.get("about") or "").split())
    return Summary(str(data.get("name") or path.stem), about, str(path), uses)
