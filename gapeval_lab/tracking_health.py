"""How a store is: whether it answers, what lies in it, what is wrong. Creates and changes nothing."""

import contextlib
import importlib.util
import os
import re
import socket
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

from gapeval_lab.tracking_locks import try_lock
from gapeval_lab.tracking_store import Store, shown

ANSWER_SECONDS = 5.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
Found = TypeVar("Found")


@dataclass(frozen=True)
class Health:
    """What was seen of a store.

    Attributes:
        uri: without a password.
        exists: False where the first run will make it.
        error: why it cannot be used, "" where it can.
        fix: what to do about that.
        schema: of the database, and the one that the installed MLflow has; "" where it cannot be seen.
        wanted: see `schema`.
        runs: all that are not in the trash; None where they cannot be counted.
        running: those that stand as RUNNING; stale: those of them, of this machine, without an owner.
        moved: how many experiments have their artifacts in another project's folder.
        missing: how many experiments with finished runs have no artifact folder.
    """

    uri: str
    exists: bool = True
    error: str = ""
    fix: str = ""
    schema: str = ""
    wanted: str = ""
    runs: int | None = None
    running: int = 0
    stale: int = 0
    moved: int = 0
    missing: int = 0


def health(store: Store, *, seconds: float = ANSWER_SECONDS) -> Health:
    """Look at a store; gives up on one that does not answer within so many seconds."""
    uri = _without_secrets(store.uri)
    if store.database is not None:
        return _of_file(store, store.database, uri)
    scheme = urlsplit(store.uri).scheme
    if scheme in ("", "file"):
        fix = "use sqlite:////absolute/path/mlflow.db or a server's http address in MLFLOW_TRACKING_URI"
        return Health(uri, error="MLflow no longer writes to plain folders", fix=fix)
    fix = "start it, or unset MLFLOW_TRACKING_URI to use the project's own mlruns folder"
    error = _ping(store.uri, seconds)
    if error:
        return Health(uri, error=error, fix=fix)
    counted, error = within(lambda: _count(store), 4 * seconds)
    return Health(uri, error=error, fix=fix) if counted is None else counted


def within(ask: Callable[[], Found], seconds: float) -> tuple[Found | None, str]:
    """What a function gives, or in a line why it gave nothing in time. It is left to itself then."""
    found: list[Found] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(ask())
        except Exception as error:  # a diagnosis tells of errors, whatever they are
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if found:
        return found[0], ""
    return None, _line(failed[0]) if failed else f"no answer within {seconds:g} s"


def _of_file(store: Store, database: Path, uri: str) -> Health:
    if not database.exists():
        folder = next(place for place in database.parents if place.exists())
        # Our own folder is made by the first run; another one has to be there.
        if folder != database.parent and database.parent != store.folder:
            return Health(
                uri, error=f"there is no folder {database.parent}", fix=f"mkdir -p {database.parent}"
            )
        if not os.access(folder, os.W_OK):
            return Health(
                uri, error=f"{folder} cannot be written", fix="make it writable, or name another place"
            )
        return Health(uri, exists=False)
    fix = "bring a backup back, or set GAPEVAL_LAB_HOME to another folder"
    if not os.access(database, os.W_OK) or not os.access(database.parent, os.W_OK):
        return Health(uri, error=f"{database} cannot be written", fix="make it and its folder writable")
    try:
        connection = sqlite3.connect(f"file:{quote(str(database))}?mode=rw", uri=True, timeout=2)
        with contextlib.closing(connection):
            connection.execute("BEGIN IMMEDIATE")  # proves that it can be written, and writes nothing
            connection.execute("ROLLBACK")
            return _read(store, connection, uri)
    except sqlite3.OperationalError as error:
        busy = "locked" in str(error)
        return Health(uri, error=str(error), fix="wait for what writes to it, or stop that" if busy else fix)
    except sqlite3.Error as error:
        return Health(uri, error=str(error), fix=fix)


