"""The workers as the process that asks sees them: a process of this machine, or an actor of Ray.

Both run `Resident`; a hand gives it jobs one at a time and says when it is gone.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from gapeval_lab import processes
from gapeval_lab.errors import SafetyError, UserError
from gapeval_lab.items import Response
from gapeval_lab.shards_worker import Failure, Job, Load, Reply, Resident, serve

Engine = Literal["processes", "ray"]

VISIBLE = "CUDA_VISIBLE_DEVICES"
END_SECONDS = 5.0
"""For a process whose connection broke to be gone."""


class Lost(Exception):
    """A worker ended, whatever the reason; what it was at is not done."""


class WorkerFailed(RuntimeError):
    """A defect showed in a worker; the message holds its traceback."""


class Hand(Protocol):
    """One worker. `ready` and `ask` block, and raise `Lost`, UserError, SafetyError or WorkerFailed."""

    name: str

    def ready(self) -> None:
        """Wait until its model is loaded."""
        ...

    def ask(self, job: Job) -> Sequence[Response]:
        """Have a job done; returns the errors among the responses."""
        ...

    def stop(self) -> None:
        """End it, whatever it is at."""
        ...


class ProcessHand:
    """A process of this machine with a pipe to it."""

    def __init__(self, number: int, load: Load, device: str | None) -> None:
        """Start it.

        Args:
            number: for its name.
            load: loads the model.
            device: the one GPU that it is to see; None: it sees what this process sees.
        """
        here, there = multiprocessing.get_context("spawn").Pipe()
        seen = {} if device is None else {VISIBLE: device}
        self._process = processes.start(serve, there, load, variables=seen)
        there.close()  # now its end alone is open, so that its end is heard here
        self._connection = here
        self.name = f"worker {number} (pid {self._process.pid})"

    def ready(self) -> None:
        """See `Hand`."""
        _loaded(self.name, self._reply())

    def ask(self, job: Job) -> Sequence[Response]:
        """See `Hand`."""
        try:
            self._connection.send(job)
        except OSError:
            raise self._lost() from None
        return _given(self.name, self._reply())

    def stop(self) -> None:
        """See `Hand`."""
        processes.stop([self._process])

    def _reply(self) -> Reply:
        try:
            reply: Reply = self._connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        return reply

    def _lost(self) -> Lost:
        self._process.join(END_SECONDS)
        return Lost(f"{self.name} ended with code {self._process.exitcode}")


class RayHand:
    """An actor of Ray, anywhere in its cluster; the store's folder must be there, too."""

    def __init__(self, number: int, load: Load, *, gpus: int, threads: int) -> None:
        """Have it started, when Ray has room for it.

        Args:
            number: for its name.
            load: loads the model.
            gpus: that it has for itself.
            threads: cores that it may use.
        """
        import ray

        actor = ray.remote(Resident).options(
            num_gpus=gpus,
            num_cpus=threads,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {processes.THREADS: str(threads)}},
        )
        self._actor = actor.remote(load)
        self.name = f"worker {number} (Ray)"

    def ready(self) -> None:
        """See `Hand`."""
        _loaded(self.name, self._get(self._actor.ready.remote()))

    def ask(self, job: Job) -> Sequence[Response]:
        """See `Hand`."""
        return _given(self.name, self._get(self._actor.answer.remote(job)))

    def stop(self) -> None:
        """See `Hand`."""
        import ray

        ray.kill(self._actor)

    def _get(self, reference: Any) -> Reply:
        import ray

        try:
            reply: Reply = ray.get(reference)
        except ray.exceptions.RayError as error:
            words = str(error).strip().splitlines() or [""]
            raise Lost(f"{self.name} ended ({type(error).__name__}: {words[-1].strip()})") from None
        return reply


def start_processes(load: Load, count: int, devices: Sequence[str]) -> list[Hand]:
    """Workers beside this process, which has the first device; the others go round them all.

    Args:
        load: loads the model.
        count: how many.
        devices: GPUs, by the names that CUDA_VISIBLE_DEVICES takes; none: workers see what this one sees.
    """
    return [
        ProcessHand(number, load, devices[number % len(devices)] if devices else None)
        for number in range(1, count + 1)
    ]


def start_actors(load: Load, count: int, devices: Sequence[str]) -> list[Hand]:
    """Actors in the cluster that RAY_ADDRESS names, else in one of this machine alone; one GPU for each.

    Args:
        load, count, devices: see `start_processes`; the first GPU of this machine is left to this process.
    """
    import ray

    threads = int(os.environ.get(processes.THREADS, "1"))
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            others = list(devices[1:])
            with processes.environment({VISIBLE: ",".join(others)} if devices else {}):
                ray.init(
                    address="local",
                    num_cpus=count * threads,
                    num_gpus=len(others),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
    gpus = 1 if devices else 0
    return [RayHand(number, load, gpus=gpus, threads=threads) for number in range(1, count + 1)]


def end_ray() -> None:
    """Leave the cluster; one of this machine alone ends with that."""
    import ray

    ray.shutdown()


def require_ray() -> None:
    """Say at once that Ray is missing.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--engine ray: Ray cannot be imported ({error}); install gapeval_lab[ray], or use "
            "--engine processes"
        ) from None


def visible_gpus(device: str) -> list[str]:
    """The GPUs that workers are spread over, by the names that CUDA_VISIBLE_DEVICES takes.

    Args:
        device: the model's `device` setting; none are given unless it is "auto".
    """
    if device != "auto":
        return []
    import torch

    count = torch.cuda.device_count()
    named: Mapping[str, str] = os.environ
    listed = [name.strip() for name in named.get(VISIBLE, "").split(",") if name.strip()]
    return (listed or [str(number) for number in range(count)])[:count]


def _loaded(name: str, reply: Reply) -> None:
    if isinstance(reply, Failure):
        words = reply.message.strip().splitlines()[-1]
        raise UserError(
            f"--processes: {name} could not load the model ({words}); use fewer, or mend what it says"
        )


def _given(name: str, reply: Reply) -> Sequence[Response]:
    if not isinstance(reply, Failure):
        return reply
    if reply.kind == "user":
        raise UserError(f"{reply.message} (said by {name})")
    if reply.kind == "safety":
        raise SafetyError(f"{name}: {reply.message}")
    raise WorkerFailed(f"{name} failed:\n{reply.message}")
