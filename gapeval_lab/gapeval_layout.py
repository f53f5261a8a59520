"""GapEval's published folder layout: where an item's prompts, pictures and models' answers lie.

    <root>/data_<N>/prompt.json         the item's keys
    <root>/data_<N>/image/, ref/        the problem's picture, the reference picture
    <root>/data_<N>/<model>/            text.json and pictures: what a model answered

Reads and names; judges nothing, and knows neither benchmarks nor models. A root that `gapeval-lab
export` wrote for another benchmark has `INDEX` beside its items: which item each folder is, and which
pictures belong to which of its prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from gapeval_lab.errors import UserError
from gapeval_lab.items import Direction, PictureFile, Prompt

SUFFIXES = (".png", ".jpg", ".jpeg")
PROBLEM_FOLDERS = ("image", "inage")  # the second is a misspelling that is published so
REFERENCE_FOLDER = "ref"
NO_MODELS = frozenset({*PROBLEM_FOLDERS, REFERENCE_FOLDER, "lumoo"})
PROMPT_FILE, TEXT_FILE = "prompt.json", "text.json"
INDEX = "gapeval_lab_index.json"
SHOWN = 100
"""Flaws that one message lists; further ones are counted."""

_ITEM = re.compile(r"data_(\d+)")


@dataclass(frozen=True)
class Kind:
    """What items of one kind are made of.

    Attributes:
        name: what judges choose their instructions by.
        shown: whether prompts hold the problem's picture. None: if there is one.
        reference: whether a reference picture is needed.
        falls_back: whether the reference may lie where problem pictures do.
        told: whether a reference text is needed.
        choices: whether the answer is an option's letter.
    """

    name: str
    shown: bool | None
    reference: bool
    falls_back: bool
    told: bool = True
    choices: bool = False


MULTI_HOP = Kind("multi_hop", shown=False, reference=True, falls_back=True)
PHYSICS = Kind("physics", shown=True, reference=True, falls_back=True)
RULE = Kind("rule_based", shown=True, reference=True, falls_back=False)
COUNTING = Kind("counting", shown=True, reference=True, falls_back=True)
DRAW = Kind("draw", shown=True, reference=True, falls_back=False, told=False)
PUZZLE = Kind("puzzle", shown=True, reference=True, falls_back=False, choices=True)
CHOICE = Kind("choice", shown=True, reference=False, falls_back=False, choices=True)
KNOWLEDGE = Kind("knowledge", shown=None, reference=False, falls_back=False)
OTHER = Kind("other", shown=None, reference=False, falls_back=False)

_BY_CATEGORY = {
    "multi hop": MULTI_HOP,
    "physics": PHYSICS,
    "rule based": RULE,
    "counting": COUNTING,
    "world knowledge": KNOWLEDGE,
    **dict.fromkeys(("animal", "cartoon", "celebrity", "landmark"), KNOWLEDGE),
}
_REASONING = {"draw": DRAW, "puzzle": PUZZLE, **dict.fromkeys(("mmlu", "mmmu", "mmlu/mmmu"), CHOICE)}


def plain(name: str) -> str:
    """A category's name for comparisons: lower case, with single spaces for `_` and `-`."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def kind_of(category: str, subcategory: str) -> Kind | None:
    """The kind of a published category; None for a kind of reasoning that is not known."""
    if plain(category) == "reasoning":
        return _REASONING.get(plain(subcategory))
    return _BY_CATEGORY.get(plain(category), OTHER)


@dataclass(frozen=True)
class Published:
    """One item as it is published.

    Attributes:
        id: name of its folder, or of its row.
        category, subcategory: as published.
        understand, generate: texts of the two prompts.
        problem: the key `problem`, or nothing.
        reference: the reference text, joined; of counting a JSON text.
        shown: the problem's picture; None for those of Multi Hop, which ask without one.
        expected: the reference picture.
        flaws: what is wrong with it; such an item must not be asked.
    """

    id: str
    category: str = ""
    subcategory: str = ""
    understand: str = ""
    generate: str = ""
    problem: str = ""
    reference: str = ""
    shown: PictureFile | None = None
    expected: PictureFile | None = None
    flaws: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What it is made of."""
        return kind_of(self.category, self.subcategory) or OTHER

    def prompt(self, direction: Direction) -> Prompt:
        """What a model is asked; the problem's picture goes with both prompts."""
        told = direction is Direction.UNDERSTANDING
        pictures = () if self.shown is None else (self.shown,)
        return Prompt(self.understand if told else self.generate, pictures)


