"""Runs by the words that people have for them, the same for every command: on this disk, then in MLflow.

Knows names and places; reads no outcome. MLflow is asked only for a word that nothing on this disk bears.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gapeval_lab.errors import UserError
from gapeval_lab.outcome import INPUTS
from gapeval_lab.stored_runs import LAST, NAME, on_disk, several
from gapeval_lab.tracking_read import Logged, fetch, local_artifacts, read_runs
from gapeval_lab.tracking_store import Store
from gapeval_lab.validation import did_you_mean

FINISHED = "FINISHED"
TAGS = (
    *("kind", "method", "target", "direction", "umm", "recipe", "verdict"),
    *("gapeval.outcome", "gapeval.fingerprint", "gapeval.key", "gapeval.end", "gapeval.reproduces"),
)
PARAMS = ("seed", "data_hash", "weights_fingerprint", "recipe_hash", "benchmark.", "judge.")
ENDS = ("gap_score", "understanding", "generation")
METRICS = (
    *(f"{end}/{name}" for end in ("delta", "low", "high") for name in ENDS),
    *("before/gap_score", "after/gap_score", "delta/on_target", "delta/off_target"),
    *("understanding/overall", "generation/overall", "before/understanding", "before/generation"),
    *("edit/reliability/text", "edit/reliability/image", "placebo/delta_gap_score"),
)
_MLFLOW_ID = re.compile(r"[0-9a-f]{6,32}")


class NoSuchRun(UserError):
    """A word that no run bears."""


@dataclass(frozen=True)
class Entry:
    """A run of the store.

    Attributes:
        id: ours; MLflow's where there is no outcome yet.
        name: what MLflow calls it; the recipe's name where MLflow does not know the run.
        started: seconds since 1970.
        logged: as it stands in MLflow, if it does.
        folder: where its outcome lies on this disk, if it does.
    """

    id: str
    name: str
    status: str
    kind: str
    started: float
    logged: Logged | None
    folder: Path | None

    @property
    def derived(self) -> bool:
        """A baseline that an edit has logged beside itself: it bears the edit's id."""
        return self._tag("gapeval.key").startswith("baseline-")

    @property
    def reproduces(self) -> str:
        """The id of the run that it repeats, as far as MLflow knows; empty for a run of its own."""
        return self._tag("gapeval.reproduces")

    def _tag(self, name: str) -> str:
        return self.logged.tags.get(name, "") if self.logged else ""


def entries(store: Store, *, where: str | None = None, metrics: Iterable[str] = METRICS) -> list[Entry]:
    """Every run, oldest first; with a filter only those in MLflow that it matches.

    Raises:
        UserError: the filter is none, or the store cannot be read.
    """
    logged = read_runs(store, where=where, tags=TAGS, params=PARAMS, metrics=tuple(metrics))
    folders = {path.parent.name: path.parent for path in store.folder.glob(f"outcomes/*/{NAME}")}
    found, claimed = [], set()
    for one in logged:
        kind, ours = one.tags.get("kind", ""), one.tags.get("gapeval.outcome", "")
        entry = Entry(
            id=ours or one.run_id,
            name=one.name,
            status=one.status,
            kind=kind,
            started=one.started / 1000,
            logged=one,
            folder=folders.get(ours),
        )
        found.append(entry)
        if not entry.derived:
            claimed.add(ours)
    if where is None:
        found += [_of_folder(folder) for ours, folder in folders.items() if ours not in claimed]
    return sorted(found, key=lambda entry: (entry.started, entry.id))


def stored(store: Store) -> list[Entry]:
    """The outcomes on this disk, oldest first, as if MLflow knew none of them."""
    found = [_of_folder(path.parent) for path in store.folder.glob(f"outcomes/*/{NAME}")]
    return sorted(found, key=lambda entry: (entry.started, entry.id))


