"""One search in MLflow: its parent run, which several workers share, and the runs nested in it.

Every worker holds the parent's lock together with the others, so that `Store.reconcile` ends the parent
only when all are gone; the last one out ends it. Knows runs; refuses to know what a trial is made of.
"""

import contextlib
import fcntl
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gapeval_lab.errors import UserError
from gapeval_lab.outcome import Outcome
from gapeval_lab.tracking_locks import removed_if_free
from gapeval_lab.tracking_log import METRIC_BATCH, PARAM_BATCH, set_tags
from gapeval_lab.tracking_stop import Stopped, sigterm_raises
from gapeval_lab.tracking_store import Store, stopped_as, user_name
from gapeval_lab.tracking_values import clean_key, shortened

NUMBER = "optuna.trial"
STUDY = "optuna.study"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")


@dataclass(frozen=True)
class PastRun:
    """A finished run, as far as MLflow can tell without its artifacts."""

    run_id: str
    parent_id: str | None
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


@dataclass(frozen=True)
class StudyRun:
    """The parent run of a search.

    Attributes:
        store: where it is.
        study: the search's name.
        run_id, experiment: MLflow's id, and the experiment's name.
        resumed: True where it was there already.
    """

    store: Store
    study: str
    run_id: str
    experiment: str
    resumed: bool

    def children(self, tags: Mapping[str, str], *, finished: bool = True) -> list[PastRun]:
        """The runs nested in it that have these tags, oldest first; by default those that are FINISHED."""
        asked = {"mlflow.parentRunId": self.run_id, **tags}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in asked.items())
        return search(self.store, [self.experiment], query, finished=finished)

    def outcome(self, run_id: str) -> Outcome:
        """The record that a finished run was logged with."""
        with tempfile.TemporaryDirectory(prefix="gapeval-outcome-") as place:
            return Outcome.load(Path(self.store.client.download_artifacts(run_id, "outcome.json", place)))

    def lost(self, run_id: str) -> None:
        """End the run of a trial whose worker died, as FAILED.

        Raises:
            ValueError: its worker is alive on this machine.
        """
        client = self.store.client
        run = client.get_run(run_id)
        here = run.data.tags.get("gapeval.host") == socket.gethostname()
        if here and not removed_if_free(self.store.lock_path(run_id)):
            raise ValueError(f"run {run_id} is still running")
        if run.info.status != "FAILED":
            tags = {"gapeval.end": "its worker died", "outcome": "failed"}
            set_tags(client, run_id, tags)
            client.set_terminated(run_id, "FAILED")

    def figure(self, name: str, figure: Any) -> None:
        """Keep a matplotlib figure under `figures/`, as SVG and PNG."""
        with tempfile.TemporaryDirectory(prefix="gapeval-figure-") as place:
            figure.savefig(Path(place) / f"{name}.svg")
            figure.savefig(Path(place) / f"{name}.png", dpi=110)
            self.store.client.log_artifacts(self.run_id, place, "figures")

    def artifact(self, path: Path) -> None:
        """Keep a file."""
        self.store.client.log_artifact(self.run_id, str(path))

    def tell(self, metrics: Mapping[str, float], *, note: str | None = None) -> None:
        """Metrics of the parent itself (the best trial's, say), and its description in Markdown."""
        log_numbers(self.store, self.run_id, metrics=metrics)
        if note is not None:
            set_tags(self.store.client, self.run_id, {"mlflow.note.content": note})

    def alive(self) -> None:
        """Say that the search goes on."""
        set_tags(self.store.client, self.run_id, {"gapeval.heartbeat": f"{time.time():.0f}"})


