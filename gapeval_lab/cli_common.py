"""What the commands share: where the store is, where results are printed, how a place is told."""

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def home() -> Path:
    """`mlruns/` of this project, without importing MLflow."""
    from gapeval_lab.tracking_store import Store

    return Store.open().folder


RUN_HELP = "A run (its id or how it begins, last, folder or file), or an MLflow run (id or name)."


def find_run(ref: str, *, alone: bool = False) -> Path:
    """The folder of a finished run, by any of its names; `alone`: or a file that holds an outcome."""
    from gapeval_lab import tracking_find
    from gapeval_lab.tracking_store import Store

    return tracking_find.find_run(ref, Store.open(), alone=alone)


def wide_console(width: int) -> Any:
    """Where results are printed; a file or a pipe gets lines of that many columns."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=width)


@contextlib.contextmanager
def loading(console: Any) -> Iterator[None]:
    """Says that libraries and a model are loaded, and looks for no garbage meanwhile.

    Imports make a million objects and no garbage: looking them all through again and again takes a
    tenth of the time. What was loaded first is not looked through later either.
    """
    gc.disable()
    try:
        with console.status("loading the libraries, the store and the model"):
            yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        gc.enable()


def short(place: Path) -> str:
    """Relative to the current folder where it lies below it."""
    place = place.absolute()
    return os.path.relpath(place) if place.is_relative_to(Path.cwd()) else str(place)


class Bars:
    """A progress bar per phase, with the time that is left."""

    def __init__(self, console: Any) -> None:
        """On a console of rich's."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description:14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, phase: str, done: int, total: int) -> None:
        """Show how far a phase is."""
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total)
        self._bars.update(self._tasks[phase], completed=done, total=total)
