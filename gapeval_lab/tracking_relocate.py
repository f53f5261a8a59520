"""A local store after its project's folder was moved: the absolute paths in its database, put right.

MLflow stores where artifacts lie as absolute paths. Those that point into a `mlruns` folder other than
the store's own are rewritten to it; whatever else stands in the database is left alone.
"""

import contextlib
import datetime
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from gapeval_lab.errors import UserError
from gapeval_lab.tracking_locks import file_lock, try_lock
from gapeval_lab.tracking_store import Store

COLUMNS = (
    ("experiments", "artifact_location", ""),
    ("runs", "artifact_uri", ""),
    ("logged_models", "artifact_location", ""),
    ("trace_tags", "value", "key = 'mlflow.artifactLocation'"),
    ("tags", "value", "key = 'gapeval.lock'"),
    ("model_versions", "source", ""),
    ("model_versions", "storage_location", ""),
    ("datasets", "dataset_source", ""),
)
"""(table, column, which rows): everywhere that MLflow, and we, keep an absolute path."""

_OURS = re.compile(r"^(?:file://)?(/.*?/mlruns)/artifacts(?:/|$)")


@dataclass(frozen=True)
class Change:
    """What is rewritten in one column."""

    table: str
    column: str
    rows: int


@dataclass(frozen=True)
class Relocation:
    """What has to be rewritten.

    Attributes:
        database: the file.
        old: the `mlruns` folders that paths point into.
        new: the one that they should.
        changes: per column.
    """

    database: Path
    old: tuple[str, ...]
    new: str
    changes: tuple[Change, ...]


def find_moved(store: Store) -> Relocation:
    """What a store's database says of places where the store no longer is. Changes nothing.

    Raises:
        UserError: the store is no local database, or the database cannot be read.
    """
    database = store.database
    if database is None or not database.is_file():
        lacking = "the store is no local file" if database is None else f"there is no database {database}"
        raise UserError(f"--relocate: {lacking}; it puts right the paths in a local store alone")
    try:
        with _connected(database, write=False) as connection:
            old = tuple(sorted(_old_folders(connection, store.folder)))
            changes = tuple(_rewrite(connection, old, str(store.folder), write=False))
    except sqlite3.Error as error:
        raise UserError(f"--relocate: {database} cannot be read ({error}); bring a backup back") from None
    return Relocation(database, old, str(store.folder), changes)


def relocate(store: Store) -> tuple[Relocation, Path]:
    """Rewrite the paths, after a copy of the database was made; returns what was done, and the copy.

    Raises:
        UserError: runs are going on, or the database cannot be written.
    """
    store.locks.mkdir(parents=True, exist_ok=True)
    with file_lock(store.locks / "init.lock"), file_lock(store.locks / "start.lock"):
        found = find_moved(store)
        _refuse_if_running(store)
        stamp = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}"
        backup = found.database.with_name(f"{found.database.name}.before-relocation-{stamp}")
        try:
            with (
                _connected(found.database, write=False) as connection,
                contextlib.closing(sqlite3.connect(backup)) as copy,
            ):
                connection.backup(copy)
            with _connected(found.database, write=True) as connection, connection:
                for _ in _rewrite(connection, found.old, found.new, write=True):
                    pass
        except sqlite3.Error as error:
            raise UserError(
                f"--relocate: {found.database} cannot be written ({error}); stop what uses it, and try again"
            ) from None
    return found, backup


def _refuse_if_running(store: Store) -> None:
    for path in store.locks.glob("*.lock"):
        if re.fullmatch(r"[0-9a-f]{32}", path.stem):
            lock = try_lock(path)
            if lock is None:
                raise UserError(f"--relocate: run {path.stem} is going on; wait for it, or stop it first")
            lock.close()


@contextlib.contextmanager
def _connected(database: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(database))}?mode={'rw' if write else 'ro'}"
    connection = sqlite3.connect(uri, uri=True, timeout=10)
    try:
        yield connection
    finally:
        connection.close()


def _old_folders(connection: sqlite3.Connection, new: Path) -> set[str]:
    """The `mlruns` folders, as plain paths, that artifacts are said to lie in and that are not this one."""
    found = set()
    for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
        for (value,) in connection.execute(
            f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL"
        ):
            matched = _OURS.match(value)
            if matched:
                found.add(unquote(matched[1]) if value.startswith("file:") else matched[1])
    return found - {str(new)}


def _rewrite(
    connection: sqlite3.Connection, old: tuple[str, ...], new: str, *, write: bool
) -> Iterator[Change]:
    """Count, and if asked rewrite, what begins with an old path, or as JSON holds one; column by column."""
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    pairs = [(form(one) + "/", form(new) + "/") for one in old for form in (_as_uri, str)]
    for table, column, where in COLUMNS:
        if table not in there:
            continue
        rows = 0
        query = f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL"
        for rowid, value in connection.execute(query + (f" AND {where}" if where else "")).fetchall():
            moved = _moved(value, pairs, inside=column == "dataset_source")
            if moved != value:
                rows += 1
                if write:
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (moved, rowid))
        if rows:
            yield Change(table, column, rows)


def _moved(value: str, pairs: list[tuple[str, str]], *, inside: bool) -> str:
    for old, new in pairs:
        if value.startswith(old):
            return new + value[len(old) :]
        if inside and f'"{old}' in value:  # a JSON object that holds the path as a text
            return value.replace(f'"{old}', f'"{new}')
    return value


def _as_uri(path: str) -> str:
    return Path(path).as_uri()