@contextlib.contextmanager
def study_run(
    store: Store, study: str, *, experiment: str, key: str, params: Mapping[str, str], note: str
) -> Iterator[StudyRun]:
    """The parent run of a search, made or found again by its name; shared by all workers inside the block.

    RUNNING while any worker is inside; the last one out makes it FINISHED, or KILLED after Ctrl-C and
    SIGTERM, or FAILED after an exception.

    Args:
        store: checked before.
        study: the search's name.
        experiment: from `experiment_name(..., searches=True)`.
        key: hash of everything that makes two searches the same.
        params: logged once, with the run's start.
        note: its description, in Markdown, until `tell` gives another.

    Raises:
        UserError: the name cannot be one, or is that of another search.
    """
    if not NAME.fullmatch(study):
        raise UserError(f"study: '{study}' cannot be a name; use letters, digits and ._-, at most 80")
    experiment_id = store.experiment(experiment)
    with store.starting():
        run, lock = _join(store, study, experiment=experiment, experiment_id=experiment_id, key=key)
        if not run.resumed:
            log_numbers(store, run.run_id, params=params)
            set_tags(store.client, run.run_id, {"mlflow.note.content": note})
    status = "FINISHED"
    try:
        with sigterm_raises():
            yield run
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | Stopped)
        status = stopped_as({}) if stopped else "FAILED"
        raise
    finally:
        _leave(run, lock, status)


def _join(
    store: Store, study: str, *, experiment: str, experiment_id: str, key: str
) -> tuple[StudyRun, IO[str]]:
    """Create or find the parent, with a share of its lock. The caller holds `store.starting()`."""
    client = store.client
    tags = {
        "kind": "search",
        STUDY: study,
        "gapeval.key": key,
        "gapeval.stage": "trials",
        "gapeval.heartbeat": f"{time.time():.0f}",
        "gapeval.host": socket.gethostname(),
    }
    found = search(
        store, [experiment], f"tags.`{STUDY}` = '{study}' and tags.kind = 'search'", finished=False
    )
    if found:
        run_id = found[0].run_id
        if found[0].tags["gapeval.key"] != key:
            raise UserError(
                f"study: '{study}' is the search of another recipe, model or data; take another name"
            )
        client.update_run(run_id, status="RUNNING")
    else:
        own = {"mlflow.user": user_name(), "mlflow.source.name": "gapeval-lab", "mlflow.source.type": "LOCAL"}
        run_id = client.create_run(experiment_id, tags=tags | own, run_name=study).info.run_id
    path = store.lock_path(run_id)
    lock = path.open("a")
    fcntl.flock(lock, fcntl.LOCK_SH)  # nobody holds it alone while `starting` is held
    set_tags(client, run_id, tags | {"gapeval.lock": str(path)})
    return StudyRun(store, study, run_id, experiment, resumed=bool(found)), lock


def _leave(run: StudyRun, lock: IO[str], status: str) -> None:
    """Give the share of the lock back; the last one ends the run."""
    with run.store.starting(), lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        run.store.client.set_terminated(run.run_id, status)
        run.store.lock_path(run.run_id).unlink(missing_ok=True)


def log_numbers(
    store: Store,
    run_id: str,
    *,
    params: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Params and metrics in as few calls as MLflow allows."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    kept = [Param(key, value) for key, value in shortened(params or {}).items()]
    points = [Metric(clean_key(key), value, now, 0) for key, value in (metrics or {}).items()]
    for start in range(0, len(kept), PARAM_BATCH):
        store.client.log_batch(run_id, params=kept[start : start + PARAM_BATCH])
    for start in range(0, len(points), METRIC_BATCH):
        store.client.log_batch(run_id, metrics=points[start : start + METRIC_BATCH])


def search(store: Store, experiments: list[str], query: str, *, finished: bool = True) -> list[PastRun]:
    """Runs of some experiments, oldest first; experiments that are not there have none.

    Args:
        store: checked.
        experiments: their names.
        query: in MLflow's language.
        finished: whether only runs that are FINISHED count.
    """
    known = (store.client.get_experiment_by_name(name) for name in experiments)
    ids = [experiment.experiment_id for experiment in known if experiment is not None]
    if finished:
        query += " and attributes.status = 'FINISHED'"
    found: list[PastRun] = []
    token = None
    while ids:
        page = store.client.search_runs(
            ids, query, max_results=500, order_by=["attributes.start_time ASC"], page_token=token
        )
        found += [
            PastRun(
                run.info.run_id,
                run.data.tags.get("mlflow.parentRunId"),
                dict(run.data.params),
                dict(run.data.metrics),
                dict(run.data.tags),
            )
            for run in page
        ]
        token = page.token
        if not token:
            break
    return found
