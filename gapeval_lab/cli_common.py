"""What the commands share: where the store is, where results are printed, how a place is told."""

import os
from pathlib import Path
from typing import Any


def home() -> Path:
    """`mlruns/` of this project, without importing MLflow."""
    from gapeval_lab.tracking_store import Store

    return Store.open().folder


def wide_console(width: int) -> Any:
    """Where results are printed; a file or a pipe gets lines of that many columns."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=width)


def short(place: Path) -> str:
    """Relative to the current folder where it lies below it."""
    place = place.absolute()
    return os.path.relpath(place) if place.is_relative_to(Path.cwd()) else str(place)
