"""Processes beside this one: started, given their share of the cores, stopped; none is left behind.

Ctrl-C is the starter's alone to hear: it stops the others. Knows nothing of what they work at.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

STOP_SECONDS = 20.0
"""For a process to end what it began after it was told to stop."""

THREADS = "OMP_NUM_THREADS"


def start(target: Callable[..., None], *arguments: Any, variables: Mapping[str, str] | None = None) -> Any:
    """A fresh process at work.

    Args:
        target: what it does; picklable, as its arguments are.
        arguments: given to it.
        variables: of the environment, which it finds changed from the first line on.
    """
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    with environment(variables or {}), _deaf():
        process.start()
    return process


def stop(processes: Sequence[Any]) -> None:
    """End all of them: by SIGTERM, and by SIGKILL where that does not help."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + STOP_SECONDS
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def orphaned(parent: int) -> bool:
    """Whether the process that started this one is gone."""
    return os.getppid() != parent


def end_with_parent() -> None:
    """From now on this process ends, whatever it is at, when the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise ValueError("this process was not started by `start`")

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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


@contextlib.contextmanager
def environment(changed: Mapping[str, str]) -> Iterator[None]:
    """What is started in the block inherits these variables; afterwards they are as they were."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What is started in the block inherits that SIGINT is ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
