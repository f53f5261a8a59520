"""One run over several processes: who answers what; and shards, for machines that share only a folder.

Responses lie in a store whose name is the key of all that they depend on, each prompt has a seed of its
own, and batching changes no answer. So it does not matter who answers: the others fill the store, and
the run that reads it gets what one process would have got.

`Crew` deals prompts out in small parts to whoever is free, as workers may start late, be slow or die.
`Shard` is a fixed part of all prompts, for processes that cannot talk to each other.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapeval_lab import registry
from gapeval_lab.errors import UserError
from gapeval_lab.items import Direction, Item, Response
from gapeval_lab.processes import shared_threads
from gapeval_lab.recipe import Node
from gapeval_lab.response_store import ResponseStore

if TYPE_CHECKING:
    from gapeval_lab.delta import WeightDelta
    from gapeval_lab.interfaces import UMM
    from gapeval_lab.shards_hands import Engine, Hand
    from gapeval_lab.shards_worker import Job

Say = Callable[[str], None]
"""Takes a line for the user."""

PARTS = 4  # parts per process that prompts are dealt in, so that the last ones end at about one time
SMALLEST = 8  # prompts of a part: models are slow at answering one by one
DELTA = "delta.safetensors"  # in the store's folder, for the workers
WAKE_SECONDS = 1.0


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `count` parts of a list of prompts; numbers start at 1."""

    number: int = 1
    count: int = 1

    @staticmethod
    def parse(text: str, environment: Mapping[str, str]) -> Shard:
        """`3/8`, or `slurm` for this task of a job array.

        Raises:
            UserError: anything else, or a number that is out of range.
        """
        if text == "slurm":
            return _of_slurm(environment)
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise UserError(
                f"--shard: '{text}' is no shard; write K/N with K from 1 to N, such as 3/8, or slurm"
            )
        return Shard(number, count)

    def of(self, items: Sequence[Item], direction: Direction) -> list[Item]:
        """This shard's items in one direction.

        Dealt in the order of a hash of content and direction: the same whatever the order of the items,
        and shards differ by one prompt at most.
        """
        dealt = sorted(items, key=lambda item: hashlib.sha256(f"{item.digest}:{direction}".encode()).digest())
        mine = {item.id for item in dealt[self.number - 1 :: self.count]}
        return [item for item in items if item.id in mine]


def _of_slurm(environment: Mapping[str, str]) -> Shard:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    try:
        task, count = (int(environment[name]) for name in names)
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    except (KeyError, ValueError):
        raise UserError(
            f"--shard: slurm needs {' and '.join(names)}, which job arrays have (sbatch --array=1-8); "
            "elsewhere write K/N"
        ) from None
    place, rest = divmod(task - first, step or 1)
    if rest or not 0 <= place < count:
        raise UserError(
            f"--shard: slurm finds task {task} of an array of {count} that starts at {first} in steps of "
            f"{step}, which is no part of it; write K/N"
        )
    return Shard(place + 1, count)


