"""The deltas of a store, found by path, run or address. Reads heads and records, no numbers.

a run's             <home>/outcomes/<run>/delta.safetensors
of one of several   <home>/outcomes/<run>/stages/<n>/delta.safetensors, called <run>/<n>
composed            <home>/deltas/<address>.safetensors
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gapeval_lab.delta_file import Head, ScaledFile, read_head
from gapeval_lab.errors import UserError
from gapeval_lab.validation import did_you_mean

NAME = "delta.safetensors"
ADDRESS = re.compile(r"[0-9a-f]{4,64}")
SCALED = re.compile(r"(?P<ref>.+)\*(?P<scale>[-+]?[\d.]+(?:[eE][-+]?\d+)?)")


@dataclass(frozen=True)
class Stored:
    """One delta of a store.

    Attributes:
        name: the run's id, `<run>/<n>` for one of its interventions, "" for a composed delta.
        path: its file.
        head: what the file says; None where it cannot be read, `problem` says why.
        recipe, method, direction, facts: of the run; empty where its record says nothing.
        norm: Frobenius norm; None where neither file nor record says it.
        made: when, ISO 8601 in UTC.
    """

    name: str
    path: Path
    head: Head | None
    problem: str
    recipe: str
    method: str
    direction: str
    facts: tuple[str, ...]
    norm: float | None
    made: str


def composed_path(home: Path, address: str) -> Path:
    """Where a composed delta is kept."""
    return home / "deltas" / f"{address}.safetensors"


def stored(home: Path) -> list[Stored]:
    """Every delta of a store, oldest first.

    Args:
        home: `mlruns/`.
    """
    runs = [found for path in home.glob(f"outcomes/*/{NAME}") for found in _of_run(path.parent)]
    composed = [_entry(path, made=_changed(path)) for path in home.glob("deltas/*.safetensors")]
    return sorted(runs + composed, key=lambda entry: (entry.made, entry.name))


def resolve(words: str, home: Path) -> ScaledFile:
    """What `REF` or `REF*0.5` means: a file, a run (its folder or id), `<run>/<n>`, the start of an address.

    Args:
        words: as given.
        home: `mlruns/`.

    Raises:
        UserError: nothing or several deltas of that name.
    """
    scaled = None if Path(words).exists() else SCALED.fullmatch(words)
    ref, scale = (scaled["ref"], _scale(words, scaled["scale"])) if scaled else (words, 1.0)
    return ScaledFile(ref, _find(ref, home), scale)


def _scale(words: str, text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise UserError(f"delta: the scale of '{words}' is no number; write REF*0.5")
    return scale


def _find(ref: str, home: Path) -> Path:
    place = Path(ref).expanduser()
    if place.is_file():
        return place
    run, _, stage = ref.partition("/")
    folders = [place, home / "outcomes" / ref]
    if stage.isdigit():
        folders.append(home / "outcomes" / run / "stages" / stage)
    for folder in folders:
        if (folder / NAME).is_file():
            return folder / NAME
        if (folder / "outcome.json").is_file():
            raise UserError(f"delta: the run '{ref}' changed no weights; name one of 'gapeval-lab delta ls'")
    entries = stored(home)
    if ADDRESS.fullmatch(ref):
        found: dict[str, Path] = {}
        for entry in entries:
            if entry.head and entry.head.address.startswith(ref):
                found.setdefault(entry.head.address, entry.path)  # of copies the oldest, now and later
        if len(found) > 1:
            raise UserError(
                f"delta: '{ref}' begins {len(found)} addresses ({', '.join(sorted(found))}); "
                "give more letters"
            )
        if found:
            return next(iter(found.values()))
    hint = did_you_mean(ref, [entry.name for entry in entries if entry.name])
    raise UserError(
        f"delta: '{ref}' is no file, no run with a delta and no address in {home}{hint}; "
        "see 'gapeval-lab delta ls'"
    )


def _of_run(folder: Path) -> list[Stored]:
    """The delta of a run and, where it had several interventions, theirs."""
    record = _record(folder)
    made = str(record.get("started") or _changed(folder / NAME))
    stages = [stage for stage in record.get("stages") or [] if isinstance(stage, dict)]
    recipe = _mapping(record.get("recipe"))
    methods = [stage.get("method") for stage in stages] or [_mapping(recipe.get("intervention")).get("use")]
    norms = _mapping(record.get("delta_norms")).values()
    found = [
        _entry(
            folder / NAME,
            name=folder.name,
            made=made,
            recipe=str(recipe.get("name") or ""),
            method=" + ".join(str(method) for method in methods if method),
            direction=str(record.get("direction") or ""),
            facts=[_mapping(fact).get("id") for fact in record.get("facts") or []],
            norm=math.hypot(*norms) if norms else None,
        )
    ]
    for number, stage in enumerate(stages, start=1):
        path = folder / "stages" / str(number) / NAME
        if path.is_file():
            found.append(
                _entry(
                    path,
                    name=f"{folder.name}/{number}",
                    made=made,
                    recipe=found[0].recipe,
                    method=str(stage.get("method") or ""),
                    direction=str(stage.get("direction") or ""),
                    facts=stage.get("facts") or [],
                )
            )
    return found


def _entry(
    path: Path,
    *,
    made: str,
    name: str = "",
    recipe: str = "",
    method: str = "",
    direction: str = "",
    facts: list[Any] | tuple[()] = (),
    norm: float | None = None,
) -> Stored:
    head, problem = None, ""
    try:
        head = read_head(path)
    except UserError as error:
        problem = str(error)
    return Stored(
        name=name,
        path=path,
        head=head,
        problem=problem,
        recipe=recipe,
        method=method,
        direction=direction or (head.origin.direction if head else ""),
        facts=tuple(str(fact) for fact in facts),
        norm=norm if head is None or head.norm is None else head.norm,
        made=made,
    )


def _record(folder: Path) -> dict[str, Any]:
    """The run's record as plain JSON, which reads older ones too; empty where it cannot be read."""
    try:
        return _mapping(json.loads((folder / "outcome.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _changed(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
