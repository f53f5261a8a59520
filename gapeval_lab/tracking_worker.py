"""The other end of `tracking_process`: the process that imports MLflow, holds the run open and logs it.

    python -m gapeval_lab.tracking_worker READ WRITE

READ and WRITE are the numbers of two pipes: calls come in, replies and words go out, one JSON object per
line. What a call does is `patient_track`'s, so a run is the same wherever it is logged. Signals are left
to the process that asks; when that one is gone, so is this one, at once, as if the same kill had met both.
"""

import contextlib
import functools
import gc
import importlib
import json
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from gapeval_lab.errors import UserError
from gapeval_lab.outcome import Outcome
from gapeval_lab.tracking_patient import PatientRun, patient_track, prepare
from gapeval_lab.tracking_stop import LeftElsewhere
from gapeval_lab.tracking_store import Store, first_line

Call = dict[str, Any]
LATER = (
    *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "matplotlib.figure"),
    "mlflow.data.meta_dataset",
)


class Pipes:
    """Calls in, replies and words out."""

    def __init__(self, read: int, write: int) -> None:
        """By file descriptors."""
        self._in = os.fdopen(read, encoding="utf-8")
        self._out: IO[str] = os.fdopen(write, "w", encoding="utf-8")
        self._writing = threading.Lock()
        self._calls: queue.SimpleQueue[Call] = queue.SimpleQueue()

    def listen(self) -> None:
        """Take calls until the other process is gone, and end this one then, whatever it does."""
        for line in self._in:
            self._calls.put(json.loads(line))
        os._exit(0)

    def next(self) -> Call:
        """The next call; waits for it."""
        return self._calls.get()

    def send(self, **fields: Any) -> None:
        """One object to the other process."""
        with self._writing, contextlib.suppress(BrokenPipeError):
            self._out.write(json.dumps(fields) + "\n")
            self._out.flush()

    def reply(self, **fields: Any) -> None:
        """The answer to the call that is waited for."""
        self.send(reply=fields)

    def say(self, text: str) -> None:
        """A line for the user."""
        self.send(say=text)


class _Forward(logging.Handler):
    """What libraries and we log is shown by the other process, which knows how."""

    def __init__(self, pipes: Pipes) -> None:
        super().__init__(logging.WARNING)
        self.pipes = pipes

    def emit(self, record: logging.LogRecord) -> None:
        self.pipes.send(log=[record.name, record.levelno, record.getMessage()])


def serve(pipes: Pipes) -> None:
    """Prepare the store that is named first, then one run after the other."""
    opened = pipes.next()
    store = Store(Path(opened["root"]), opened["uri"], Path(opened["master"]))
    unusable = _failure(lambda: prepare(store))
    if not unusable:
        _warm()
    while True:
        asked = pipes.next()
        if asked["do"] == "track":  # else it is for a run that broke
            pipes.reply(**(unusable or _failure(functools.partial(_run, store, pipes, asked))))


def _failure(call: Callable[[], None]) -> dict[str, str]:
    """Make a call; what it raised, for the other process, or nothing."""
    try:
        call()
    except UserError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"broke": f"{type(error).__name__}: {first_line(error)}"}
    return {}


def _run(store: Store, pipes: Pipes, asked: Call) -> None:
    """One run, from its first call to its last; the reply to the last one is the caller's to send."""
    live = None
    try:
        with patient_track(store, asked["name"], say=pipes.say, **asked["how"]) as live:
            pipes.reply(run_id=live.run_id, lost=live.lost)
            while (call := pipes.next())["do"] != "leave":
                _listen(pipes, live, call)
            if call["error"] is not None:
                raise LeftElsewhere(call["error"], stopped=call["stopped"])
    except LeftElsewhere as error:  # what it stands for is handled where it was raised
        for note in getattr(error, "__notes__", ()):
            pipes.say(note)
    finally:
        if live is not None and live.lost is not None:
            pipes.send(lost=live.lost)


def _listen(pipes: Pipes, live: PatientRun, call: Call) -> None:
    """One call to a run that is going on."""
    if call["do"] == "stage":
        live.stage(call["name"])
    elif call["do"] == "ahead":
        outcome = Outcome.model_validate_json(call["outcome"])
        live.attempt(lambda run: run.ahead(outcome, Path(call["folder"])))
    elif call["do"] == "log":
        folder = Path(call["folder"])
        live.log(Outcome.load(folder), folder, name=call["name"])
    elif call["do"] == "finish":
        whole = live.finish(None if call["report"] is None else Path(call["report"]))
        pipes.reply(whole=whole, lost=live.lost)
    else:
        raise ValueError(f"no such call: {call['do']!r}")


def _warm() -> None:
    """Import what logging takes, while nobody waits for it."""
    for name in LATER:
        importlib.import_module(name)
    gc.freeze()  # imports make no garbage


def main() -> None:
    """Serve in a thread, so that the main one sees at once when the other process is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    pipes = Pipes(int(sys.argv[1]), int(sys.argv[2]))
    logging.getLogger().addHandler(_Forward(pipes))

    def work() -> None:
        serve(pipes)
        os._exit(0)

    threading.Thread(target=work, name="gapeval-tracking").start()
    pipes.listen()


if __name__ == "__main__":
    main()
