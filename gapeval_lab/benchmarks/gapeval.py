"""GapEval as published, from its folders or through the `datasets` package.

    benchmark: {use: gapeval, root: GapEval}
    benchmark: {use: gapeval, dataset: FOLDER_OR_HUB_ID, split: test}

Items hold pictures as files, so that thousands of them take little memory. What the authors' judges are
given stands in `target`, under the key "gapeval". Knows no models and no judges.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from gapeval_lab.benchmarks.gapeval_mapping import DEFAULT, CategoryMapping, read_mapping
from gapeval_lab.benchmarks.options import options_in
from gapeval_lab.benchmarks.published import PublishedData
from gapeval_lab.errors import UserError
from gapeval_lab.gapeval_layout import COUNTING, Published, all_flaws, item_folders, read_item
from gapeval_lab.items import Direction, Item, items_digest


class GapEval(PublishedData):
    """Where the user's copy is, and how it is read.

    Attributes:
        root: the folder that holds data_1, data_2, ...
        dataset: instead: a folder written by `save_to_disk`, or a hub id (the only one that uses the
            network).
        split: of the dataset; needed where it has several.
        mapping: the table from published categories to rows: a path, or a name below
            configs/benchmarks.
        mapping_hash: what the table says, as a hash. Filled in; where it is given, another table is
            refused.
        flawed: whether items that cannot be used are an error or are left out.
        pictures: where pictures of a dataset are written, once; None: below `$GAPEVAL_LAB_CACHE` or
            ~/.cache/gapeval_lab.
    """

    root: str | None = None
    dataset: str | None = None
    split: str | None = None
    mapping: str = DEFAULT
    mapping_hash: str | None = None
    pictures: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _pin_mapping(cls, data: Any) -> Any:
        name = data.get("mapping", DEFAULT) if isinstance(data, dict) else None
        if not isinstance(name, str):
            return data
        found, pinned = read_mapping(name).hash, data.get("mapping_hash")
        if pinned not in (None, found):
            raise UserError(
                f"mapping_hash: {pinned} was asked for, but the table '{name}' has {found}; take the table "
                "that it was, or leave mapping_hash out"
            )
        return {**data, "mapping_hash": found}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.root is None) == (self.dataset is None):
            raise ValueError(
                "root or dataset: give one of them, the folder of the published layout or a dataset"
            )
        if self.root is not None and (self.split is not None or self.pictures is not None):
            raise ValueError("split and pictures: belong to a dataset; leave them out beside root")
        return self

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return "gapeval"

    @property
    def version(self) -> str:
        """Of this reading of the published set; another table of rows is another version."""
        return f"1.0+{(self.mapping_hash or '')[:8]}"

    @property
    def categories(self) -> tuple[str, ...]:
        """The rows of the table, in its order."""
        return self._table.rows

    def content_hash(self) -> str:
        """SHA-256 over every item's content and the table of rows."""
        parts = f"{items_digest(self._items)}:{self._table.hash}"
        return hashlib.sha256(parts.encode()).hexdigest()

    @cached_property
    def _table(self) -> CategoryMapping:
        return read_mapping(self.mapping)

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        source = str(self.root or self.dataset)
        read = [to_item(one, self._table) for one in self._published()]
        flawed = {one[0]: one[1] for one in read if not isinstance(one, Item)}
        items = tuple(one for one in read if isinstance(one, Item))
        if flawed and (self.flawed == "refuse" or not items):
            raise all_flaws(source, flawed, total=len(read))
        return items

    def _published(self) -> list[Published]:
        if self.root is not None:
            return [read_item(folder) for folder in item_folders(Path(self.root).expanduser())]
        from gapeval_lab.benchmarks.gapeval_datasets import read_dataset

        return read_dataset(str(self.dataset), split=self.split, pictures=self.pictures)


def to_item(published: Published, table: CategoryMapping) -> Item | tuple[str, tuple[str, ...]]:
    """The item, or its id and what is wrong with it."""
    category, subcategory, kind = published.category, published.subcategory, published.kind
    row = table.row(category, subcategory)
    flaws = published.flaws
    if row is None and category:
        named = f"{category}/{subcategory}" if subcategory else category
        flaws += (f"category: '{named}' has no row in {table.source}; add it there",)
    if row is None or flaws:
        return published.id, flaws
    target: dict[str, Any] = {
        "kind": kind.name,
        "category": category,
        "subcategory": subcategory,
        "question": published.understand,
        "problem": published.problem,
        "task": published.generate,
        "reference": published.reference,
    }
    if kind is COUNTING:
        target["counting"] = json.loads(published.reference)
    return Item(
        id=published.id,
        category=row,
        subcategory=f"{category}/{subcategory}" if subcategory else category,
        understand=published.prompt(Direction.UNDERSTANDING),
        generate=published.prompt(Direction.GENERATION),
        # Items of drawing may have no text that is right; an empty one would accept an empty answer.
        accepted=(published.reference or "(see the reference picture)",),
        target={"gapeval": target},
        references=() if published.expected is None else (published.expected,),
        choices=options_in(published.understand) if kind.choices else (),
        tags={"published_category": category, "published_subcategory": subcategory},
    )
