"""Locks on files: who works on what, known to all processes of a machine, and free when its holder dies."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ENDING_SECONDS = 60.0
"""How long a process may take to end after the one that it works for; starved by others, it needs seconds."""


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; waits for it. The kernel frees it when the holder dies."""
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def try_lock(path: Path) -> IO[str] | None:
    """The open, locked file, or None where another process (or another handle) holds the lock.

    Closing the stream frees the lock.
    """
    stream = path.open("a")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


def name_master(lock: IO[str], master: Path | None) -> None:
    """Write into a lock of ours the lock of the process that we work for; nothing where we work for none."""
    lock.truncate(0)
    if master is not None:
        lock.write(str(master))
    lock.flush()


def lock_of_orphan(path: Path) -> IO[str] | None:
    """A lock whose holder works for a process that is gone, so that it is about to end: waits until it has.

    None where the holder is nobody's, or its master lives.
    """
    try:
        master = path.read_text()
    except OSError:
        return None
    if not master or not removed_if_free(Path(master)):
        return None
    ends = time.monotonic() + ENDING_SECONDS
    while (lock := try_lock(path)) is None and time.monotonic() < ends:
        time.sleep(0.02)
    return lock


def removed_if_free(path: Path) -> bool:
    """Whether nobody holds a lock; its file is removed then, if it is still there."""
    if not path.exists():
        return True
    lock = try_lock(path)
    if lock is None:
        return False
    # A holder that ended after it was opened here has removed it.
    path.unlink(missing_ok=True)
    lock.close()
    return True