@dataclass(frozen=True)
class Index:
    """Of a root that was written for another benchmark: folder -> item id, and pictures per prompt."""

    ids: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    def prompt(self, folder: Path, published: Published, direction: Direction) -> Prompt:
        """The prompt of an item, with exactly the pictures that it had."""
        own = self.pictures.get(folder.name)
        if own is None:
            return published.prompt(direction)
        shown = tuple(PictureFile(folder / name) for name in own[direction])
        return Prompt(published.prompt(direction).text, shown)

    def text(self) -> str:
        """As the file `INDEX` holds it."""
        return json.dumps({"ids": dict(self.ids), "pictures": dict(self.pictures)}, indent=1)


def read_index(root: Path) -> Index:
    """The root's index; an empty one where there is none.

    Raises:
        UserError: it cannot be read.
    """
    file = root / INDEX
    if not file.is_file():
        return Index()
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        pictures = {
            str(name): {direction.value: [str(one) for one in lists[direction]] for direction in Direction}
            for name, lists in data["pictures"].items()
        }
        return Index({str(name): str(identity) for name, identity in data["ids"].items()}, pictures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"root: {file} cannot be read ({type(error).__name__}: {error}); export the run again"
        ) from None


def item_folders(root: Path) -> list[Path]:
    """The folders data_<N>, by number.

    Raises:
        UserError: there is no such folder, or it has none.
    """
    if not root.is_dir():
        raise UserError(f"root: {root} is no folder; give the folder that holds data_1, data_2, ...")
    found = [(match, path) for path in root.iterdir() if (match := _ITEM.fullmatch(path.name))]
    folders = sorted((int(match[1]), path.name) for match, path in found if path.is_dir())
    if not folders:
        raise UserError(f"root: {root} holds no folder data_<number>; give the folder that holds data_1, ...")
    return [root / name for _, name in folders]


def is_item(name: str) -> bool:
    """Whether an id may be the name of an item's folder."""
    return _ITEM.fullmatch(name) is not None


def is_model(name: str) -> bool:
    """Whether a folder inside an item is a model's: by the rules of the authors' scripts."""
    if name.startswith(".") or name in NO_MODELS:
        return False
    return not name.startswith("output_") or name.endswith("1")


def models_in(folders: Iterable[Path]) -> list[str]:
    """Names of all models that answered anything, sorted."""
    return sorted(
        {
            entry.name
            for folder in folders
            for entry in folder.iterdir()
            if entry.is_dir() and is_model(entry.name)
        }
    )


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def is_there(path: Path) -> bool:
    """Whether a file is there; no for what can be no file's name, such as a picture's own bytes as text."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def picture_flaw(path: Path) -> str:
    """What is wrong with a picture's file; nothing for a sound one."""
    try:
        with Image.open(path) as image:
            if (
                image.format == "JPEG"
            ):  # `verify` does not see that a JPEG is cut short; reading it small does
                image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
                image.load()
            else:
                image.verify()
    except Exception as error:  # Pillow's readers raise what they like for damaged files
        return f"the picture {path} cannot be read ({type(error).__name__}: {error})"
    return ""


def read_item(folder: Path, *, check_pictures: bool = True) -> Published:
    """One item of the layout. What is wrong with it stands in `flaws`; nothing is raised."""
    keys = _read_keys(folder / PROMPT_FILE)
    if isinstance(keys, str):
        return Published(folder.name, flaws=(keys,))
    kind = kind_of(str(keys.get("category", "")), str(keys.get("subcategory") or ""))
    shown = _first(folder, PROBLEM_FOLDERS)
    places = (REFERENCE_FOLDER, *PROBLEM_FOLDERS) if kind and kind.falls_back else (REFERENCE_FOLDER,)
    expected = _first(folder, places)
    if kind is PHYSICS:
        shown = shown or _named(folder, keys.get("img"))
        if not _first(folder, (REFERENCE_FOLDER,)):  # the picture that is named goes before the problem's own
            expected = _named(folder, keys.get("expect_image")) or expected or shown
    return published(folder.name, keys, shown=shown, expected=expected, check_pictures=check_pictures)


