"""Where a study is kept: a journal file, or whatever Optuna has a storage for.

A journal is a text file with a line per event. A worker that is killed, or a full disk, may leave
half a line; whoever writes next cuts it off first, since Optuna could not read beyond it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from gapeval_lab.errors import UserError
from gapeval_lab.tracking_locks import file_lock
from gapeval_lab.tracking_store import shown

CONNECT_SECONDS = 5.0
JOURNAL_START = b'{"op_code":'
"""How every line begins that Optuna writes into a journal."""

PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306, "grpc": 13000}


class JournalLock:
    """Optuna's lock around a write, as a lock that the kernel frees when its holder dies."""

    def __init__(self, journal: Path) -> None:
        """See the class."""
        self._journal = journal
        self._held: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait for the lock; then the journal ends with a whole line."""
        self._held = self._journal.with_name(f"{self._journal.name}.lock").open("a")
        fcntl.flock(self._held, fcntl.LOCK_EX)
        cut_torn_line(self._journal)
        return True

    def release(self) -> None:
        """Let the next one write."""
        if self._held is not None:
            self._held.close()


def cut_torn_line(journal: Path) -> None:
    """Move what stands behind the last newline into `<journal>.torn`. The caller holds the lock."""
    with journal.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size == 0:
            return
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) == b"\n":
            return
        stream.seek(0)
        whole, newline, torn = stream.read().rpartition(b"\n")
        with journal.with_name(f"{journal.name}.torn").open("ab") as kept:
            kept.write(torn + b"\n")
        stream.truncate(len(whole) + len(newline))
        os.fsync(stream.fileno())


def check_journal(journal: Path) -> None:
    """Whether a file can be a journal; its first line, which may be torn or missing, decides.

    Raises:
        ValueError: it is something else, which nobody may cut or add to.
    """
    with journal.open("rb") as stream:
        start = stream.readline(len(JOURNAL_START))
    if not JOURNAL_START.startswith(start):
        raise ValueError("its first line is none that Optuna writes")


@dataclass(frozen=True)
class Place:
    """A storage that answers.

    Attributes:
        storage: Optuna's.
        words: what it is called in messages.
        lock: file to hold while a trial is handed out, on this machine (everywhere, for a journal).
        ours: every worker that uses it takes that lock.
    """

    storage: Any
    words: str
    lock: Path
    ours: bool


def open_place(where: str | None, *, folder: Path, study: str, make: bool = True) -> Place:
    """The storage of a study.

    Args:
        where: a URL that Optuna knows (sqlite, postgresql, mysql, grpc), the path of a journal file, or
            None for the journal `<folder>/<study>.journal`.
        folder: of the project's own studies.
        study: its name.
        make: make what is missing; otherwise no file is made or changed.

    Raises:
        UserError: nothing answers there, a driver is missing, or the file is damaged or something else.
    """
    _quiet_optuna()
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    if where is None or "://" not in where:
        journal = folder / f"{study}.journal" if where is None else Path(where).expanduser().absolute()
        lock = journal.with_name(f"{journal.name}.trials.lock")
        return Place(_journal(journal, make=make), str(journal), lock, ours=True)
    lock = folder / f"{study}.trials.lock"
    if not make:
        return Place(_served(where, make=False), shown(where), lock, ours=False)
    with file_lock(lock):  # two processes that make a database's tables at once break them
        return Place(_served(where, make=True), shown(where), lock, ours=False)


def _journal(path: Path, *, make: bool) -> Any:
    lock = JournalLock(path)
    try:
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        check_journal(path)
        if make:  # a reader passes over a torn line
            lock.acquire()
            lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise UserError(
            f"--storage: cannot {'write' if make else 'read'} {path} ({error.strerror}); choose another file"
        ) from None
    except (ValueError, KeyError) as error:
        raise UserError(
            f"--storage: {path} is no journal of a search, or is damaged ({error}); name another file, or "
            "bring back a copy of it"
        ) from None


def _served(url: str, *, make: bool) -> Any:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    try:
        if parts.hostname:
            port = parts.port or PORTS.get(scheme, 0)
            socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
        if scheme == "grpc":
            proxy = GrpcStorageProxy(host=parts.hostname or "localhost", port=parts.port or PORTS["grpc"])
            proxy.wait_server_ready(CONNECT_SECONDS)
            return proxy
        if scheme == "sqlite" and not make:
            Path(make_url(url).database or "").stat()  # to connect would make the file
        return RDBStorage(url, skip_table_creation=not make)
    except (SQLAlchemyError, StorageInternalError, OSError, ImportError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"--storage: {shown(url)} cannot be used ({shown(lines[0])[:200]}); start what should "
            "answer there, install its driver, or leave --storage out for a journal file of the project"
        ) from None


def _quiet_optuna() -> None:
    """Warnings alone, and none about features that Optuna calls experimental."""
    optuna.logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
