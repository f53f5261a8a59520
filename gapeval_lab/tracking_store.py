"""Where runs are stored: the database, the artifacts, the locks, and the runs that lost their owner.

Knows MLflow's client and the file system; refuses to know what an outcome is. MLflow is imported
when a store is first used, never when this module is.
"""

import contextlib
import getpass
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gapeval_lab.errors import UserError
from gapeval_lab.home import home
from gapeval_lab.tracking_locks import file_lock, lock_of_orphan, try_lock

EXPERIMENT_NOTE = (
    "**Lower Gap Score is better**; `delta/…` = after − before, so **negative = gap closed**. "
    "Start with **Views → 0 · Leaderboard**."
)
CONNECT_SECONDS = 5.0
GATEWAY_DOWN = (502, 503, 504)
HTTP_DEFAULTS = {"MAX_RETRIES": "1", "BACKOFF_FACTOR": "1", "TIMEOUT": "30"}
"""MLflow's own would try a dead server for minutes, at every call."""


class Unreachable(UserError):
    """The server does not answer, now. A run goes on without it, see `tracking_patient`."""


def user_name() -> str:
    """The name of whoever runs this; 'unknown' where the system has none (bare containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@dataclass(frozen=True)
class Store:
    """A place for runs.

    Attributes:
        root: the project's folder; locks, and artifacts unless a server keeps them, lie in its `mlruns`.
        uri: MLflow's tracking URI.
        master: the lock that a process holds for which this one logs; see `tracking_process`.
    """

    root: Path
    uri: str
    master: Path | None = None

    @staticmethod
    def open(root: Path | None = None) -> "Store":
        """The store that the environment asks for; touches no file.

        The URI is the user's MLFLOW_TRACKING_URI where it is set, else the database in
        `<root>/mlruns`. The root is the argument, else GAPEVAL_LAB_HOME, else the project around the
        current directory.
        """
        place = (root or home()).resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place / 'mlruns' / 'mlflow.db'}"
        return Store(place, uri)

    @property
    def folder(self) -> Path:
        """`<root>/mlruns`."""
        return self.root / "mlruns"

    @property
    def artifacts(self) -> Path:
        """Where artifacts lie, unless a server keeps them."""
        return self.folder / "artifacts"

    @property
    def locks(self) -> Path:
        """Where lock files lie: `init.lock`, and one per run that is running."""
        return self.folder / "locks"

    @property
    def served(self) -> bool:
        """True where an MLflow server stands between us and the database."""
        return urlsplit(self.uri).scheme in ("http", "https")

    @property
    def database(self) -> Path | None:
        """The database file, if the store is a sqlite file."""
        prefix = "sqlite:///"
        return Path(self.uri.removeprefix(prefix)).absolute() if self.uri.startswith(prefix) else None

    @cached_property
    def client(self) -> Any:
        """MLflow's client for this store. The fluent API is not used: it writes to the environment."""
        quiet_mlflow()
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def check(self) -> None:
        """Make sure that runs can be stored, before any work is done.

        Creates the folders and the database where they are missing, and upgrades an older database
        (a copy is kept beside it), under an exclusive lock: MLflow itself breaks a database for good
        when several processes create it at once.

        Raises:
            UserError: the place cannot be written, or the server or database cannot be reached.
        """
        self.look()
        quiet_mlflow()
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self.ping()
        try:
            if self.database is not None:
                with file_lock(self.locks / "init.lock"):
                    _prepare_database(self.database, self.artifacts)
            self.client.search_experiments(max_results=1)
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            if self.served and getattr(error, "get_http_status_code", lambda: 500)() >= 500:
                raise Unreachable(self._no_answer(first_line(error))) from error
            raise UserError(
                f"tracking: the store {shown(self.uri)} cannot be used ({first_line(error)}); set "
                "MLFLOW_TRACKING_URI to one that can, or unset it to use the project's own mlruns folder"
            ) from error

    def look(self) -> None:
        """As much of `check` as can be done at once, without MLflow: its address, and our folders.

        Raises:
            UserError: the address is none, or the place cannot be written.
        """
        self._check_uri()
        self._make_folders()

    def _check_uri(self) -> None:
        try:
            parts = urlsplit(self.uri)
        except ValueError as error:
            raise UserError(f"MLFLOW_TRACKING_URI: '{shown(self.uri)}' is no address ({error})") from None
        if parts.scheme in ("", "file"):
            raise UserError(
                f"MLFLOW_TRACKING_URI: '{self.uri}' is a plain folder, which MLflow no longer writes to; use "
                "sqlite:////absolute/path/mlflow.db or the http address of a server, or unset it"
            )

    def ping(self) -> None:
        """Ask a server whether it is there, for a few seconds; nothing where there is no server.

        Whatever it replies is an answer: what it lets us do is told by the calls themselves.

        Raises:
            Unreachable: it does not answer.
        """
        if not self.served:
            return
        import requests

        try:
            address = f"{self.uri.rstrip('/')}/health"
            code = requests.get(address, timeout=CONNECT_SECONDS, allow_redirects=False).status_code
        except requests.exceptions.SSLError:
            return  # MLflow has its own settings for certificates
        except requests.exceptions.ConnectionError as error:
            raise Unreachable(self._no_answer(_refusal(error))) from None
        except requests.exceptions.Timeout:
            raise Unreachable(self._no_answer(f"none within {CONNECT_SECONDS:.0f} s")) from None
        except (requests.exceptions.RequestException, ValueError) as error:
            raise UserError(
                f"MLFLOW_TRACKING_URI: {shown(self.uri)} is no address ({first_line(error)})"
            ) from None
        if code in GATEWAY_DOWN:
            raise Unreachable(self._no_answer(f"HTTP {code}"))

    def _no_answer(self, why: str) -> str:
        return (
            f"MLFLOW_TRACKING_URI: no answer from {shown(self.uri)} ({why}); "
            "start the server there, or unset the variable to use the project's own mlruns folder"
        )

    def _make_folders(self) -> None:
        """Create what is missing, and prove by writing that the folder can be written."""
        created = not self.folder.exists()
        try:
            self.locks.mkdir(parents=True, exist_ok=True)
            self.artifacts.mkdir(exist_ok=True)
            if created:
                (self.folder / ".gitignore").write_text("*\n", encoding="utf-8")
            probe = self.locks / f"probe-{socket.gethostname()}-{os.getpid()}"
            probe.touch()
            probe.unlink()
            database = self.database
            if database is not None and database.exists() and not os.access(database, os.W_OK):
                raise PermissionError(13, "the database file is read-only", str(database))
        except OSError as error:
            raise UserError(
                f"tracking: cannot write {error.filename or self.folder} ({error.strerror}); make it "
                "writable, or set GAPEVAL_LAB_HOME to a folder that is"
            ) from None

    def experiment(self, name: str) -> str:
        """The id of the experiment of that name, created with our note where it is missing.

        Raises:
            UserError: the experiment is in MLflow's trash.
        """
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            # A server decides where its artifacts lie; otherwise MLflow would take the current directory.
            safe = re.sub(r"[^\w.-]+", "-", name)
            location = None if self.served else (self.artifacts / safe).as_uri()
            try:
                return str(
                    self.client.create_experiment(name, location, {"mlflow.note.content": EXPERIMENT_NOTE})
                )
            except MlflowException:
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise UserError(
                f"tracking: experiment '{name}' is deleted; bring it back with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or rename the model"
            )
        return str(found.experiment_id)

    def experiments(self) -> list[tuple[str, str]]:
        """(name, id) of every experiment of ours, newest first."""
        found = self.client.search_experiments(
            filter_string="name LIKE 'gapeval/%'", order_by=["last_update_time DESC"]
        )
        return [(experiment.name, str(experiment.experiment_id)) for experiment in found]

    def lock_path(self, run_id: str) -> Path:
        """The lock file that the owner of a run holds while it runs."""
        return self.locks / f"{run_id}.lock"

    def starting(self) -> contextlib.AbstractContextManager[None]:
        """Held while a run is created or adopted and its lock taken: `reconcile` sees both or none."""
        return file_lock(self.locks / "start.lock")

    def reconcile(self) -> list[str]:
        """End every run that stands as RUNNING but whose owner is gone; returns their ids.

        They become KILLED, trials FAILED. Only runs of this host are judged: the lock of another
        machine's run says nothing here.
        """
        ids = [experiment_id for _, experiment_id in self.experiments()]
        if not ids:
            return []
        gone = []
        with self.starting():
            running = self.client.search_runs(ids, "attributes.status = 'RUNNING'", max_results=1000)
            for run in running:
                tags = run.data.tags
                if tags.get("gapeval.host") != socket.gethostname() or "gapeval.lock" not in tags:
                    continue
                path = Path(tags["gapeval.lock"])
                # An owner removes its file only after it has closed its run, so a missing file has no owner.
                if path.exists():
                    lock = try_lock(path) or lock_of_orphan(path)
                    if lock is None:
                        continue
                    # An owner that ended after it was opened here has removed it.
                    path.unlink(missing_ok=True)
                    lock.close()
                if self.client.get_run(run.info.run_id).info.status != "RUNNING":
                    continue  # its owner closed it since the search
                stage = tags.get("gapeval.stage", "start")
                self.client.set_tag(run.info.run_id, "gapeval.end", f"owner gone during {stage}")
                self.client.set_terminated(run.info.run_id, stopped_as(tags), _last_sign_of_life(tags))
                gone.append(run.info.run_id)
        return gone


