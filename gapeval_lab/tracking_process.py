"""A run logged by a process of its own, so that the model does not wait for MLflow.

MLflow takes seconds to import, to open its store and to write hundreds of traces. That is done beside the
model, which has the same priority: on a full machine neither starves. What is left to wait for is the end of
a run's own logging.

    with beside(store) as tracker:       # begins to import MLflow
        bench = load_bench(loaded)
        tracked_run(bench, store=store, on_progress=show, track=tracker.track)

Nor does a run wait for its beginning: what its store has against it is raised while it goes on. Knows
pipes and the calls of a run; refuses to know MLflow. The other end is `tracking_worker`.
"""

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gapeval_lab.errors import UserError
from gapeval_lab.outcome import Outcome
from gapeval_lab.tracking_locks import try_lock
from gapeval_lab.tracking_patient import Say, lost_words
from gapeval_lab.tracking_stop import error_words, sigterm_raises, stops
from gapeval_lab.tracking_store import Store

ENDED = "the process that logs it has ended"
CLOSING_SECONDS = 5.0
STDERR = 2  # where what MLflow prints goes: it is not the command's output
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def beside(store: Store) -> Iterator["TrackingProcess"]:
    """A process that tracks in the store, for as long as the block runs.

    Raises:
        UserError: no run can ever be stored so, as far as can be told without MLflow.
    """
    store.look()
    process = TrackingProcess(store)
    try:
        yield process
    finally:
        process.close()


class TrackingProcess:
    """Our end of the pipes to a process that tracks."""

    def __init__(self, store: Store) -> None:
        """Start it; it imports MLflow, then checks and mends the store. Waits for nothing."""
        self.store = store
        self._run: FarRun | None = None
        self._replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        # Says, to whoever finds runs of that process, that we are there: see `lock_of_orphan`.
        handle, name = tempfile.mkstemp(prefix="gapeval-", suffix=".lock")
        os.close(handle)
        self._master = Path(name), try_lock(Path(name))
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self._out: IO[str] = os.fdopen(ours_out, "w", encoding="utf-8")
        command = [sys.executable, "-m", "gapeval_lab.tracking_worker", str(theirs_in), str(theirs_out)]
        try:
            self._process = subprocess.Popen(
                command,
                pass_fds=(theirs_in, theirs_out),
                stdin=subprocess.DEVNULL,
                stdout=STDERR,
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._reader = threading.Thread(
            target=self._listen, args=(os.fdopen(ours_in, encoding="utf-8"),), name="gapeval-tracking"
        )
        self._reader.daemon = True
        self._reader.start()
        # Through the pipe: an address may hold a password, and a command line can be seen.
        self.send(do="open", root=str(store.root), uri=store.uri, master=name)

    @contextlib.contextmanager
    def track(self, name: str, *, say: Say | None = None, **how: Any) -> Iterator["FarRun"]:
        """As `patient_track`, for the store that this process was made for; the block begins at once.

        Raises:
            UserError: no run can ever be stored so; raised by the run's calls, or at the block's end.
        """
        run = self._run = FarRun(self, say or _log.warning)
        with sigterm_raises():
            run.begin(name, how)
            try:
                yield run
            except BaseException as error:
                run.leave(error)
                raise
            else:
                run.leave(None)

    def close(self) -> None:
        """End the process; it stops at once, whatever it does."""
        with contextlib.suppress(OSError):
            self._out.close()
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(CLOSING_SECONDS)
        place, lock = self._master
        place.unlink(missing_ok=True)
        if lock is not None:
            lock.close()

    def send(self, **call: Any) -> None:
        """A call to the process; does not wait."""
        with contextlib.suppress(OSError):  # a process that is gone is told by its silence
            self._out.write(json.dumps(call) + "\n")
            self._out.flush()

    def answer(self, *, wait: bool) -> dict[str, Any] | None:
        """The next answer to a run's calls, None where it is not there yet; "broke" says what went wrong.

        Raises:
            UserError: as the other process raised it.
        """
        try:
            reply = self._replies.get(block=wait)
        except queue.Empty:
            return None
        if reply is None:
            self._replies.put(None)
            return {"broke": ENDED}
        if "refused" in reply:
            raise UserError(reply["refused"])
        return reply

    def _listen(self, stream: IO[str]) -> None:
        """Sort what comes, until the process is gone."""
        with stream:
            for line in stream:
                told = json.loads(line)
                if "reply" in told:
                    self._replies.put(told["reply"])
                elif "log" in told:
                    name, level, text = told["log"]
                    logging.getLogger(name).log(level, "%s", text)
                elif self._run is not None:
                    self._run.told(told)
        self._replies.put(None)


class FarRun:
    """A `PatientRun` in another process.

    Attributes:
        run_id: MLflow's id, once the run is known to have begun: at the latest after `finish`.
        lost: why nothing more is logged; None while all is well.
    """

    def __init__(self, process: TrackingProcess, say: Say) -> None:
        """Of a process; `say` is told once that the store is out of reach."""
        self.run_id: str | None = None
        self.lost: str | None = None
        self._process = process
        self._say = say
        self._began = self._over = False

    def begin(self, name: str, how: dict[str, Any]) -> None:
        """Start or continue it; does not wait."""
        how.setdefault("started", round(1000 * time.time()))
        self._process.send(do="track", name=name, how=how)

    def hear(self) -> None:
        """As `Listener.hear`."""
        self._hear(wait=False)

    def stage(self, name: str) -> None:
        """As `LiveRun.stage`; does not wait."""
        self._process.send(do="stage", name=name)

    def ahead(self, outcome: Outcome, folder: Path) -> None:
        """As `LiveRun.ahead`; does not wait."""
        self._process.send(do="ahead", outcome=outcome.model_dump_json(), folder=str(folder))

    def log(self, outcome: Outcome, folder: Path, *, name: str | None = None) -> None:
        """As `LiveRun.log`, for the outcome that lies in the folder; does not wait."""
        self._process.send(do="log", folder=str(folder), name=name)

    def finish(self, report: Path | None) -> bool:
        """As `PatientRun.finish`."""
        reply = self._ask(do="finish", report=None if report is None else str(report))
        return bool(reply.get("whole")) and self.lost is None

    def leave(self, error: BaseException | None) -> None:
        """End it, after what raised or well."""
        words = None if error is None else error_words(error)
        try:
            self._ask(do="leave", error=words, stopped=error is not None and stops(error))
        except UserError:
            if error is None:  # else what is raised already is what the user has to hear
                raise

    def told(self, words: dict[str, Any]) -> None:
        """Hear what was said of it unasked."""
        self.lost = words.get("lost", self.lost)
        if "say" in words:
            self._say(words["say"])

    def _ask(self, **call: Any) -> dict[str, Any]:
        self._hear(wait=True)
        if self._over:
            return {}
        self._process.send(**call)
        return self._answer(wait=True) or {}

    def _hear(self, *, wait: bool) -> None:
        """Learn how it began, if that is not known yet."""
        if self._began or self._over:
            return
        reply = self._answer(wait=wait)
        if reply is not None:
            self._began, self.run_id = True, reply.get("run_id")

    def _answer(self, *, wait: bool) -> dict[str, Any] | None:
        try:
            reply = self._process.answer(wait=wait)
        except UserError:
            self._over = True
            raise
        if reply is not None and "broke" in reply:  # nobody is there any more, or its run is not
            self._over = True
            if self.lost is None:
                self.lost = reply["broke"]
                self._say(lost_words(self._process.store, reply["broke"]))
        if reply is not None:
            self.lost = self.lost or reply.get("lost")
        return reply
