"""Finished runs by name, and their answers as a judge takes them. Loads no model, asks nothing.

The items are built again from the recipe that the run stored; where they are no longer those that were
asked, nothing is judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from gapeval_lab import registry
from gapeval_lab.errors import UserError
from gapeval_lab.items import Direction, Item, PictureFile, Response, items_digest
from gapeval_lab.outcome import ItemRow, Outcome, Phase, PhaseResult

LAST = "last"
NAME = "outcome.json"
SHOWN = 4  # names of runs in a message


@dataclass(frozen=True)
class StoredRun:
    """A finished run with its items.

    Attributes:
        folder: where its record and pictures lie.
        outcome: the record.
        items: those that were asked, in its order.
    """

    folder: Path
    outcome: Outcome
    items: tuple[Item, ...]

    @property
    def phases(self) -> dict[Phase, PhaseResult]:
        """The phases that it has, in order."""
        found = {phase: getattr(self.outcome, phase) for phase in get_args(Phase)}
        return {phase: result for phase, result in found.items() if result is not None}

    def pairs(self, phase: Phase) -> list[tuple[Item, Response]]:
        """Every answer of a phase with its item: directions that were not asked or failed are not there.

        Raises:
            UserError: pictures are missing; all that lack one are counted.
        """
        found: list[tuple[Item, Response]] = []
        lost: list[str] = []
        for item, row in zip(self.items, self.phases[phase].rows, strict=True):
            if row.answer is not None:
                found.append((item, Response(item.id, Direction.UNDERSTANDING, text=row.answer)))
            if row.picture is not None:
                file = self.folder / row.picture
                if not file.is_file():
                    lost.append(row.picture)
                found.append((item, Response(item.id, Direction.GENERATION, picture=PictureFile(file))))
            elif row.generation is not None:
                lost.append(f"of {row.id}")
        if lost:
            raise UserError(
                f"run: {self.outcome.run_id} lacks {len(lost)} of its pictures, such as {lost[0]}; bring "
                "them back, or name a run that kept them (trials of a search keep none)"
            )
        return found


def exactly(ref: str, home: Path) -> Path | None:
    """The folder of the outcome that a word names in full, or a file of another name that holds one.

    Args:
        ref: its folder or outcome.json, another file, its id, or "last".
        home: `mlruns/`.

    Raises:
        UserError: there is no last one.
    """
    place = Path(ref).expanduser()
    if place.is_file() and place.suffix == ".json":
        return place.parent if place.name == NAME else place
    for folder in (place, home / "outcomes" / ref):
        if (folder / NAME).is_file():
            return folder
    if ref != LAST:
        return None
    folders = [path.parent for path in home.glob(f"outcomes/*/{NAME}")]
    if not folders:
        raise UserError(f"run: there is no finished run in {home}; make one with 'gapeval-lab eval'")
    return max(folders, key=lambda folder: ((folder / NAME).stat().st_mtime_ns, folder.name))


def on_disk(ref: str, home: Path) -> Path | None:
    """What `exactly` finds, or the folder of the run whose id alone begins so.

    Raises:
        UserError: several begin so.
    """
    if (place := exactly(ref, home)) is not None:
        return place
    folders = [path.parent for path in home.glob(f"outcomes/*/{NAME}")]
    begun = sorted(folder for folder in folders if folder.name.startswith(ref))
    if len(begun) > 1:
        raise several(ref, [folder.name for folder in begun])
    return begun[0] if begun else None


def several(ref: str, names: Sequence[str]) -> UserError:
    """What is said where a word fits several runs."""
    more = f"the newest of {len(names)}: " if len(names) > SHOWN else ""
    shown = ", ".join(names[-SHOWN:])
    return UserError(f"run: '{ref}' fits {len(names)} runs ({more}{shown}); give the id of one")


def open_run(folder: Path) -> StoredRun:
    """The run with its items, built again.

    Raises:
        UserError: the record cannot be read, or its benchmark now has other items.
    """
    outcome = read_outcome(folder)
    return StoredRun(folder, outcome, _items(outcome, outcome.before.rows))


def read_outcome(folder: Path) -> Outcome:
    """The record alone, of a folder or a file; it needs no benchmark.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Outcome.load(folder)
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        file = folder / NAME if folder.is_dir() else folder
        raise UserError(f"run: {file} cannot be read ({reason}); name another run") from None


def _items(outcome: Outcome, rows: list[ItemRow]) -> tuple[Item, ...]:
    node: Mapping[str, Any] = outcome.recipe.get("benchmark") or {}
    settings = {key: value for key, value in node.items() if key != "use"}
    known = {
        item.id: item
        for item in registry.build("benchmarks", str(node.get("use")), settings=settings).items()
    }
    missing = [row.id for row in rows if row.id not in known]
    items = tuple(known[row.id] for row in rows if row.id in known)
    if missing or items_digest(items) != outcome.data_hash:
        what = f"{missing[0]} is gone" if missing else "their content differs"
        raise UserError(
            f"run: the items of {outcome.run_id} are no longer those of its benchmark ({what}); run its "
            "recipe again, or bring the old data back"
        )
    return items
