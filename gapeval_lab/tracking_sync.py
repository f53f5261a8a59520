"""Logs the outcomes that lie on disk and are not whole in a store: after a dead server, or in another store.

May be repeated, and run by several processes at once: an outcome that is there is left alone, one that
another process logs now is told and left to it. Prints nothing.
"""

import datetime
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from gapeval_lab.outcome import Outcome
from gapeval_lab.tracking import baseline, experiment_name, run_name, track
from gapeval_lab.tracking_locks import removed_if_free, try_lock
from gapeval_lab.tracking_log import set_tags
from gapeval_lab.tracking_marker import Marker
from gapeval_lab.tracking_patient import troubles
from gapeval_lab.tracking_store import Store, first_line
from gapeval_lab.tracking_tables import pairs
from gapeval_lab.tracking_traces import COUNT, changed, complete, has_traces, log_traces

What = Literal["there", "logged", "completed", "missing", "busy", "unreadable", "failed"]


@dataclass(frozen=True)
class Synced:
    """What became of one outcome.

    Attributes:
        name: its folder's.
        what: "there" before; now "logged", or "completed" by its traces; "missing" where nothing is to be
            done yet; "busy" where another process has it; or it is "unreadable", or has "failed".
        note: the run's id, or what went wrong.
    """

    name: str
    what: What
    note: str = ""


def outcome_folders(home: Path) -> list[Path]:
    """Where finished runs lie, oldest first."""
    return sorted(path.parent for path in home.glob("outcomes/*/outcome.json"))


def sync(store: Store, folders: Sequence[Path], *, dry_run: bool = False) -> Iterator[Synced]:
    """Log what is not whole in the store; what became of each is given when it is known.

    Args:
        store: checked.
        folders: of finished runs.
        dry_run: only look.

    Raises:
        Unreachable: the server went away; what was logged by then is there.
    """
    if not dry_run:
        store.reconcile()
    for folder in folders:
        yield _sync(store, folder, dry_run=dry_run)


def _sync(store: Store, folder: Path, *, dry_run: bool) -> Synced:
    try:
        outcome = Outcome.load(folder)
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        return Synced(folder.name, "unreadable", first_line(error))
    lock = try_lock(store.locks / f"sync-{outcome.run_id}.lock")
    if lock is None:
        return Synced(folder.name, "busy", "another process logs it now")
    with lock:
        try:
            return _synced(store, folder, outcome, dry_run=dry_run)
        except troubles() as error:
            store.ping()
            return Synced(folder.name, "failed", first_line(error))


def _synced(store: Store, folder: Path, outcome: Outcome, *, dry_run: bool) -> Synced:
    marker = Marker.read(folder)
    runs = _runs_of(store, outcome, marker)
    whole = next((run for run in runs if run.info.status == "FINISHED"), None)
    if whole is not None:
        run_id = str(whole.info.run_id)
        if not has_traces(outcome) or complete(whole.data.tags.get(COUNT)):
            if not dry_run and marker.whole_in(store) != run_id:
                marker.is_whole(store, run_id)
                marker.write(folder)
            return Synced(folder.name, "there", run_id)
        if dry_run:
            return Synced(folder.name, "missing", "traces of items")
        return _traced(store, folder, outcome, whole)
    if dry_run:
        return Synced(folder.name, "missing", "the run")
    taken = next((run.info.run_id for run in runs), None)
    if taken and not removed_if_free(store.lock_path(taken)):
        return Synced(folder.name, "busy", f"run {taken} is going on")
    name = run_name(outcome.recipe, targets=outcome.target_categories, direction=outcome.direction)
    began = datetime.datetime.fromisoformat(outcome.started).timestamp()
    with track(
        store,
        name,
        experiment=experiment_name(outcome.umm),
        key=marker.key or hashlib.sha256(outcome.run_id.encode()).hexdigest(),
        resume_id=taken,
        started=int(began * 1000),
    ) as live:
        live.log(outcome, folder, patient=True)
    if not live.resumed:
        ended = began + sum(outcome.seconds.values())
        store.client.set_terminated(live.run_id, "FINISHED", int(ended * 1000))
    marker.is_whole(store, live.run_id)
    marker.write(folder)
    return Synced(folder.name, "logged", live.run_id)


def _runs_of(store: Store, outcome: Outcome, marker: Marker) -> list[Any]:
    """The outcome's runs in the store, by the marker and by what they say; those that are whole first."""
    from mlflow.exceptions import MlflowException

    found = {}
    for run_id in (marker.whole_in(store), marker.open_in(store)):
        if run_id is not None:
            try:
                run = store.client.get_run(run_id)
            except MlflowException:
                store.ping()
                continue  # deleted for good, or another store under the same address
            if run.info.lifecycle_stage == "active":
                found[run_id] = run
    if marker.whole_in(store) not in found:
        ids = [experiment_id for _, experiment_id in store.experiments()]
        query = f"tags.`gapeval.outcome` = '{outcome.run_id}' and tags.kind = '{outcome.kind}'"
        for run in store.client.search_runs(ids, query) if ids else ():
            found[run.info.run_id] = run
    return sorted(found.values(), key=lambda run: run.info.status != "FINISHED")


def _traced(store: Store, folder: Path, outcome: Outcome, run: Any) -> Synced:
    """Write the traces that a finished run lacks, and those that its baseline lacks."""
    if outcome.kind != "baseline":
        baseline(store, outcome, folder)
    found = pairs(outcome)
    count = log_traces(store, run, outcome, found, folder=folder, first=changed(found), patient=True)
    if count is None:
        return Synced(folder.name, "failed", "the traces of its items could not be written")
    set_tags(store.client, run.info.run_id, {COUNT: count})
    return Synced(folder.name, "completed", f"{run.info.run_id}, {count} traces")
