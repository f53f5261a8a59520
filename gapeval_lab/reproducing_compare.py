"""Two outcomes of one experiment, number by number and item by item. Reads records and pictures alone.

What a model said, drew and was judged to have done must be the same; numbers may differ by `TOLERANCE`.
Times, memory and dates are not compared.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gapeval_lab.delta import WeightDelta
from gapeval_lab.errors import UserError
from gapeval_lab.outcome import Outcome, Phase
from gapeval_lab.tracking import unrounded

TOLERANCE = 1e-3
"""Largest difference of two numbers that count as equal up to rounding: relative, of numbers below one
absolute. Sums of floats in another order differ by 1e-7, and an optimisation carries that on; all that is
counted over items (gaps, accuracies, intervals) moves by more than this if any item is judged otherwise,
and items are compared by themselves."""

LEVELS = 1
"""Of 255, by which the channels of two pictures may differ."""

LISTED = 10
"""Ids that are named of items that differ."""

Status = Literal["exact", "within", "differs", "unknown"]

_COSTS = ("time/", "memory/", "cost/")
_NOT_RESULTS = {
    *("schema_version", "run_id", "kind", "recipe", "recipe_text", "recipe_hash", "overrides", "started"),
    *("versions", "git_revision", "git_diff", "code_hash", "machine", "inputs", "model_settings"),
    *("judge_settings", "reproduces", "seconds", "peak_memory_gib", "delta_file", "adapter", "data_hash"),
    *(
        "protocol_rows",
        "reasoned",
        "facts_hash",
        "weights_fingerprint",
        "weights_fingerprint_reverted",
        "delta_address",
    ),
}
"""Fields of an outcome that say how it was made; compared elsewhere, or not to be compared."""


@dataclass(frozen=True)
class Compared:
    """One value, then and now.

    Attributes:
        name: what it is.
        status: "unknown" where one of the two is not at hand.
        then, now: both values.
        note: the tolerance that it is within, or why it is unknown.
    """

    name: str
    status: Status
    then: float | str | None
    now: float | str | None
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Many values of one kind.

    Attributes:
        name: what they are.
        n: how many were compared; `exact`, `within`, `differs` of them; `unknown` were not at hand.
        first: ids, or paths with both values, of the first that differ; if none does, of those within.
        note: about those that are not exact.
    """

    name: str
    n: int
    exact: int
    within: int
    differs: int
    unknown: int = 0
    first: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Everything that was compared.

    Attributes:
        metrics: those that MLflow shows, without costs.
        single: weights and delta.
        items: verdicts, answers and pictures, by phase; what is asked by protocols.
        record: every further number and text of the record, by section.
    """

    metrics: list[Compared]
    single: list[Compared]
    items: list[Group]
    record: list[Group]

    @property
    def status(self) -> Status:
        """The worst of all; what is unknown does not count."""
        found = {one.status for one in (*self.metrics, *self.single)}
        for group in (*self.items, *self.record):
            found |= {name for name in ("within", "differs") if getattr(group, name)}
        return "differs" if "differs" in found else "within" if "within" in found else "exact"

    @property
    def verdict(self) -> str:
        """In one line."""
        if self.status == "exact":
            return "Reproduced exactly"
        if self.status == "within":
            return "Reproduced up to rounding"
        worst = [f"{group.differs} of {group.n} {group.name}" for group in self.items if group.differs]
        single = [one.name for one in self.single if one.status == "differs"]
        metrics = sum(one.status == "differs" for one in self.metrics)
        counted = [f"{metrics} of {len(self.metrics)} metrics"] if metrics else []
        rest = [
            f"{group.differs} of {group.n} values of {group.name}" for group in self.record if group.differs
        ]
        told = [*counted, *single, *worst] or rest
        return f"Not reproduced: {', '.join(told)} differ"

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"verdict": self.verdict, "status": self.status, "tolerance": TOLERANCE, **asdict(self)}


def compare(then: Outcome, now: Outcome, *, then_folder: Path, now_folder: Path) -> Comparison:
    """Compare a run with its repetition.

    Args:
        then, now: the records. What a trial of a search leaves out of its record is not missed.
        then_folder, now_folder: where their pictures and deltas lie, as far as they are there.
    """
    items: list[Group] = []
    for phase in get_args(Phase):
        old, new = getattr(then, phase), getattr(now, phase)
        if old is not None:
            rows = new.rows if new else []
            items += _rows(f"{phase}", _by(old.rows, "id"), _by(rows, "id"), then_folder, now_folder)
    for name, keys, old, new in (
        ("protocols", ("protocol", "phase", "item", "direction"), then.protocol_rows, now.protocol_rows),
        ("reasoned", ("fact", "probe", "phase"), then.reasoned, now.reasoned),
    ):
        if old:
            items += _rows(name, _by(old, *keys), _by(new, *keys), then_folder, now_folder)
    return Comparison(
        metrics=list(_metrics(then, now)),
        single=[_weights(then, now), *_delta(then, now, then_folder, now_folder)],
        items=items,
        record=list(_record(then, now)),
    )


def _metrics(then: Outcome, now: Outcome) -> Iterator[Compared]:
    """Metric by metric; what only the repetition has is new, and no difference."""
    old, new = unrounded(then), unrounded(now)
    bands = [s.gap.official.band for o in (then, now) for s in (o.before, o.after) if s and s.gap.official]
    for name, was in old.items():
        if was is None or name.startswith(_COSTS):
            continue
        absolute = max(bands) if name.startswith("official/") and bands else 0.0
        value = new.get(name)
        status = _status(was, value, absolute=absolute)
        if status == "within":
            within = "rounding band" if absolute and abs(was - float(value or 0.0)) <= absolute else "1e-3"
            yield Compared(name, status, was, value, f"within {within}")
        else:
            yield Compared(name, status, was, value, "" if value is not None else "not measured")


def _weights(then: Outcome, now: Outcome) -> Compared:
    old, new = then.weights_fingerprint, now.weights_fingerprint
    return Compared("weights", "exact" if old == new else "differs", old, new)


def _delta(then: Outcome, now: Outcome, then_folder: Path, now_folder: Path) -> Iterator[Compared]:
    """The change of the weights: the same to the bit, or how far apart."""
    old, new = then.delta_address, now.delta_address
    if old is None and not then.delta_norms:
        return
    if old == new:
        yield Compared("delta", "exact", old, new)
        return
    if not (then.delta_file and now.delta_file and (then_folder / then.delta_file).is_file()):
        yield Compared(
            "delta", "unknown", old, new, "other digits; how many cannot be told, the old one is not kept"
        )
        return
    try:
        one, other = (
            WeightDelta.load(place) for place in (then_folder / then.delta_file, now_folder / now.delta_file)
        )
        distance, size = one.then(other.scaled(-1.0)).norm(), one.norm()
    except (UserError, ValueError) as error:
        yield Compared("delta", "differs", old, new, f"cannot be compared ({error})")
        return
    share = distance / size if size else math.inf
    status: Status = "within" if share <= TOLERANCE else "differs"
    yield Compared("delta", status, old, new, f"apart by {share:.2g} of its norm")


def _rows(
    name: str,
    old: Mapping[str, dict[str, Any]],
    new: Mapping[str, dict[str, Any]],
    then_folder: Path,
    now_folder: Path,
) -> Iterator[Group]:
    """Verdicts, texts and pictures of rows with the same key."""
    verdicts, texts, pictures = _Count(), _Count(), _Count()
    for key, row in old.items():
        was, now = dict(_leaves(row)), dict(_leaves(new.get(key, {})))
        for count, names in ((verdicts, ("understanding", "generation", "correct")), (texts, _TEXTS)):
            fields = [path for path in was if path.split("/")[-1] in names or path.split("/")[0] in names]
            if fields:
                same = all(path in now and was[path] == now[path] for path in fields)
                count.add(key, "exact" if same else "differs")
        for path in (path for path in was if path.split("/")[-1] in ("picture", "step_picture")):
            if was[path] is not None:
                second = now.get(path)
                seen = _pictures(then_folder / was[path], now_folder / second if second else None)
                pictures.add(key, seen[0], seen[1])
    for what, count in (("verdicts", verdicts), ("answers", texts), ("pictures", pictures)):
        if count.n or count.unknown:
            yield count.group(f"{name}: {what}")


_TEXTS = ("answer", "written", "step")


class _Count:
    """Counts what was compared, and remembers the first that differ."""

    def __init__(self) -> None:
        self.found: dict[Status, list[str]] = {status: [] for status in get_args(Status)}
        self.farthest = 0.0

    def add(self, key: str, status: Status, distance: float = 0.0) -> None:
        self.found[status].append(key)
        self.farthest = max(self.farthest, distance)

    @property
    def n(self) -> int:
        return sum(len(keys) for status, keys in self.found.items() if status != "unknown")

    @property
    def unknown(self) -> int:
        return len(self.found["unknown"])

    def group(self, name: str, note: str = "") -> Group:
        found = self.found
        listed = dict.fromkeys(found["differs"] or found["within"])
        if self.farthest:
            note = f"mean pixel distance up to {self.farthest:.2g}"
        if self.unknown and not self.n:
            note = "not kept"
        return Group(
            name=name,
            n=self.n,
            exact=len(found["exact"]),
            within=len(found["within"]),
            differs=len(found["differs"]),
            unknown=self.unknown,
            first=tuple(listed)[:LISTED],
            note=note,
        )


def _pictures(old: Path, new: Path | None) -> tuple[Status, float]:
    """Whether two pictures are the same, and their mean absolute difference (0 to 1)."""
    if not old.is_file():
        return "unknown", 0.0
    if new is None or not new.is_file():
        return "differs", 1.0
    if _digest(old) == _digest(new):
        return "exact", 0.0
    import numpy as np
    from PIL import Image

    with Image.open(old) as first, Image.open(new) as second:
        one, other = (np.asarray(image.convert("RGB"), dtype=np.int16) for image in (first, second))
    if one.shape != other.shape:
        return "differs", 1.0
    apart = np.abs(one - other)
    if not apart.any():
        return "exact", 0.0
    return ("within" if apart.max() <= LEVELS else "differs"), float(apart.mean()) / 255


def _record(then: Outcome, now: Outcome) -> Iterator[Group]:
    """Every other leaf of the record, by section: intervals, p-values, curves, spectra, facts."""
    old, new = then.model_dump(mode="json"), now.model_dump(mode="json")
    lean = then.kind == "trial"
    for section in (name for name in old if name not in _NOT_RESULTS):
        if old[section] is None and new[section] is None:
            continue
        was, is_now = dict(_leaves(old[section])), dict(_leaves(new[section]))
        was = {path: value for path, value in was.items() if not path.startswith("rows/")}
        is_now = {path: value for path, value in is_now.items() if not path.startswith("rows/")}
        band = _band(was, is_now)
        count = _Count()
        for path in was if lean else dict.fromkeys((*was, *is_now)):
            if lean and was[path] is None:
                continue
            absolute = band if "official" in path.split("/") else 0.0
            status = _status(was.get(path), is_now.get(path), absolute=absolute)
            both = f"{path}: {_shown(was.get(path))} then, {_shown(is_now.get(path))} now"
            count.add(path if status == "exact" else both, status)
        if count.n:
            yield count.group(section.replace("_", " "))


def _band(*sides: Mapping[str, Any]) -> float:
    """By how much one category of the published estimator may move, where their mean moves by its band."""
    bands = [float(side.get("gap/official/band") or 0.0) for side in sides]
    categories = max(sum(path.startswith("gap/official/gaps/") for path in side) for side in sides)
    return max(bands) * max(1, categories)


def _status(was: Any, value: Any, *, absolute: float = 0.0) -> Status:
    """How two plain values compare."""
    if was == value:
        return "exact"
    if isinstance(was, bool) or isinstance(value, bool):
        return "differs"
    if (
        isinstance(was, float)
        and isinstance(value, int | float)
        or isinstance(value, float)
        and isinstance(was, int)
    ):
        if math.isnan(was) and math.isnan(value):
            return "exact"
        apart = abs(was - value)
        return "within" if apart <= max(TOLERANCE * max(1.0, abs(was), abs(value)), absolute) else "differs"
    return "differs"


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value of nested mappings and lists, with its path."""
    if isinstance(node, Mapping | list | tuple):
        pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in pairs:
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    else:
        yield path, node


def _by(rows: Sequence[Any], *keys: str) -> dict[str, dict[str, Any]]:
    """Rows as plain values, under what tells them apart."""
    plain = [row.model_dump(mode="json") for row in rows]
    return {"/".join(str(row[key]) for key in keys): row for row in plain}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
