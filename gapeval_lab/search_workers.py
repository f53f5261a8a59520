"""Several processes at one study: started, looked after, stopped; none is left behind.

The process that was started by the user works, too. It alone hears Ctrl-C, and passes it on.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from gapeval_lab.processes import orphaned, start, stop
from gapeval_lab.tracking_stop import sigterm_raises

RESPAWNS = 3
"""How many killed workers are replaced; one that fails by itself is not."""

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a worker that SIGTERM found at work."""


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
        """End all of them, see `processes.stop`."""
        stop(self._processes)

    def _start(self) -> Any:
        return start(_worker, self._work, os.getpid())


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


def _worker(work: Callable[[], None], parent: int) -> None:
    with sigterm_raises():
        if not orphaned(parent):
            work()