def published(
    identity: str,
    keys: Mapping[str, Any],
    *,
    shown: Path | None,
    expected: Path | None,
    check_pictures: bool = True,
) -> Published:
    """An item of its keys and pictures, with everything that is wrong with it.

    Args:
        identity: the item's id.
        keys: as prompt.json has them.
        shown: the problem's picture.
        expected: the reference picture.
        check_pictures: whether the pictures are read, to see that they can be.
    """
    flaws: list[str] = []

    def text(name: str, *, needed: bool = False) -> str:
        value = keys.get(name)
        if value is not None and not isinstance(value, str):
            flaws.append(f"{name}: should be a text; got {json.dumps(value, default=str)[:60]}")
            return ""
        if needed and not (value or "").strip():
            flaws.append(f"{name}: missing or empty")
        return value or ""

    category, subcategory = text("category", needed=True), text("subcategory")
    problem = text("problem")
    asked = text("und_prompt")
    understand = asked if asked.strip() else problem
    if not understand.strip():
        flaws.append("und_prompt: missing or empty, and so is problem")
    generate = text("gen_prompt", needed=True)
    kind = kind_of(category, subcategory)
    if kind is None:
        known = ", ".join(_REASONING)
        flaws.append(f"subcategory: '{subcategory}' is no known kind of reasoning (there are: {known})")
    reference = _reference(keys.get("reference"), kind or OTHER, flaws)
    if kind and kind.shown and shown is None:
        flaws.append("no problem picture (in image/)")
    if kind and kind.reference and expected is None:
        flaws.append(f"no reference picture (in ref/{' or image/' if kind.falls_back else ''})")
    if check_pictures:
        paths = [path for path in dict.fromkeys((shown, expected)) if path]
        flaws += [flaw for path in paths if (flaw := picture_flaw(path))]
    return Published(
        *(identity, category, subcategory, understand, generate, problem, reference),
        shown=None if shown is None or (kind and kind.shown is False) else PictureFile(shown),
        expected=None if expected is None else PictureFile(expected),
        flaws=tuple(flaws),
    )


def counting_flaw(reference: str) -> str:
    """What is wrong with the reference of an item of counting; nothing if it can be used."""
    try:
        data = json.loads(reference)
    except ValueError as error:
        return f"reference: of counting should be JSON; it is not ({error})"
    if not isinstance(data, dict):
        return "reference: of counting should be a JSON object with objects and number"
    missing = [name for name in ("objects", "number") if data.get(name) in (None, "", [])]
    return f"reference: lacks {', '.join(missing)}" if missing else ""


def all_flaws(root: object, flawed: Mapping[str, Sequence[str]], *, total: int) -> UserError:
    """One message with every flaw of every flawed item."""
    lines = [f"{identity}: {flaw}" for identity, flaws in flawed.items() for flaw in flaws]
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    head = (
        f"{root}: {len(flawed)} of {total} items cannot be used; mend them, or leave them out (flawed: skip)"
    )
    return UserError("\n  ".join([head, *lines[:SHOWN], *more]))


def _read_keys(file: Path) -> dict[str, Any] | str:
    """The item's keys, or what is wrong with the file."""
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return f"no {file.name}"
    except (OSError, ValueError, RecursionError) as error:
        return f"{file.name} cannot be read ({type(error).__name__}: {error})"
    if isinstance(data, list) and data:  # published in both forms
        data = data[0]
    return data if isinstance(data, dict) else f"{file.name} holds no object, nor a list that begins with one"


def _reference(value: Any, kind: Kind, flaws: list[str]) -> str:
    """The reference text: a text, a list of texts joined by newlines, or (of counting) an object."""
    if kind is COUNTING and isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if value is not None and not isinstance(value, str):
        flaws.append(
            f"reference: should be a text or a list of texts; got {json.dumps(value, default=str)[:60]}"
        )
        return ""
    text = value or ""
    if kind.told and not text.strip():
        flaws.append("reference: missing or empty")
    elif kind is COUNTING and (flaw := counting_flaw(text)):
        flaws.append(flaw)
    return text


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    """The first picture of the first of these folders that has one."""
    return next((found[0] for name in names if (found := pictures_in(folder / name))), None)


def _named(folder: Path, value: Any) -> Path | None:
    """A picture that a key names, relative to the item or to the root."""
    name = value[0] if isinstance(value, list) and value else value
    if not isinstance(name, str) or not name.strip():
        return None
    places = (folder / name, folder.parent / name)
    return next((path for path in places if is_there(path)), None)
