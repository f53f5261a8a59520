"""When the next call may start, and an event loop for callers that have none.

Knows clocks and nothing of HTTP but the Retry-After header.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

T = TypeVar("T")


class Pace:
    """A token bucket that a whole client shares, and a door that the endpoint can shut for a while.

    The bucket holds one second's worth of calls, so that a minute never sees more than the limit and
    that second's worth.
    """

    def __init__(self, per_minute: float | None) -> None:
        """None: no limit."""
        self._rate = None if per_minute is None else per_minute / 60.0
        self._size = max(1.0, self._rate or 1.0)
        self._tokens = self._size
        self._filled: float | None = None
        self._shut_until = self._told_until = 0.0
        self._turn = asyncio.Lock()

    def told_to_wait(self, seconds: float) -> None:
        """The endpoint asked one call to wait. If it asks a second one meanwhile, all of us wait."""
        now = asyncio.get_running_loop().time()
        if now < self._told_until:
            self._shut_until = max(self._shut_until, now + seconds)
        self._told_until = max(self._told_until, now + seconds)

    async def turn(self) -> None:
        """Wait until a call may start."""
        loop = asyncio.get_running_loop()
        async with self._turn:  # first come, first served
            while (left := self._left(loop.time())) > 0:
                await asyncio.sleep(left)
            self._tokens -= 1.0

    def _left(self, now: float) -> float:
        """Seconds until a call may start."""
        self._fill(now)
        missing = 0.0 if self._rate is None else (1.0 - self._tokens) / self._rate
        return max(self._shut_until - now, missing)

    def _fill(self, now: float) -> None:
        if self._rate is not None:
            before = now if self._filled is None else self._filled
            # A billionth more, so that rounding never leaves a wait too short to pass.
            self._tokens = min(self._size, self._tokens + (now - before) * self._rate + 1e-9)
        self._filled = now


def jittered(retry: int, *, backoff: float, longest: float, chance: random.Random) -> float:
    """Seconds before a retry, the first being 1: uniform between 0 and the doubled, capped time."""
    return chance.uniform(0.0, min(longest, backoff * 2.0 ** min(retry - 1, 60)))


def asked_to_wait(header: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date; None where it says neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None  # not for NaN


def run_blocking(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, also where an event loop is running already (in a thread then).

    An interrupt of the caller cancels the coroutine and waits until it has cleaned up.
    """
    if not _is_running():
        return asyncio.run(main())
    results: list[T] = []
    errors: list[BaseException] = []
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def noted() -> T:
        task = asyncio.current_task()
        if task is not None:
            started.append((asyncio.get_running_loop(), task))
        return await main()

    def work() -> None:
        try:
            results.append(asyncio.run(noted()))
        except BaseException as error:  # handed to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=work, name="endpoint", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        for loop, task in started:
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)
        thread.join(10.0)
        raise
    if errors:
        raise errors[0]
    return results[0]


def _is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
