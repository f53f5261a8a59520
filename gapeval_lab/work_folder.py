"""The folder that a run works in: locked while it runs, whole after a kill, moved when it is finished."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from gapeval_lab.errors import UserError
from gapeval_lab.fitting import WORKING

ALONE = "alone"
"""The folder, in a working folder, that a repetition has in the place of the shared caches."""


@contextlib.contextmanager
def working_folder(home: Path, key: str) -> Iterator[Path]:
    """The folder of one run, locked while the block runs; its content outlives a kill.

    Raises:
        UserError: another process runs the same thing, or the folder cannot be written.
    """
    folder = home / "work" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (home / "work" / f"{key}.lock").open("w")
    except OSError as error:
        raise UserError(
            f"store: cannot write {folder} ({error.strerror}); set GAPEVAL_LAB_HOME to a folder that can be "
            "written"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(
            "run: this very recipe is running already; wait for it, or change something (--set seed=1)"
        ) from None
    with lock:
        yield folder


def archive(work: Path, place: Path) -> Path:
    """Move a finished run's folder to where it stays; responses kept for resuming are dropped."""
    for phase in ("after", *(p.name for p in work.glob("after-*")), "identity", "placebo", ALONE):
        shutil.rmtree(work / phase, ignore_errors=True)
    for leftover in WORKING:
        for file in (work / leftover, *work.glob(f"stages/*/{leftover}")):
            file.unlink(missing_ok=True)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(work, place)
    except OSError as error:
        raise UserError(f"--out: cannot write {place} ({error.strerror}); choose another folder") from None
    return place
