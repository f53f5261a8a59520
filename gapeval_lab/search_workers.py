"""Several processes at one study: started, looked after, stopped; none is left behind.

The process that was started by the user works, too. It alone hears Ctrl-C, and passes it on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from gapeval_lab.tracking_stop import sigterm_raises

RESPAWNS = 3
"""How many killed workers are replaced; one that fails by itself is not."""

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a worker that SIGTERM found at work."""

STOP_SECONDS = 20.0
"""For a worker to close its trial after it was told to stop."""

THREADS = "OMP_NUM_THREADS"


class WorkerFailed(Exception):
    """A worker ended by an error of its own; it has told which one."""


class Crew:
    """The other workers of a command."""

    def __init__(self, work: Callable[[], None], others: int) -> None:
        """See `crew`."""
        self._work = work
        self._left = RESPAWNS
        self._processes = [self._start() for _ in range(others)]

    def tend(self) -> bool:
        """Replace killed workers; whether any is at work.

        Raises:
            WorkerFailed: see there.
        """
        for process in list(self._processes):
            if process.exitcode is None:
                continue
            self._processes.remove(process)
            killed = process.exitcode < 0 or process.exitcode == TERMINATED
            if process.exitcode > 0 and not killed:
                raise WorkerFailed(f"worker {process.pid} ended with code {process.exitcode}")
            if killed and self._left > 0:
                self._left -= 1
                self._processes.append(self._start())
        return bool(self._processes)

    def stop(self) -> None:
        """End all of them: by SIGTERM, and by SIGKILL where that does not help."""
        for process in self._processes:
            process.terminate()
        end = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def _start(self) -> Any:
        process = multiprocessing.get_context("spawn").Process(
            target=_worker, args=(self._work, os.getpid()), daemon=True
        )
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: a Ctrl-C is the parent's alone
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        return process


@contextlib.contextmanager
def crew(work: Callable[[], None], others: int) -> Iterator[Crew]:
    """So many workers beside this one; they are gone when the block is left.

    Args:
        work: what each of them does; it must be picklable.
        others: how many.
    """
    found = Crew(work, others)
    try:
        yield found
    finally:
        found.stop()


@contextlib.contextmanager
def shared_threads(workers: int) -> Iterator[None]:
    """Each worker gets its share of the cores; a number that the user has set stays.

    The variable reaches the other workers, and what this process imports later; torch, which loading
    a recipe may have imported, read it then and has to be told.
    """
    if workers == 1 or THREADS in os.environ:
        yield
        return
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else share
    os.environ[THREADS] = str(share)
    try:
        if torch is not None:
            torch.set_num_threads(share)
        yield
    finally:
        del os.environ[THREADS]
        if torch is not None:
            torch.set_num_threads(before)


def orphaned(parent: int) -> bool:
    """Whether the process that started this one is gone."""
    return os.getppid() != parent


def _worker(work: Callable[[], None], parent: int) -> None:
    with sigterm_raises():
        if not orphaned(parent):
            work()
