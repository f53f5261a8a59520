"""The table from published categories to the rows of the Gap Score, read from a YAML file.

Knows the table and its hash; nothing of items, pictures or models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from gapeval_lab.errors import UserError
from gapeval_lab.gapeval_layout import plain
from gapeval_lab.shipped import find_file, read_text
from gapeval_lab.yaml_file import parse

DEFAULT = "gapeval_mapping"


@dataclass(frozen=True)
class CategoryMapping:
    """A table as it was read.

    Attributes:
        rows: the rows, in order.
        entries: category, or category/subcategory (both as `plain` writes them) -> row.
        source: the file.
    """

    rows: tuple[str, ...]
    entries: Mapping[str, str]
    source: str

    @property
    def hash(self) -> str:
        """SHA-256 over what the table says (not over comments and spaces)."""
        text = json.dumps([self.rows, sorted(self.entries.items())], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def row(self, category: str, subcategory: str) -> str | None:
        """The row of a published category; None where the table has none."""
        own = self.entries.get(f"{plain(category)}/{plain(subcategory)}")
        return own or self.entries.get(plain(category))


def read_mapping(name: str) -> CategoryMapping:
    """The table of a file: a path, or a name below configs/benchmarks.

    Raises:
        UserError: no such file, or no table `rows` of row -> list of categories, each of them once.
    """
    file = find_file(name, folder="configs/benchmarks", suffix=".yaml")
    document = parse(read_text(file), str(file))
    rows = document.data.get("rows") if isinstance(document.data, dict) else None
    fine = (
        isinstance(rows, dict) and rows and all(isinstance(names, list) and names for names in rows.values())
    )
    if document.problems or not fine or not isinstance(rows, dict):
        said = "".join(f" ({problem.message})" for problem in document.problems[:1])
        raise UserError(f"mapping: {file} should hold rows: {{row: [category, ...]}}{said}")
    entries: dict[str, str] = {}
    for row, names in rows.items():
        for one in names:
            category, slash, subcategory = str(one).partition("/")
            key = f"{plain(category)}{slash}{plain(subcategory)}"
            if key in entries:
                raise UserError(f"mapping: {file} names '{one}' twice; leave one of them")
            entries[key] = str(row)
    return CategoryMapping(tuple(map(str, rows)), entries, str(file))
