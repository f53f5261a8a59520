"""Signals: SIGTERM as an exception, so that what was begun can be ended; and signals that wait."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class Stopped(SystemExit):
    """SIGTERM arrived (a scheduler's or a container's stop). Ends the process with code 143."""


class LeftElsewhere(Exception):
    """Ends a run for what was raised in another process; its words are that error's.

    Attributes:
        stopped: whether it was a stop (Ctrl-C, SIGTERM), and not a failure.
    """

    def __init__(self, words: str, *, stopped: bool) -> None:
        """With the words of the error."""
        super().__init__(words)
        self.stopped = stopped


def stops(error: BaseException) -> bool:
    """Whether it says that somebody stopped the run."""
    return (
        isinstance(error, LeftElsewhere) and error.stopped or isinstance(error, KeyboardInterrupt | Stopped)
    )


def error_words(error: BaseException) -> str:
    """An error's kind and its words, for the tag that says how a run ended."""
    if isinstance(error, LeftElsewhere):
        return str(error)
    return f"{type(error).__name__}: {error}".strip().removesuffix(":")[:500]


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into `Stopped` inside the block, so that it can clean up.

    Only the main thread can do that; elsewhere SIGTERM keeps its effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        # A second one must not interrupt the cleaning up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block is left, so that what it does is done whole.

    For short blocks alone. Only the main thread can do that; elsewhere signals are not heard anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        came.append(number)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, wait)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if came:
            signal.raise_signal(came[0])
