"""Runs in MLflow: how one starts, goes through stages, ends, and is taken up again after a kill.

MLflow is a view: whatever stands there can be made again from the outcome's folder. This module and
its siblings `tracking_*` are the only ones that know MLflow; none imports it before it is used.

    store = Store.open()
    store.check()
    store.reconcile()
    with track(store, name, experiment=experiment_name("tinyworld"), key=recipe_hash) as run:
        outcome = ...  # calls run.stage("before") and so on, and is saved to `folder`
        run.log(outcome, folder)
"""

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gapeval_lab.errors import UserError
from gapeval_lab.outcome import Outcome
from gapeval_lab.tracking_find import find_run
from gapeval_lab.tracking_health import health
from gapeval_lab.tracking_locks import file_lock, name_master, try_lock
from gapeval_lab.tracking_log import log_outcome, set_tags
from gapeval_lab.tracking_relocate import find_moved, relocate
from gapeval_lab.tracking_scalars import unrounded
from gapeval_lab.tracking_stop import Stopped, error_words, sigterm_raises, stops
from gapeval_lab.tracking_store import Store, stopped_as, user_name
from gapeval_lab.tracking_tables import pairs
from gapeval_lab.tracking_traces import COUNT, changed, complete, has_traces, log_traces
from gapeval_lab.tracking_ui import ui, view_links
from gapeval_lab.tracking_values import run_name
from gapeval_lab.tracking_views import ViewLinks

__all__ = [
    "LiveRun",
    "Stopped",
    "Store",
    "ViewLinks",
    "baseline",
    "baseline_fingerprint",
    "experiment_name",
    "find_moved",
    "find_run",
    "health",
    "relocate",
    "run_name",
    "track",
    "ui",
    "unrounded",
    "view_links",
]

# Parts of a recipe that the measurement before an intervention does not depend on.
_NOT_BASELINE = ("name", "about", "facts", "intervention", "then", "emergence", "controls", "search")


# Optional parts of an outcome that say where it was made, and with what.
_EVERY_RUNS = ("git_diff", "code_hash", "machine", "model_settings", "judge_settings")


def experiment_name(umm: str, *, searches: bool = False) -> str:
    """The experiment of a model; searches have their own, so that trials do not bury the rest."""
    return f"gapeval/{umm}/searches" if searches else f"gapeval/{umm}"


@dataclass(frozen=True)
class LiveRun:
    """A run of ours that is going on; its lock is held.

    Attributes:
        store: where it is.
        run_id, experiment_id: MLflow's ids.
        resumed: True where a killed run is continued.
    """

    store: Store
    run_id: str
    experiment_id: str
    resumed: bool

    def stage(self, name: str) -> None:
        """Say what is being done now (and, by that, that the run is alive)."""
        set_tags(self.store.client, self.run_id, {"gapeval.stage": name, "gapeval.heartbeat": _now()})

    def ahead(self, outcome: Outcome, folder: Path) -> None:
        """Log what takes longest as soon as it is known: the baseline, then the traces of the state after.

        At a server, where traces have their share of a run's time, they are left to `log`.
        """
        if outcome.after is None:
            baseline(self.store, outcome, folder)
        elif has_traces(outcome) and not self.store.served:
            found = pairs(outcome)
            run = self.store.client.get_run(self.run_id)
            log_traces(self.store, run, outcome, found, folder=folder, first=changed(found))

    def bring(self, file: Path) -> None:
        """Bring a file along, beside what `log` wrote."""
        self.store.client.log_artifact(self.run_id, str(file))

    def log(
        self,
        outcome: Outcome,
        folder: Path,
        *,
        name: str | None = None,
        baseline_run_id: str | None = None,
        patient: bool = False,
    ) -> None:
        """Log an outcome that is already on disk; repeating it adds nothing twice.

        Args:
            outcome: what to log.
            folder: the outcome's folder (pictures, delta).
            name: what the run is called from now on; by default a run other than a trial is called after
                its outcome.
            baseline_run_id: its baseline's run, where it is known; else it is looked for, or made.
            patient: take the time for every trace, also at a slow server.
        """
        self.stage("log")
        own = outcome.kind == "baseline"
        base = self.run_id if own else baseline_run_id or baseline(self.store, outcome, folder)
        if outcome.kind != "trial":
            name = name or run_name(
                outcome.recipe, targets=outcome.target_categories, direction=outcome.direction
            )
            self.store.client.update_run(self.run_id, name=name)
        log_outcome(
            self.store,
            self.run_id,
            outcome=outcome,
            folder=folder,
            baseline_run_id=base,
            fingerprint=baseline_fingerprint(outcome),
            patient=patient,
        )
        self.stage("done")


