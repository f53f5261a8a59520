"""The head of a delta's file: its address, where it comes from, what it touches.

Read without torch and without the numbers, so that many files are listed in no time. The file is
safetensors with keys `<parameter>:up`, `:down` or `:dense`, and this head in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gapeval_lab.errors import UserError

FORMAT = "gapeval-lab-delta-1"
ENTRY = "gapeval_lab"  # one entry of metadata: with several, their order in the file would change
SHORT = 12  # letters of an address that people are shown


@dataclass(frozen=True)
class Part:
    """One delta of a composed one: its address, what it was multiplied by, what it was called."""

    address: str
    scale: float
    name: str


@dataclass(frozen=True)
class Origin:
    """Where a delta comes from; no part of its address.

    Attributes:
        weights: fingerprint of the unedited weights that it was made for; "" where not known.
        direction: the side that it was taught through, "text", "image" or "both"; "" where not known.
        parts: what it was composed of, in order; empty for a fitted one.
    """

    weights: str = ""
    direction: str = ""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class ScaledFile:
    """A delta as people name it: the name without its scale, the file, the scale."""

    name: str
    path: Path
    scale: float


@dataclass(frozen=True)
class TermHead:
    """One parameter's term without its numbers; `rank` counts its stored ranks, None for a dense one."""

    shape: tuple[int, ...]
    rank: int | None


@dataclass(frozen=True)
class Head:
    """What a file says of its delta.

    Attributes:
        address: SHA-256 over names, kinds, shapes and numbers of the terms, see `WeightDelta.digest`.
        norm: Frobenius norm over all parameters; None in files that do not say.
        origin: see `Origin`.
        terms: parameter -> its term's head.
    """

    address: str
    norm: float | None
    origin: Origin
    terms: Mapping[str, TermHead]

    @property
    def ranks(self) -> str:
        """The stored ranks in a word: "2", "1 to 8", "dense", "2, dense"."""
        ranks = sorted({term.rank for term in self.terms.values() if term.rank is not None})
        words = [str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"] if ranks else []
        if any(term.rank is None for term in self.terms.values()):
            words.append("dense")
        return ", ".join(words) or "none"


def metadata(address: str, *, norm: float, origin: Origin) -> dict[str, str]:
    """The head as metadata of a safetensors file; the same for the same delta, byte by byte."""
    note = {
        "format": FORMAT,
        "digest": address,
        "norm": float(f"{norm:.6g}"),  # the last digits depend on the machine
        "origin": asdict(origin),
    }
    return {ENTRY: json.dumps(note, sort_keys=True)}


def read_head(path: Path) -> Head:
    """The head of a file that `WeightDelta.save` wrote.

    Raises:
        UserError: no such file, cut short, or not a delta.
    """
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(ENTRY, "{}")
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"delta: cannot read {path} ({error}); give a delta of a run, or one that was composed"
        ) from None
    try:
        return _head(json.loads(text), shapes)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"delta: {path} is no weight delta of this version ({FORMAT}); make it again"
        ) from None


def require_weights(head: Head, weights: str, *, path: Path, fix: str) -> None:
    """Refuse weights that the delta was not made for; a file that does not say fits all.

    Args:
        head: of the delta.
        weights: fingerprint of the model's weights as they were loaded.
        path: the file, for the message.
        fix: how to go on all the same, for the message.

    Raises:
        UserError: they are others.
    """
    made_for = head.origin.weights
    if made_for and made_for != weights:
        raise UserError(
            f"delta: {path} was made for other weights ({made_for[:SHORT]}; this model has "
            f"{weights[:SHORT]}, which its dtype is part of); take the model that it was made for, or {fix}"
        )


def _head(note: dict[str, Any], shapes: Mapping[str, Sequence[int]]) -> Head:
    """Raises ValueError, TypeError, KeyError or AttributeError where it is no head."""
    if note["format"] != FORMAT:
        raise ValueError("another format")
    origin = dict(note.get("origin") or {})
    parts = tuple(Part(**part) for part in origin.pop("parts", ()))
    norm = note.get("norm")
    return Head(
        address=str(note["digest"]),
        norm=None if norm is None else float(norm),
        origin=Origin(**origin, parts=parts),
        terms=_terms(shapes),
    )


def _terms(shapes: Mapping[str, Sequence[int]]) -> dict[str, TermHead]:
    terms = {}
    for key, shape in sorted(shapes.items()):
        name, _, part = key.rpartition(":")
        if part == "dense":
            terms[name] = TermHead(tuple(shape), None)
        elif part == "up":
            (rows, rank), (inner, columns) = shape, shapes[f"{name}:down"]
            if rank != inner:
                raise ValueError("not factors of a matrix")
            terms[name] = TermHead((rows, columns), rank)
        elif part != "down" or f"{name}:up" not in shapes:
            raise ValueError("not a term")
    return terms