def stopped_as(tags: Mapping[str, str]) -> str:
    """The status of a run that was stopped: a trial is never continued, so it has failed."""
    return "FAILED" if tags.get("kind") == "trial" else "KILLED"


def _last_sign_of_life(tags: dict[str, str]) -> int:
    """Milliseconds since the epoch: a killed run ended when it was last heard of, not when it was found."""
    return int(float(tags.get("gapeval.heartbeat", time.time())) * 1000)


def quiet_mlflow() -> None:
    """Settings that MLflow reads when it is imported or used; a value set by the user stays."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name, value in HTTP_DEFAULTS.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    for name in ("alembic", "mlflow.store.db"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _prepare_database(database: Path, artifacts: Path) -> None:
    """Create or upgrade the database file. The caller holds the lock.

    A new database is made under another name and renamed: a kill while MLflow creates its sixty tables
    would leave a file that no later process can repair.
    """
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_alembic_config, _get_schema_version, _upgrade_db
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import create_engine

    if not database.exists() or database.stat().st_size == 0:
        unfinished = database.with_name(database.name + ".unfinished")
        unfinished.unlink(missing_ok=True)
        store = SqlAlchemyStore(f"sqlite:///{unfinished}", artifacts.as_uri())
        store.engine.dispose()
        os.replace(unfinished, database)
        return
    engine = create_engine(f"sqlite:///{database}")
    try:
        version = _get_schema_version(engine)
        known = ScriptDirectory.from_config(_get_alembic_config(""))
        if version is None or version == known.get_current_head():
            return
        try:
            known.get_revision(version)
        except CommandError:
            raise UserError(
                f"tracking: {database} was written by a newer MLflow (schema {version}); install that "
                "version, or set GAPEVAL_LAB_HOME to another folder"
            ) from None
        shutil.copy2(database, database.with_name(f"{database.name}.before-upgrade-{version}"))
        _upgrade_db(engine)
    finally:
        engine.dispose()


def shown(uri: str) -> str:
    """The URI without a password."""
    return re.sub(r"//([^/:@]*):[^@/]*@", r"//\1:***@", uri)


def first_line(error: BaseException) -> str:
    """The beginning of an error's words, without a password."""
    lines = str(error).strip().splitlines()
    return shown(lines[0])[:200] if lines else type(error).__name__


def _refusal(error: BaseException) -> str:
    """The system's own words in an error of a connection ('Connection refused'), or the error's."""
    found: BaseException | None = error
    for _ in range(8):
        if found is None:
            break
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        inner = next((one for one in found.args if isinstance(one, BaseException)), None)
        found = getattr(found, "reason", None) or found.__cause__ or found.__context__ or inner
        if not isinstance(found, BaseException):
            break
    return first_line(error)