class LeftOpen(Exception):
    """Leaves a run's block without a word to the store: the run stays open, to be continued."""


@contextlib.contextmanager
def track(
    store: Store,
    name: str,
    *,
    experiment: str,
    key: str,
    resume_id: str | None = None,
    parent_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    started: int | None = None,
) -> Iterator[LiveRun]:
    """A run around a block of work: RUNNING inside it, FINISHED after it.

    An exception makes it FAILED; Ctrl-C and SIGTERM make it KILLED (a trial: FAILED); after a kill -9
    the next `store.reconcile()` does. A KILLED run with the same key is continued instead of starting
    another.

    Args:
        store: checked before.
        name: shown while the run goes on.
        experiment: from `experiment_name`.
        key: hash of everything that makes two runs the same experiment (recipe and overrides).
        resume_id: continue this very run.
        parent_id: the run of the search that a trial belongs to.
        tags: set from the start; `kind` among them decides how a stop is told.
        started: when it began, in milliseconds since the epoch; by default now.

    Raises:
        UserError: `resume_id` is unknown, finished, or still running.
    """
    experiment_id = store.experiment(experiment)
    with store.starting():
        live, lock = _begin(
            store,
            name,
            experiment_id=experiment_id,
            key=key,
            resume_id=resume_id,
            parent_id=parent_id,
            tags=tags or {},
            started=started,
        )
    try:
        with sigterm_raises():
            yield live
    except LeftOpen:
        raise
    except BaseException as error:
        _end(live, error, stopped=stopped_as(tags or {}))
        raise
    else:
        store.client.set_terminated(live.run_id, "FINISHED")
    finally:
        # Removed before it is freed: nobody can lock it in between and find a run without an end.
        store.lock_path(live.run_id).unlink(missing_ok=True)
        lock.close()


def _now() -> str:
    return f"{time.time():.0f}"


def _begin(
    store: Store,
    name: str,
    *,
    experiment_id: str,
    key: str,
    resume_id: str | None,
    parent_id: str | None,
    tags: Mapping[str, str],
    started: int | None,
) -> tuple[LiveRun, IO[str]]:
    """Create a run or adopt a killed one, with its lock. The caller holds `store.starting()`."""
    client = store.client
    own = {
        **tags,
        "gapeval.key": key,
        "gapeval.stage": "start",
        "gapeval.heartbeat": _now(),
        "gapeval.host": socket.gethostname(),
    }
    for run in _resumable(store, experiment_id=experiment_id, key=key, resume_id=resume_id):
        run_id = run.info.run_id
        lock = try_lock(store.lock_path(run_id))
        if lock is None:
            continue
        name_master(lock, store.master)
        if "gapeval.end" in run.data.tags:
            client.delete_tag(run_id, "gapeval.end")
        set_tags(client, run_id, own | {"gapeval.lock": str(store.lock_path(run_id))})
        client.update_run(run_id, status="RUNNING")
        return LiveRun(store, run_id, run.info.experiment_id, resumed=True), lock
    if resume_id is not None:
        raise UserError(f"resume: run {resume_id} is still running; wait for it, or stop it first")
    own |= {"mlflow.user": user_name(), "mlflow.source.name": "gapeval-lab", "mlflow.source.type": "LOCAL"}
    if parent_id is not None:
        own["mlflow.parentRunId"] = parent_id
    run_id = client.create_run(experiment_id, started, own, name).info.run_id
    lock = try_lock(store.lock_path(run_id))
    if lock is None:
        raise RuntimeError(f"the lock of the new run {run_id} is taken")
    name_master(lock, store.master)
    set_tags(client, run_id, {"gapeval.lock": str(store.lock_path(run_id))})
    return LiveRun(store, run_id, experiment_id, resumed=False), lock


