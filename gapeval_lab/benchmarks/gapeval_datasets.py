"""GapEval through the `datasets` package: rows by the names of prompt.json's keys.

The pictures of the rows are written once, under the hash of their content, so that items can hold files.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from gapeval_lab.errors import UserError
from gapeval_lab.files import write_bytes
from gapeval_lab.gapeval_layout import Published, is_there, published

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "category": ("category",),
    "subcategory": ("subcategory",),
    "und_prompt": ("und_prompt", "problem"),
    "gen_prompt": ("gen_prompt",),
    "reference": ("reference",),
    "img": ("img", "image"),
    "expect_image": ("expect_image", "ref"),
}
"""What is read, by prompt.json's key -> the columns that may hold it."""

_SUFFIX = {"PNG": ".png", "JPEG": ".jpg"}


def read_dataset(name: str, *, split: str | None, pictures: str | None) -> list[Published]:
    """All rows, in order; ids are `row_0`, `row_1`, ...

    Args:
        name: a folder written by `save_to_disk`, any other folder that `datasets` reads, or a hub id.
        split: of the dataset; None where it has one only.
        pictures: folder for the rows' pictures; None: the cache.

    Raises:
        UserError: the package is missing, the dataset cannot be read, or it lacks columns.
    """
    rows = _load(name, split)
    have = list(rows.column_names)
    missing = [" or ".join(names) for names in COLUMNS.values() if not set(names) & set(have)]
    if missing:
        raise UserError(
            f"dataset: {name} lacks the columns {', '.join(missing)} (it has {', '.join(have)}); rename its "
            "columns to the keys of prompt.json"
        )
    place = Path(pictures).expanduser() if pictures else _cache() / "gapeval_pictures"
    return [_row(f"row_{number}", row, base=Path(name), place=place) for number, row in enumerate(rows)]


def _load(name: str, split: str | None) -> Any:
    """The rows of one split, pictures undecoded."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            "dataset: needs the package 'datasets'; install it with: pip install 'gapeval_lab[datasets]', "
            "or give root, the folder of the published layout"
        ) from None
    saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the package raises errors of many libraries
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"dataset: {name} cannot be read ({type(error).__name__}: {first}); give a folder written by "
            "save_to_disk, or a hub id that can be reached"
        ) from None
    if isinstance(found, Mapping):
        chosen = split or (next(iter(found)) if len(found) == 1 else None)
        if chosen not in found:
            raise UserError(f"split: should be one of {', '.join(map(str, found))} of {name}; got {split}")
        found = found[chosen]
    elif split is not None and str(found.split) != split:
        raise UserError(f"split: {name} holds one split, {found.split}; got {split}; leave it out")
    for column, feature in found.features.items():
        if isinstance(feature, datasets.Image):
            found = found.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            found = found.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return found


def _row(identity: str, row: Mapping[str, Any], *, base: Path, place: Path) -> Published:
    keys = {
        name: value for name, value in row.items() if name not in COLUMNS["img"] + COLUMNS["expect_image"]
    }
    flaws: list[str] = []
    shown, expected = (
        _picture(row, COLUMNS[name], base=base, place=place, flaws=flaws) for name in ("img", "expect_image")
    )
    found = published(identity, keys, shown=shown, expected=expected)
    return Published(**{**vars(found), "flaws": (*found.flaws, *flaws)}) if flaws else found


def _picture(
    row: Mapping[str, Any], names: Sequence[str], *, base: Path, place: Path, flaws: list[str]
) -> Path | None:
    """The row's picture as a file: the first one of the first column that has any."""
    for name in names:
        value = row.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, str) and value:
            value = {"path": value}
        if not isinstance(value, Mapping):
            continue
        data, path = value.get("bytes"), value.get("path")
        if data is None and path:
            file = next((one for one in (base / path, Path(path)) if is_there(one)), None)
            if file is None:
                flaws.append(f"{name}: the picture {str(path)[:100]} is not there")
                return None
            return file
        if data is not None:
            return _kept(bytes(data), place, name, flaws)
    return None


def _kept(data: bytes, place: Path, name: str, flaws: list[str]) -> Path | None:
    """A file with these bytes, written if it is not there whole."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            suffix = _SUFFIX.get(image.format or "", ".img")
    except Exception as error:  # Pillow's readers raise what they like for damaged data
        flaws.append(f"{name}: the picture cannot be read ({type(error).__name__}: {error})")
        return None
    digest = hashlib.sha256(data).hexdigest()
    file = place / digest[:2] / f"{digest}{suffix}"
    if not (file.is_file() and file.stat().st_size == len(data) and file.read_bytes() == data):
        write_bytes(file, data)
    return file


def _cache() -> Path:
    place = os.environ.get("GAPEVAL_LAB_CACHE")
    return Path(place).expanduser() if place else Path.home() / ".cache" / "gapeval_lab"
