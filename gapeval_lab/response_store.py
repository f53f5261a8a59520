"""Responses on disk: several processes may write into one store, and each reads what all have written.

    <folder>/responses.jsonl          the lines of whoever wrote first
    <folder>/responses.<word>.jsonl   those of each further writer; a file has one writer, for ever
    <folder>/pictures/<item>.png      shared: whoever draws an item draws the same picture

Knows items and responses, and nothing of models: what a store's responses depend on beside their items
is in the name of its folder.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from gapeval_lab.errors import UserError
from gapeval_lab.items import Direction, Item, PictureFile, Response, png_bytes

if TYPE_CHECKING:
    from gapeval_lab.evaluate import Helpers

FIRST = "responses.jsonl"


def shared_responses(home: Path) -> Path:
    """Where the stores lie that runs share, named by their keys.

    Args:
        home: `mlruns/`.
    """
    return home / "cache" / "responses"


@dataclass(frozen=True)
class _Row:
    """A stored response: the folder that its picture lies below, and its line."""

    folder: Path
    line: dict[str, Any]


class ResponseStore:
    """Responses on disk: one JSON line each, pictures beside them. Survives a kill at any moment.

    A line is written after its picture and only whole lines count; a response is found again by its
    item's content and its direction, so a changed item is asked anew. No file is ever written by two
    processes, so any number of them may fill one store, without locks, in a folder that machines share.

    Attributes:
        folder: where it lies.
        helpers: others who answer into this store, see `evaluate.Helpers`; None: nobody else.
    """

    def __init__(self, folder: Path, *, also: Path | None = None) -> None:
        """Open or create the store.

        Args:
            folder: named after a `store_key`.
            also: another store of the same key, which is read only; it need not exist.

        Raises:
            UserError: the folder cannot be written.
        """
        self.folder = folder
        self.helpers: Helpers | None = None
        self._also = also
        self._mine: Path | None = None
        self._read_to: dict[Path, int] = {}
        self._rows: dict[str, _Row] = {}
        try:
            (folder / "pictures").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None
        self.refresh()

    def refresh(self) -> None:
        """Read what others have written since the last look."""
        for folder in dict.fromkeys((self._also or self.folder, self.folder)):
            for file in sorted(folder.glob("responses*.jsonl")):
                if file != self._mine:
                    self._read(folder, file)

    def _read(self, folder: Path, file: Path) -> None:
        start = self._read_to.get(file, 0)
        with file.open("rb") as stream:
            stream.seek(start)
            # What stands after the last line's end is being written just now, or was cut by a kill.
            whole = stream.read().rpartition(b"\n")[0]
        if not whole:
            return
        self._read_to[file] = start + len(whole) + 1
        for text in whole.splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # a line that a crash of the machine left without its content
                continue
            self._rows[line["key"]] = _Row(folder, line)

    @staticmethod
    def _key(item: Item, direction: Direction) -> str:
        return f"{item.digest}:{direction}"

    def get(self, item: Item, direction: Direction) -> Response | None:
        """The stored response, or None. A picture that cannot be read counts as none."""
        row = self._rows.get(self._key(item, direction))
        if row is None:
            return None
        if row.line["picture"] is None:
            return Response(item.id, direction, text=row.line["text"])
        file = row.folder / row.line["picture"]
        try:
            with Image.open(file) as image:
                image.verify()
        except (OSError, SyntaxError):  # the latter is what Pillow raises for a PNG that is cut short
            return None
        return Response(item.id, direction, picture=PictureFile(file))

    def put(self, pairs: Iterable[tuple[Item, Response]]) -> list[Response]:
        """Append responses, flushed to disk when this returns. Errors are not kept: they are retried.

        Returns:
            the responses, with their pictures on disk instead of in memory.

        Raises:
            UserError: the folder cannot be written.
        """
        rows, kept = [], []
        try:
            mine = self._own_file()
            for item, response in pairs:
                kept.append(response)
                if response.error is not None:
                    continue
                key, picture = self._key(item, response.direction), None
                image = response.image
                if image is not None:
                    picture = f"pictures/{item.digest[:32]}.png"
                    # Renamed: another writer of the same picture, or its reader, never sees a half.
                    half = self.folder / "pictures" / f".{mine.stem}"
                    half.write_bytes(png_bytes(image))
                    half.replace(self.folder / picture)
                    kept[-1] = replace(response, picture=PictureFile(self.folder / picture))
                rows.append({"key": key, "id": item.id, "text": response.text, "picture": picture})
                self._rows[key] = _Row(self.folder, rows[-1])
            with mine.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row) + "\n" for row in rows)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        return kept

    def _own_file(self) -> Path:
        """The file that this writer alone has, made at its first use: creating it is what claims it."""
        name = FIRST
        while self._mine is None:
            try:
                (self.folder / name).open("x").close()
            except FileExistsError:
                name = f"responses.{secrets.token_hex(6)}.jsonl"
            else:
                self._mine = self.folder / name
        return self._mine


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"store: cannot write {folder} ({error.strerror}); free some space, or choose another folder with "
        "--out or GAPEVAL_LAB_HOME"
    )