def find_run(ref: str, store: Store, *, alone: bool = False) -> Path:
    """The folder of a finished run.

    Args:
        ref: its folder or outcome.json; its id, or how only its id begins; "last"; MLflow's id of the run, or
            how it begins, or the run's name in MLflow.
        store: where runs are.
        alone: an outcome in a file of another name, as `--json` writes it, will do; its path is returned.

    Raises:
        UserError: there is none, there are several, or the run has no outcome.
    """
    place = on_disk(ref, store.folder)
    if place is not None:
        if place.is_file() and not alone:
            raise UserError(
                f"run: {place} is an outcome without what lies beside it in its run's folder; name the run"
            )
        return place
    try:
        known = entries(store, metrics=())
    except UserError as error:
        raise UserError(
            f"run: '{ref}' is no finished run in {store.folder}, and MLflow cannot be asked for it\n  {error}"
        ) from None
    return whereabouts(find_entry(ref, known, store), store)


def find_entry(ref: str, known: Sequence[Entry], store: Store) -> Entry:
    """The run that a word means among those that are known: `find_run`, without the folders and files.

    Raises:
        UserError: there is none, or there are several.
    """
    own = [entry for entry in known if not entry.derived]
    for matching in (
        [entry for entry in own if entry.id == ref],
        [entry for entry in own if entry.id.startswith(ref)],
        [e for e in known if e.logged and _MLFLOW_ID.fullmatch(ref) and e.logged.run_id.startswith(ref)],
        [entry for entry in known if entry.name == ref and entry.logged and entry.status == FINISHED],
        [entry for entry in known if entry.name == ref and entry.logged],
    ):
        ids = {entry.id if entry in own or not entry.logged else entry.logged.run_id for entry in matching}
        if len(ids) > 1:
            raise several(ref, sorted(ids))
        if matching:
            return matching[-1]
    names = sorted({name for entry in known for name in (entry.id, entry.name) if name})
    raise NoSuchRun(
        f"run: '{ref}' is no finished run in {store.folder}{did_you_mean(ref, names)}; see 'gapeval-lab ls "
        f"runs', or say '{LAST}'"
    )


def whereabouts(entry: Entry, store: Store) -> Path:
    """The folder with a run's outcome, fetched where it must be.

    Raises:
        UserError: it has none.
    """
    place = place_of(entry, store)
    if place is None:
        said = f"{entry.status.lower()}, no outcome" if entry.status != FINISHED else "its outcome is gone"
        raise UserError(
            f"run: '{entry.id}' has no outcome, on this disk or in MLflow ({said}); name a finished run"
        )
    return place


def place_of(entry: Entry, store: Store, *, remote: bool = True) -> Path | None:
    """The folder with a run's outcome: its own, MLflow's of its artifacts, or the copy that is fetched.

    Args:
        entry: of `entries`.
        store: where it is.
        remote: fetch it, if it lies on another machine.
    """
    if entry.folder is not None and not entry.derived:
        return entry.folder
    if entry.logged is None:
        return None
    folder = local_artifacts(entry.logged)
    if folder is not None and (folder / NAME).is_file():
        return folder
    if not remote or entry.status != FINISHED:
        return None
    kept = store.folder / "fetched" / entry.logged.run_id
    if (kept / NAME).is_file():
        return kept
    part = kept.with_name(f"{kept.name}.part{os.getpid()}")
    try:
        for name in (NAME, INPUTS):
            fetch(store, entry.logged, name, part)
        if not (part / NAME).is_file():
            return None
        with contextlib.suppress(OSError):  # another process has brought it meanwhile
            part.rename(kept)
        return kept
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _of_folder(folder: Path) -> Entry:
    """An outcome of which MLflow knows nothing."""
    name, _, rest = folder.name.rpartition("-20")
    try:
        when = datetime.datetime.strptime(f"20{rest}".split("-")[0], "%Y%m%dT%H%M%S")
        started = when.replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        name, started = folder.name, (folder / NAME).stat().st_mtime
    return Entry(folder.name, name, FINISHED, "", started, None, folder)