class Crew:
    """Workers with the model of a recipe, beside the process that has loaded it: `evaluate.Helpers`.

    They are started when there is first something to share, and join in as they become ready. A worker
    that ends takes nothing along: what it was at is dealt out again.
    """

    def __init__(self, begin: Callable[[], list[Hand]], *, count: int, say: Say) -> None:
        """See `crew`."""
        self._begin = begin
        self._count = count
        self._say = say
        self._hands: list[Hand] | None = None
        self._threads: list[threading.Thread] = []
        self._held: tuple[ResponseStore, WeightDelta | None] | None = None
        # Shared with the threads, one per worker; changed under the lock alone.
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._out = 0
        self._done: list[Job] = []
        self._errors: list[Response] = []
        self._lost: list[str] = []
        self._living = count
        self._failure: Exception | None = None
        self._closed = False

    def hold(self, store: ResponseStore, delta: WeightDelta | None) -> None:
        """See `evaluate.Helpers`."""
        self._held, store.helpers = (store, delta), self

    def fill(
        self,
        store: ResponseStore,
        items: Sequence[Item],
        direction: Direction,
        *,
        seed: int,
        chunk: int,
        ask: Callable[[Sequence[Item]], None],
        told: Callable[[int], None],
    ) -> list[Response]:
        """See `evaluate.Helpers`.

        Raises:
            UserError, SafetyError, WorkerFailed: a worker met that; what is answered is in the store.
        """
        size = min(chunk, max(SMALLEST, math.ceil(len(items) / (PARTS * (self._count + 1)))))
        parts = [tuple(items[start : start + size]) for start in range(0, len(items), size)]
        with self._changed:
            if self._failure is not None:
                raise self._failure
            alone = len(parts) == 1 or not self._living
        if alone:
            return []
        self._start()
        delta = self._delta_file(store)
        with self._changed:
            self._jobs.extend(_job(store.folder, delta, part, direction, seed) for part in parts)
            self._changed.notify_all()
        try:
            while (mine := self._next(told)) is not None:
                ask(mine.items)
                told(self._count_done())
        except BaseException:
            with self._changed:
                self._jobs.clear()
            raise
        with self._changed:
            done, errors = self._done, self._errors
            self._done, self._errors = [], []
        failed = {response.item_id for response in errors}
        self._require_there(store, [i for job in done for i in job.items if i.id not in failed], direction)
        return errors

    def close(self) -> None:
        """End the workers."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
        for hand in self._hands or ():
            hand.stop()
        for thread in self._threads:
            thread.join(WAKE_SECONDS)

    def _start(self) -> None:
        if self._hands is not None:
            return
        self._hands = self._begin()
        for hand in self._hands:
            thread = threading.Thread(target=self._work, args=(hand,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _delta_file(self, store: ResponseStore) -> Path | None:
        """The delta of the held state as a file that the workers can read."""
        if self._held is None or self._held[0] is not store:
            raise ValueError("the crew does not hold this store")
        delta = self._held[1]
        if delta is None:
            return None
        file = store.folder.absolute() / DELTA
        return file if file.exists() else delta.save(file)

    def _next(self, told: Callable[[int], None]) -> Job | None:
        """A job for this process; None when all are done."""
        while True:
            with self._changed:
                lost, self._lost = self._lost, []
                if self._failure is not None:
                    raise self._failure
                mine = self._jobs.popleft() if self._jobs else None
                if mine is None and self._out and not lost:
                    self._changed.wait(WAKE_SECONDS)
                out = self._out
            for reason in lost:
                self._say(f"{reason}; what it was at is done by the others")
            if mine is not None:
                return mine
            told(self._count_done())
            with self._changed:
                if not (out or self._out or self._jobs or self._lost or self._failure):
                    return None

    def _count_done(self) -> int:
        with self._changed:
            return sum(len(job.items) for job in self._done)

    def _work(self, hand: Hand) -> None:
        """What the thread of one worker does."""
        from gapeval_lab.shards_hands import Lost

        job: Job | None = None
        try:
            hand.ready()
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._jobs or self._closed)
                    if self._closed:
                        return
                    job = self._jobs.popleft()
                    self._out += 1
                errors = hand.ask(job)
                with self._changed:
                    self._done.append(job)
                    self._errors += errors
                    self._out, job = self._out - 1, None
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                if job is not None:
                    self._jobs.appendleft(job)
                    self._out -= 1
                self._living -= 1
                if isinstance(error, Lost):
                    self._lost.append(str(error))
                elif self._failure is None:
                    self._failure = error
                self._changed.notify_all()

    def _require_there(self, store: ResponseStore, items: Sequence[Item], direction: Direction) -> None:
        """What workers have written must have come into this process's sight."""
        store.refresh()
        missing = sum(store.get(item, direction) is None for item in items)
        if missing:
            raise UserError(
                f"store: {missing} of {len(items)} responses of the workers are not in {store.folder}; give "
                "all machines one shared folder (GAPEVAL_LAB_HOME)"
            )


@contextlib.contextmanager
def crew(model: Node, processes: int, *, engine: Engine = "processes", say: Say) -> Iterator[Crew | None]:
    """Workers with a recipe's model, gone when the block is left; None where one process is enough.

    Args:
        model: the recipe's node; each worker loads it.
        processes: how many hold the model, this one counted.
        engine: processes of this machine, or actors of Ray.
        say: takes a line when a worker is lost.

    Raises:
        UserError: Ray is missing, or cannot have the model's device.
    """
    if processes == 1:
        yield None
        return
    from gapeval_lab import shards_hands as hands
    from gapeval_lab.tracking_stop import sigterm_raises

    device = str(model.settings.get("device", "auto"))
    if engine == "ray":
        hands.require_ray()
        if device.startswith("cuda"):
            raise UserError(
                f"model.device: '{device}' cannot be kept with --engine ray, which gives each worker a "
                "device; set it to auto"
            )
    starter = hands.start_actors if engine == "ray" else hands.start_processes
    load = functools.partial(load_model, model.use, model.settings)

    def begin() -> list[Hand]:
        return starter(load, processes - 1, hands.visible_gpus(device))

    with sigterm_raises(), shared_threads(processes):
        found = Crew(begin, count=processes - 1, say=say)
        try:
            yield found
        finally:
            found.close()
            if engine == "ray":
                hands.end_ray()


def load_model(use: str, settings: Mapping[str, Any]) -> UMM:
    """The model of a recipe's node."""
    umm: UMM = registry.build("models", use, settings=settings).load()
    return umm


def _job(folder: Path, delta: Path | None, items: tuple[Item, ...], direction: Direction, seed: int) -> Job:
    """Absolute, since a worker may be elsewhere."""
    from gapeval_lab.shards_worker import Job

    return Job(folder.absolute(), delta, items, direction, seed)
