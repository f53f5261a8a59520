"""A model that stays loaded and answers what it is given into stores: what runs in each worker.

It answers only if the key of its own model, weights, settings and seed together, is that of the store.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from gapeval_lab.bench import weights_of
from gapeval_lab.delta import WeightDelta
from gapeval_lab.errors import SafetyError, UserError
from gapeval_lab.evaluate import answered, store_key
from gapeval_lab.interfaces import UMM
from gapeval_lab.items import Direction, Item, Response
from gapeval_lab.processes import end_with_parent
from gapeval_lab.response_store import ResponseStore

Load = Callable[[], UMM]
"""Loads the model; picklable."""


@dataclass(frozen=True)
class Job:
    """Items to be answered in one direction.

    Attributes:
        folder: of the store, which is named after its key.
        delta: file of what the model holds; None: it is as it was loaded.
        items: asked together.
        direction: of all of them.
        seed: of the run.
    """

    folder: Path
    delta: Path | None
    items: tuple[Item, ...]
    direction: Direction
    seed: int


@dataclass(frozen=True)
class Failure:
    """Why a worker gave nothing: a mistake of the user's, other weights, or a defect (with its traceback)."""

    kind: Literal["user", "safety", "defect"]
    message: str


Reply = tuple[Response, ...] | Failure
"""The errors among the responses; what went well is in the store."""


class Resident:
    """One worker's model and what it holds just now. Its methods never raise: they reply."""

    def __init__(self, load: Load) -> None:
        """Load nothing yet, see `ready`."""
        self._load = load
        self._umm: UMM | None = None
        self._state = contextlib.ExitStack()
        self._store: ResponseStore | None = None
        self._delta: Path | None = None

    def ready(self) -> Reply:
        """Load the model."""
        try:
            self._umm = self._load()
        except Exception as error:
            return _failure(error)
        return ()

    def answer(self, job: Job) -> Reply:
        """Bring the model into the job's state, ask it, write what it gives."""
        try:
            if self._umm is None:
                raise ValueError("the model is not loaded")
            store = self._stored(job, self._umm)
            known = {item.id: item for item in job.items}
            errors: list[Response] = []

            def keep(given: list[Response]) -> None:
                store.put((known[response.item_id], response) for response in given)
                errors.extend(response for response in given if response.error is not None)

            answered(self._umm, job.items, job.direction, seed=job.seed, keep=keep)
        except Exception as error:
            return _failure(error)
        return tuple(errors)

    def _stored(self, job: Job, umm: UMM) -> ResponseStore:
        if self._store is not None and (self._store.folder, self._delta) == (job.folder, job.delta):
            return self._store
        self._store = None
        self._state.close()  # the bits of the last state are copied back
        if job.delta is not None:
            self._state.enter_context(WeightDelta.load(job.delta).applied(umm.backbone().root))
        key = store_key(umm, weights=weights_of(umm), seed=job.seed)
        if key != job.folder.name:
            raise SafetyError(
                f"its weights or settings are not those of the process that asks (key {key[:16]}, "
                f"there {job.folder.name[:16]}), so that nothing that it answers may count; "
                "use --processes 1, or devices of one kind"
            )
        self._store, self._delta = ResponseStore(job.folder), job.delta
        return self._store


def serve(connection: Connection, load: Load) -> None:
    """What a worker process does: reply to `ready`, then to job after job, until nobody asks any more."""
    end_with_parent()
    resident = Resident(load)
    with contextlib.suppress(EOFError, ConnectionError):  # the other end was closed
        connection.send(resident.ready())
        while True:
            connection.send(resident.answer(connection.recv()))


def _failure(error: Exception) -> Failure:
    if isinstance(error, UserError):
        return Failure("user", str(error))
    if isinstance(error, SafetyError):
        return Failure("safety", str(error))
    return Failure("defect", "".join(traceback.format_exception(error)))
