"""Processes of the tests' own that have the libraries imported: forks of one that did nothing else.

Starting Python and importing torch, transformers and MLflow takes ten seconds each time; a fork of the test
process itself, which has threads, could hang before it does anything.
"""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

STORE = ("gapeval_lab.tracking", "mlflow.store.tracking.sqlalchemy_store")
RUN = (
    "gapeval_lab.cli",
    "gapeval_lab.bench",
    "gapeval_lab.report",
    "gapeval_lab.tracked_run",
    "gapeval_lab.models.janus_model",
    "gapeval_lab.interventions.rome",
    *STORE,
)


def clean(imported: tuple[str, ...]) -> ForkServerContext:
    """A context like "spawn" whose processes start at once.

    All come from one process, which imports what the first caller names. What they write goes where that one
    wrote when it was started: see `write_to`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(imported))
    return context


def write_to(file: Path) -> None:
    """Let this process print into a file from now on, messages of libraries and errors too."""
    with file.open("ab", buffering=0) as stream:
        for told in (1, 2):
            os.dup2(stream.fileno(), told)


def command_line(home: Path, *words: str) -> None:
    """What `gapeval-lab WORDS` does, in this process."""
    from gapeval_lab.cli import main

    write_to(Path(os.devnull))
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["GAPEVAL_LAB_HOME"] = str(home)
    sys.argv = ["gapeval-lab", *words]
    main()
