"""The files that a recipe's facts come from: read once, kept beside the outcome, found there again.

So a run can be repeated after its fact file was changed or is gone. Knows recipes and files, no plug-in.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gapeval_lab.errors import UserError
from gapeval_lab.files import write_bytes
from gapeval_lab.lessons import CAPTIONS
from gapeval_lab.outcome import INPUTS, Input, Outcome
from gapeval_lab.recipe import FactsNode
from gapeval_lab.shipped import find_file

LARGEST = 64 << 20
"""Bytes of a file or folder up to which a copy is kept; of larger ones, the hash alone."""


@dataclass(frozen=True)
class Source:
    """A file or folder, read.

    Attributes:
        name: as the recipe names it.
        sha256: see `outcome.Input`.
        content: path below the copy's place -> bytes; empty where no copy is to be kept.
    """

    name: str
    sha256: str
    content: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def placed(node: FactsNode, places: Mapping[str, Path]) -> FactsNode:
    """The facts with their files where they lie now.

    Args:
        node: facts of a recipe.
        places: name in the recipe -> file or folder; what is not in it lies where its name says.
    """
    named = {"file": node.file, "texts": node.texts, "pictures": node.pictures}
    moved = {key: str(places[name]) for key, name in named.items() if name is not None and name in places}
    return node.model_copy(update=moved)


def sources_of(nodes: Sequence[FactsNode], places: Mapping[str, Path]) -> tuple[Source, ...]:
    """What these facts were read from, each file once.

    Args:
        nodes: the facts of all interventions.
        places: see `placed`.

    Raises:
        UserError: a file is gone.
    """
    named = {
        name: name == node.pictures
        for node in nodes
        for name in (node.file, node.texts, node.pictures)
        if name is not None
    }
    return tuple(source_of(name, pictures=folder, place=places.get(name)) for name, folder in named.items())


def source_of(name: str, *, pictures: bool = False, place: Path | None = None) -> Source:
    """One file that a recipe names, or a folder of pictures with captions, read.

    Args:
        name: as the recipe names it.
        pictures: whether it is such a folder.
        place: where it lies, if not there.

    Raises:
        UserError: it is gone.
    """
    if not pictures:
        return _source(name, {Path(name).name: place or find_file(name, folder="recipes")})
    folder = place or Path(name)
    within = f"{Path(name).name or 'pictures'}/"
    return _source(
        name, {within + one: folder / one for one in dict.fromkeys([CAPTIONS, *_captioned(folder)])}
    )


def keep(sources: Sequence[Source], folder: Path | None) -> list[Input]:
    """Write the copies below `folder`/inputs, each one whole or not at all; None writes none.

    Raises:
        UserError: the place cannot be written.
    """
    kept = []
    for number, source in enumerate(sources, start=1):
        file = None
        if folder is not None and source.content:
            place = f"{INPUTS}/{number}"
            for name, data in source.content.items():
                write_bytes(folder / place / name, data)
            file = f"{place}/{next(iter(source.content)).split('/')[0]}"
        kept.append(Input(name=source.name, sha256=source.sha256, file=file))
    return kept


def copies(outcome: Outcome, folder: Path) -> dict[str, Path]:
    """Name in the recipe -> the copy that the run kept, for every copy that is there."""
    found = {one.name: folder / one.file for one in outcome.inputs if one.file}
    return {name: place for name, place in found.items() if place.exists()}


def _source(name: str, files: Mapping[str, Path]) -> Source:
    try:
        content = {path: file.read_bytes() for path, file in files.items()}
    except OSError as error:
        raise UserError(
            f"facts: {error.filename} cannot be read ({error.strerror}); bring it back, or name another file"
        ) from None
    if len(content) == 1:
        digest = hashlib.sha256(*content.values()).hexdigest()
    else:
        hashes = {path: hashlib.sha256(data).hexdigest() for path, data in content.items()}
        digest = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    large = sum(map(len, content.values())) > LARGEST
    return Source(name, digest, {} if large else content)


def _captioned(folder: Path) -> list[str]:
    """The pictures below a folder that its captions name; what is wrong with them is told elsewhere."""
    try:
        rows = (folder / CAPTIONS).read_text(encoding="utf-8").splitlines()
        names = [str(json.loads(row)["file_name"]) for row in rows if row.strip()]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    root = folder.resolve()
    inside = [name for name in names if (folder / name).resolve().is_relative_to(root)]
    return [name for name in inside if not Path(name).is_absolute() and ".." not in Path(name).parts]
