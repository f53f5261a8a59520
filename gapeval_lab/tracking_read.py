"""Runs as MLflow has them, read quickly: a few read-only queries where the store is a database file of ours.

Importing MLflow takes seconds, and its search fetches every metric of every run. Its client is used for what
is no such file (a server, another database), or has tables that are not as expected here.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gapeval_lab.errors import UserError
from gapeval_lab.tracking_filter import parse, to_sql
from gapeval_lab.tracking_store import Store, quiet_mlflow, shown

OURS = "gapeval/"  # how the names of our experiments begin
PAGE = 1000
_NEEDED = {
    "runs": {"run_uuid", "name", "status", "start_time", "artifact_uri", "experiment_id", "lifecycle_stage"},
    "latest_metrics": {"key", "value", "is_nan", "run_uuid"},
    "params": {"key", "value", "run_uuid"},
    "tags": {"key", "value", "run_uuid"},
    "experiments": {"experiment_id", "name", "lifecycle_stage"},
}


@dataclass(frozen=True)
class Logged:
    """A run as it stands in MLflow.

    Attributes:
        run_id: MLflow's.
        started: milliseconds since 1970.
        artifacts: their address.
        tags, params, metrics: those that were asked for.
    """

    run_id: str
    name: str
    status: str
    started: int
    artifacts: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def read_runs(
    store: Store,
    *,
    where: str | None = None,
    tags: Sequence[str] = (),
    params: Sequence[str] = (),
    metrics: Sequence[str] = (),
) -> list[Logged]:
    """Runs of our experiments, oldest first; none where nothing was ever stored.

    Args:
        store: where.
        where: a search filter in MLflow's syntax.
        tags, params, metrics: names of what is wanted; one that ends in '.' stands for all that begin so.

    Raises:
        UserError: the filter is none, or the store cannot be read.
    """
    clauses = parse(where or "")
    database = store.database
    if database is not None:
        if not database.exists():
            return []
        with _opened(database) as connection:
            if _as_expected(connection):
                return _select(connection, to_sql(clauses), tags=tags, params=params, metrics=metrics)
    return _search(store, where or "", tags=tags, params=params, metrics=metrics)


def local_artifacts(logged: Logged) -> Path | None:
    """The folder of a run's artifacts, where they lie on a disk of this machine."""
    parts = urlsplit(logged.artifacts)
    if parts.scheme not in ("", "file"):
        return None
    folder = Path(unquote(parts.path))
    return folder if folder.is_dir() else None


def fetch(store: Store, logged: Logged, path: str, into: Path) -> Path | None:
    """A run's artifact, copied into a folder through MLflow; None where the run has none of that path."""
    quiet_mlflow()
    from mlflow.exceptions import MlflowException

    into.mkdir(parents=True, exist_ok=True)
    try:
        return Path(store.client.download_artifacts(logged.run_id, path, str(into)))
    except (MlflowException, OSError):
        return None


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=20)
    except sqlite3.Error as error:
        raise UserError(f"tracking: {database} cannot be read ({error}); is it MLflow's database?") from None
    try:
        connection.execute("PRAGMA case_sensitive_like = true")
        yield connection
    except sqlite3.Error as error:
        raise UserError(f"tracking: {database} cannot be read ({error}); is it MLflow's database?") from None
    finally:
        connection.close()


def _as_expected(connection: sqlite3.Connection) -> bool:
    return all(
        columns <= {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        for table, columns in _NEEDED.items()
    )


def _select(
    connection: sqlite3.Connection,
    condition: tuple[str, list[Any]],
    *,
    tags: Sequence[str],
    params: Sequence[str],
    metrics: Sequence[str],
) -> list[Logged]:
    text, arguments = condition
    chosen = (
        "FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id WHERE e.name LIKE 'gapeval/%' "
        f"AND e.lifecycle_stage = 'active' AND r.lifecycle_stage = 'active' AND {text}"
    )
    columns = "r.run_uuid, r.name, r.status, r.start_time, r.artifact_uri"
    rows = connection.execute(f"SELECT {columns} {chosen} ORDER BY r.start_time, r.run_uuid", arguments)
    found = {
        run_id: Logged(run_id, name or "", status, started or 0, artifacts or "")
        for run_id, name, status, started, artifacts in rows
    }
    for table, names in (("tags", tags), ("params", params), ("latest_metrics", metrics)):
        begin = [name for name in names if name.endswith(".")]
        known = [name for name in names if not name.endswith(".")]
        tests = [f"key IN ({', '.join('?' * len(known))})", *("key LIKE ?" for _ in begin)]
        number = table == "latest_metrics"
        query = f"SELECT run_uuid, key, value FROM {table} WHERE ({' OR '.join(tests)})"
        query += " AND is_nan = 0" if number else ""
        attribute = "metrics" if number else table
        for run_id, key, value in connection.execute(query, [*known, *(f"{name}%" for name in begin)]):
            if run_id in found:
                getattr(found[run_id], attribute)[key] = value
    return list(found.values())


def _search(
    store: Store, where: str, *, tags: Sequence[str], params: Sequence[str], metrics: Sequence[str]
) -> list[Logged]:
    quiet_mlflow()
    from mlflow.exceptions import MlflowException

    def wanted(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        begin = tuple(name for name in names if name.endswith("."))
        return {k: v for k, v in values.items() if k in names or (begin and k.startswith(begin))}

    store._check_uri()
    store.ping()
    found: list[Logged] = []
    try:
        ids = [experiment_id for _, experiment_id in store.experiments()]
        token: str | None = None
        while ids:
            page = store.client.search_runs(
                ids, where, max_results=PAGE, order_by=["attributes.start_time ASC"], page_token=token
            )
            found += [
                Logged(
                    run.info.run_id,
                    run.info.run_name or "",
                    run.info.status,
                    run.info.start_time or 0,
                    run.info.artifact_uri or "",
                    wanted(run.data.tags, tags),
                    wanted(run.data.params, params),
                    wanted(run.data.metrics, metrics),
                )
                for run in page
            ]
            token = page.token
            if not token:
                break
    except MlflowException as error:
        raise UserError(
            f"tracking: {shown(store.uri)} does not answer ({str(error).splitlines()[0][:200]}); check the "
            "server and the filter"
        ) from None
    return found


def metric_names(store: Store) -> list[str]:
    """Names of all metrics in a database file; none where the store is no such file."""
    if store.database is None or not store.database.exists():
        return []
    with _opened(store.database) as connection:
        if not _as_expected(connection):
            return []
        return [row[0] for row in connection.execute("SELECT DISTINCT key FROM latest_metrics ORDER BY key")]
