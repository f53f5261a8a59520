"""Many jobs at an OpenAI-style endpoint at a time: started in order, told as they end, stopped together.

A job is a coroutine function that is lent a `Caller` and may call several times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from gapeval_lab.endpoint import CallFailed, ChatEndpoint, CostReached, EndpointStopped, Ledger
from gapeval_lab.endpoint_client import Caller, lent_caller
from gapeval_lab.endpoint_pace import run_blocking

T = TypeVar("T")

Job = Callable[[Caller], Awaitable[T]]
Arrived = Callable[[Mapping[int, T | CallFailed]], object]

FAILURES_IN_A_ROW = 10
"""Jobs that may fail one after the other, none succeeding between, before the endpoint counts as gone."""


def run_jobs(
    endpoint: ChatEndpoint, jobs: Sequence[Job[T]], *, ledger: Ledger, arrived: Arrived[T] | None = None
) -> list[T | CallFailed | CostReached]:
    """Run every job, `endpoint.concurrency` calls at a time; works with and without a running event loop.

    Args:
        endpoint: whom to ask, and how.
        jobs: started in order.
        ledger: what was spent before; added to.
        arrived: told what jobs gave, by their index, soon after they end: in another thread, never twice at a
            time, and of all that ended before this returns or raises.

    Returns:
        per job, in order: its result, or what kept it from one. Once a job met CostReached, no further
        one is started.

    Raises:
        EndpointStopped: the endpoint refuses what it is sent, or is gone.
        UserError: there is no key, or the package is not installed.
        Exception: whatever `arrived` raises; no further job is started then.
    """
    if not jobs:
        return []
    return run_blocking(lambda: _run(endpoint, jobs, ledger, arrived))


async def _run(
    endpoint: ChatEndpoint, jobs: Sequence[Job[T]], ledger: Ledger, arrived: Arrived[T] | None
) -> list[T | CallFailed | CostReached]:
    results: dict[int, T | CallFailed | CostReached] = {}
    ended: asyncio.Queue[tuple[int, T | CallFailed] | None] = asyncio.Queue()
    waiting = iter(enumerate(jobs))
    spent: list[CostReached] = []
    in_a_row = 0

    async def work(caller: Caller) -> None:
        nonlocal in_a_row
        for index, job in waiting:
            if spent:
                results[index] = spent[0]
                continue
            result: T | CallFailed
            try:
                result = await job(caller)
                in_a_row = 0
            except CostReached as reached:
                spent.append(reached)
                results[index] = reached
                continue
            except CallFailed as failed:
                result = failed
                in_a_row += not failed.refused
            results[index] = result
            ended.put_nowait((index, result))
            if isinstance(result, CallFailed) and in_a_row >= FAILURES_IN_A_ROW:
                raise EndpointStopped(
                    f"base_url: {endpoint.base_url} failed {in_a_row} jobs in a row (the last: {result}); "
                    "see whether it runs, then run again: what is finished is kept"
                )

    async def tell() -> None:
        """What has ended, as much at a time as there is: a slow disk holds up no call."""
        going = True
        while going:
            taken = [await ended.get()]
            while not ended.empty():
                taken.append(ended.get_nowait())
            going = taken[-1] is not None
            found = dict(one for one in taken if one is not None)
            if arrived is not None and found:
                await asyncio.to_thread(arrived, found)

    async with lent_caller(endpoint, ledger) as caller:
        workers = [asyncio.create_task(work(caller)) for _ in range(min(endpoint.concurrency, len(jobs)))]
        working, telling = asyncio.gather(*workers), asyncio.create_task(tell())
        try:
            # Telling ends first only where it fails.
            both: list[asyncio.Future[Any]] = [working, telling]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            ended.put_nowait(None)
            await telling
    working.result()  # raises what stopped them, if anything did
    return [results[index] for index in range(len(jobs))]