def _read(store: Store, connection: sqlite3.Connection, uri: str) -> Health:
    def one(query: str) -> str:
        row = connection.execute(query).fetchone()
        return str(row[0]) if row else ""

    live = "FROM runs WHERE lifecycle_stage = 'active'"
    query = (
        "SELECT h.value, l.value FROM runs r "
        "JOIN tags h ON h.run_uuid = r.run_uuid AND h.key = 'gapeval.host' "
        "JOIN tags l ON l.run_uuid = r.run_uuid AND l.key = 'gapeval.lock' "
        "WHERE r.status = 'RUNNING' AND r.lifecycle_stage = 'active'"
    )
    owners = connection.execute(query).fetchall()
    places = connection.execute(
        "SELECT e.artifact_location, COUNT(r.run_uuid) FROM experiments e LEFT JOIN runs r "
        "ON r.experiment_id = e.experiment_id AND r.status = 'FINISHED' "
        "WHERE e.lifecycle_stage = 'active' GROUP BY e.experiment_id"
    ).fetchall()
    local = [(_local(place), runs) for place, runs in places if place]
    ours = store.folder / "artifacts"
    moved = sum(
        place is not None
        and f"{os.sep}mlruns{os.sep}artifacts" in str(place)
        and not place.is_relative_to(ours)
        for place, _ in local
    )
    return Health(
        uri,
        schema=one("SELECT version_num FROM alembic_version"),
        wanted=_schema_of_mlflow(),
        runs=int(one(f"SELECT COUNT(*) {live}")),
        running=int(one(f"SELECT COUNT(*) {live} AND status = 'RUNNING'")),
        stale=sum(host == socket.gethostname() and not _held(Path(lock)) for host, lock in owners),
        moved=moved,
        missing=sum(bool(runs) and place is not None and not place.is_dir() for place, runs in local),
    )


def _held(lock: Path) -> bool:
    """Whether a run's owner is alive."""
    if not lock.exists():
        return False
    stream = try_lock(lock)
    if stream is None:
        return True
    stream.close()
    return False


def _schema_of_mlflow() -> str:
    """The newest schema that the installed MLflow knows, read from its migrations without importing it."""
    spec = importlib.util.find_spec("mlflow")
    if spec is None or not spec.origin:
        return ""
    known, older = set(), set()
    for file in (Path(spec.origin).parent / "store" / "db_migrations" / "versions").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        known |= set(re.findall(r"^revision(?:: \w+)? = [\"'](\w+)[\"']", text, flags=re.MULTILINE))
        older |= set(re.findall(r"^down_revision(?:: \w+)? = [\"'](\w+)[\"']", text, flags=re.MULTILINE))
    heads = known - older
    return heads.pop() if len(heads) == 1 else ""


def _ping(uri: str, seconds: float) -> str:
    """Why a server of MLflow or of a database does not answer, "" if it does."""
    parts = urlsplit(uri)
    try:
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
        if parts.hostname and port:
            socket.create_connection((parts.hostname, port), seconds).close()
        if parts.scheme not in ("http", "https"):
            return ""
        bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"
        with urllib.request.urlopen(bare, timeout=seconds) as reply:
            return "" if reply.status == 200 else f"it answers with {reply.status}"
    except urllib.error.HTTPError as error:  # a proxy before it may hide this page; the client will tell
        return "" if error.code in (401, 403, 404) else f"it answers with {error.code}"
    except (OSError, ValueError) as error:
        return f"no answer ({_line(error)})"


def _count(store: Store) -> Health:
    """Through MLflow's client: of a server or another kind of database."""
    ids = [identity for _, identity in store.experiments()]
    running = store.client.search_runs(ids, "attributes.status = 'RUNNING'", max_results=1000) if ids else []
    runs, token = 0, None
    while ids:
        page = store.client.search_runs(ids, max_results=1000, page_token=token)
        runs, token = runs + len(page), page.token
        if not token:
            break
    stale = sum(
        run.data.tags.get("gapeval.host") == socket.gethostname()
        and "gapeval.lock" in run.data.tags
        and not _held(Path(run.data.tags["gapeval.lock"]))
        for run in running
    )
    return Health(_without_secrets(store.uri), runs=runs, running=len(running), stale=stale)


def _local(place: str) -> Path | None:
    """A folder on this machine; None for a server's or a bucket's."""
    if place.startswith("file:"):
        return Path(unquote(urlsplit(place).path))
    return Path(place) if place.startswith("/") else None


def _without_secrets(uri: str) -> str:
    """Neither a password nor a query, which may hold one."""
    hidden = re.sub(r"//[^/@]*@(?=[^@]*$)", "//***@", uri) if shown(uri) == uri and "@" in uri else shown(uri)
    return re.sub(r"\?.*$", "?***", hidden)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = re.sub(r"//[^/\s@]*@", "//***@", lines[0]) if lines else type(error).__name__
    return text[:160]
