"""A UMM whose answers lie on disk, in GapEval's published layout: made elsewhere, judged here.

    model: {use: replay, root: GapEval, model: bagel}

It is asked like any model: a prompt is looked up among those of the root's items, by text and pictures.
Two items with the same prompt and different answers cannot be told apart so, and are refused. Its
identity is a hash of all that it read, so that answers that were replaced are not taken for the old ones.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from PIL import Image
from pydantic import BaseModel, ConfigDict

from gapeval_lab.errors import UserError
from gapeval_lab.gapeval_layout import (
    TEXT_FILE,
    all_flaws,
    is_model,
    item_folders,
    models_in,
    picture_flaw,
    pictures_in,
    read_index,
    read_item,
)
from gapeval_lab.items import Direction, Example, Prompt, image_digest
from gapeval_lab.validation import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from gapeval_lab.interfaces import Backbone

TEXT, IMAGE = Direction.UNDERSTANDING, Direction.GENERATION


class NoAnswer(LookupError):
    """There is no answer to a prompt: that item is not scored."""


class Replay(BaseModel):
    """Whose answers, and where.

    Attributes:
        root: the folder that holds data_1, data_2, ...
        model: the folder inside each item that holds the answers: text.json and pictures, of which the
            first by name counts.
        flawed: whether answers that cannot be used (unreadable, or to one prompt of several items) are an
            error or are left out, that is, not scored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str
    model: str
    flawed: Literal["refuse", "skip"] = "refuse"

    def load(self) -> LoadedReplay:
        """Read the prompts, and hash the answers; answers themselves are read when they are asked for.

        Raises:
            UserError: no such root or model, or (unless they are skipped) every answer that cannot be used.
        """
        folders = item_folders(Path(self.root).expanduser())
        known = models_in(folders)
        if not is_model(self.model) or self.model not in known:
            raise UserError(
                f"model: '{self.model}' answered nothing in {self.root}{did_you_mean(self.model, known)} "
                f"(there are: {', '.join(known) or 'none'})"
            )
        return LoadedReplay(self, folders)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is remembered of one item: hashes of its prompts, and of its answers (None: there is none)."""

    folder: str
    prompts: dict[Direction, str]
    answers: dict[Direction, str | None]


class LoadedReplay:
    """The answers of one model. Takes a few hundred bytes per item, however large the answers are."""

    def __init__(self, settings: Replay, folders: Sequence[Path]) -> None:
        """See `Replay.load`."""
        self.name = settings.model
        self.root = folders[0].parent
        self._index = read_index(self.root)
        self._kept: list[_Kept] = []
        self._by_digest: dict[tuple[Direction, str], list[int]] = {}
        self._by_text: dict[tuple[Direction, bytes], list[int]] = {}
        self._by_pixels: dict[tuple[Direction, bytes], dict[str, list[int]]] = {}
        flawed = {folder.name: flaws for folder in folders if (flaws := self._read(folder))}
        for (direction, _), places in self._by_digest.items():
            if doubt := self._doubt(places, direction):
                flawed.setdefault(self._kept[places[0]].folder, []).append(doubt)
        if flawed and settings.flawed == "refuse":
            raise all_flaws(f"{settings.root}, model {settings.model}", flawed, total=len(folders))
        self.directions = frozenset(
            direction for direction in Direction if any(one.answers[direction] for one in self._kept)
        )
        if not self.directions:
            raise UserError(f"model: '{self.name}' answered nothing in {settings.root} that can be read")

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        """The texts that were stored; seeds change nothing.

        Raises:
            NoAnswer: to one of the prompts there is none.
        """
        found = [self._find(prompt, TEXT) for prompt in prompts]  # first all, so that a gap costs no reading
        return [self._text(one) for one in found]

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Image.Image]:
        """The pictures that were stored, RGB; seeds change nothing.

        Raises:
            NoAnswer: to one of the prompts there is none.
        """
        found = [self._find(prompt, IMAGE) for prompt in prompts]
        return [self._picture(one) for one in found]

    def loss(self, examples: Sequence[Example], direction: Direction) -> Tensor:
        """Refused: stored answers have no likelihoods."""
        self._refuse("likelihoods")

    def backbone(self) -> Backbone:
        """Refused: there are no weights."""
        self._refuse("weights")

    def settings(self) -> dict[str, Any]:
        """Whose answers; what they are is in `identity`."""
        return {"model": "replay", "name": self.name, "version": 1}

    def identity(self) -> str:
        """SHA-256 over every prompt's and every answer's content, by item."""
        rows = [
            [one.folder, *(one.prompts[d] for d in Direction), *(one.answers[d] for d in Direction)]
            for one in self._kept
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def _read(self, folder: Path) -> list[str]:
        """Remember an item; what is wrong with it, so that it or an answer of its is left out."""
        published = read_item(folder, check_pictures=False)
        if not (published.understand and published.generate):
            return list(published.flaws)
        flaws: list[str] = []
        prompts = {direction: self._index.prompt(folder, published, direction) for direction in Direction}
        answers = {
            TEXT: _text_hash(folder / self.name, flaws),
            IMAGE: _picture_hash(folder / self.name, flaws),
        }
        try:
            digests = {direction: prompt.digest for direction, prompt in prompts.items()}
        except OSError as error:
            return [f"the problem picture cannot be read ({error})"]
        place = len(self._kept)
        self._kept.append(_Kept(folder.name, digests, answers))
        for direction, prompt in prompts.items():
            self._by_digest.setdefault((direction, digests[direction]), []).append(place)
            self._by_text.setdefault((direction, _short(prompt.text)), []).append(place)
        return flaws

    def _doubt(self, places: Sequence[int], direction: Direction) -> str:
        """Why these items, which ask the same, cannot be told apart; nothing where they answer the same."""
        answers = {self._kept[place].answers[direction] for place in places}
        if len(answers) == 1:
            return ""
        first = self._kept[places[0]]
        other = next(
            one
            for one in (self._kept[place] for place in places)
            if one.answers[direction] != first.answers[direction]
        )
        return (
            f"{first.folder} and {other.folder} have the same {direction} prompt and different answers, so "
            "that nobody can say which one is asked; make their prompts differ"
        )

    def _find(self, prompt: Prompt, direction: Direction) -> _Kept:
        """The item whose prompt this is: by content, or else by text and the pixels of its pictures."""
        places = self._by_digest.get((direction, prompt.digest)) or self._alike(prompt, direction)
        if not places:
            raise NoAnswer(f"no item of {self.root} has the {direction} prompt {prompt.text[:80]!r}")
        if doubt := self._doubt(places, direction):
            raise NoAnswer(doubt)
        found = self._kept[places[0]]
        if found.answers[direction] is None:
            what = TEXT_FILE if direction is TEXT else "picture"
            raise NoAnswer(f"{found.folder} holds no {what} of {self.name} that can be read")
        return found

    def _alike(self, prompt: Prompt, direction: Direction) -> list[int]:
        """Items with this text and with pictures of these pixels, whatever file format they lie in."""
        key = direction, _short(prompt.text)
        if key not in self._by_pixels:
            table = self._by_pixels[key] = {}
            for place in self._by_text.get(key, ()):
                folder = self.root / self._kept[place].folder
                published = read_item(folder, check_pictures=False)
                own = _pixels(self._index.prompt(folder, published, direction))
                table.setdefault(own, []).append(place)
        return self._by_pixels[key].get(_pixels(prompt), [])

    def _text(self, found: _Kept) -> str:
        text = _output_text(self.root / found.folder / self.name / TEXT_FILE)
        self._verify(found, TEXT, text.encode())
        return text

    def _picture(self, found: _Kept) -> Image.Image:
        data = pictures_in(self.root / found.folder / self.name)[0].read_bytes()
        self._verify(found, IMAGE, data)
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")

    def _verify(self, found: _Kept, direction: Direction, data: bytes) -> None:
        """An answer that is not the one that `identity` speaks of must not be taken for it."""
        if hashlib.sha256(data).hexdigest() != found.answers[direction]:
            raise NoAnswer(f"{found.folder}: the answer changed while it was replayed; run it again")

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(
            f"model: {self.name} is replayed from stored answers and has no {what}; measure it, or take a "
            "model with weights"
        )


def _output_text(file: Path) -> str:
    """The answer of a text.json.

    Raises:
        ValueError: it holds none.
    """
    data = json.loads(file.read_text(encoding="utf-8-sig"))
    text = data.get("output_text") if isinstance(data, dict) else None
    if not isinstance(text, str):
        raise ValueError("it should be an object with the text output_text")
    return text


def _text_hash(folder: Path, flaws: list[str]) -> str | None:
    file = folder / TEXT_FILE
    if not file.is_file():
        return None
    try:
        return hashlib.sha256(_output_text(file).encode()).hexdigest()
    except (OSError, ValueError, RecursionError) as error:
        flaws.append(f"{file} cannot be used ({type(error).__name__}: {error})")
        return None


def _picture_hash(folder: Path, flaws: list[str]) -> str | None:
    found = pictures_in(folder)
    if not found:
        return None
    if flaw := picture_flaw(found[0]):
        flaws.append(flaw)
        return None
    with found[0].open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pixels(prompt: Prompt) -> str:
    """A prompt's pictures as they look: RGB, whatever file they come from."""
    return " ".join(image_digest(image.convert("RGB")) for image in prompt.images)


def _short(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