def _resumable(store: Store, *, experiment_id: str, key: str, resume_id: str | None) -> list[Any]:
    """The run that was named, or the killed runs with the key, newest first."""
    from mlflow.exceptions import MlflowException

    if resume_id is None:
        if not key.replace("-", "").isalnum():
            raise ValueError(f"key: a hash (letters, digits and '-'), not {key!r}")
        query = f"tags.`gapeval.key` = '{key}' and attributes.status = 'KILLED'"
        return list(store.client.search_runs([experiment_id], query, order_by=["attributes.start_time DESC"]))
    try:
        run = store.client.get_run(resume_id)
    except MlflowException:
        raise UserError(f"resume: there is no run {resume_id} in {store.uri}; give an id that is") from None
    if run.info.status == "FINISHED":
        raise UserError(f"resume: run {resume_id} is finished; start it without resuming to make a new run")
    return [run]


def _end(live: LiveRun, error: BaseException, *, stopped: str) -> None:
    """Close a run that was left by an exception; `stopped` is the status of one that was stopped."""
    status = stopped if stops(error) else "FAILED"
    try:
        set_tags(live.store.client, live.run_id, {"gapeval.end": error_words(error)})
        live.store.client.set_terminated(live.run_id, status)
    except Exception as second:  # the first error is the one to be seen, whatever the store says
        error.add_note(f"MLflow run {live.run_id} could not be closed: {second}")


def baseline_fingerprint(outcome: Outcome) -> str:
    """Hash of what the before phase depends on: weights, data, and every setting of the measurement."""
    settings = _of_baseline(outcome.recipe)
    parts = [outcome.umm, outcome.weights_fingerprint, outcome.data_hash, outcome.seed, settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _of_baseline(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe without what is about an intervention or its facts."""
    kept = {key: value for key, value in recipe.items() if key not in _NOT_BASELINE}
    if isinstance(kept.get("evaluation"), Mapping):
        kept["evaluation"] = {key: value for key, value in kept["evaluation"].items() if key != "reasoning"}
    return kept


def baseline(store: Store, outcome: Outcome, folder: Path) -> str:
    """The id of the baseline's own run: the one that is there, or a new one logged from `outcome.before`.

    One per fingerprint, also when several processes ask at once.
    """
    fingerprint = baseline_fingerprint(outcome)
    experiment = experiment_name(outcome.umm)
    experiment_id = store.experiment(experiment)
    query = f"tags.`gapeval.fingerprint` = '{fingerprint}' and tags.kind = 'baseline'"
    query += " and attributes.status = 'FINISHED'"
    with file_lock(store.locks / f"baseline-{fingerprint[:16]}.lock"):
        found = store.client.search_runs(
            [experiment_id], query, max_results=1, order_by=["attributes.start_time ASC"]
        )
        if found:
            _complete_traces(store, found[0], outcome, folder)
            return str(found[0].info.run_id)
        with track(store, "baseline", experiment=experiment, key=f"baseline-{fingerprint}") as run:
            log_outcome(
                store,
                run.run_id,
                outcome=_before_only(outcome),
                folder=folder,
                baseline_run_id=run.run_id,
                fingerprint=fingerprint,
                first=changed(pairs(outcome)),
                report=False,
            )
            run.stage("done")
        return run.run_id


def _complete_traces(store: Store, run: Any, outcome: Outcome, folder: Path) -> None:
    """Write what traces a baseline lacks, those first that this outcome is to be compared with."""
    if outcome.kind == "trial" or complete(run.data.tags.get(COUNT)):
        return
    before = _before_only(outcome)
    count = log_traces(*(store, run, before, pairs(before)), folder=folder, first=changed(pairs(outcome)))
    if count:
        set_tags(store.client, run.info.run_id, {COUNT: count})


def _before_only(outcome: Outcome) -> Outcome:
    """The outcome as if nothing had been done to the model."""
    recipe = _of_baseline(outcome.recipe)
    # What else an outcome may leave out (stages, adapter, emergence, ...) is all of the intervention's.
    optional = {
        name: field.get_default(call_default_factory=True)
        for name, field in Outcome.model_fields.items()
        if not field.is_required() and name not in _EVERY_RUNS
    }
    return outcome.model_copy(
        update={
            **optional,
            "kind": "baseline",
            "recipe": {"name": "baseline", **recipe},
            "recipe_text": "",
            "overrides": [],
            "target_categories": [],
            "facts": [],
            "facts_hash": None,
            "weights_fingerprint_reverted": None,
            "reverted": None,
            "after": None,
            "placebo": None,
            "identity": None,
            "shift": None,
            "placebo_shift": None,
            "identity_shift": None,
            "quality": None,
            "delta_file": None,
            "delta_norms": {},
            "curves": {},
            "seconds": {name: value for name, value in outcome.seconds.items() if name == "before"},
        }
    )
