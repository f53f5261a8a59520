"""The command `gapeval-lab report`: parses, calls one function, prints. Heavy imports inside."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from gapeval_lab.cli_common import RUN_HELP, find_run, short


def report(
    run: Annotated[str, typer.Argument(help=RUN_HELP)] = "last",
    out: Annotated[
        Path | None, typer.Option(help="The file to write (default: report.html in the run's folder).")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Also open it in the browser.")] = False,
) -> None:
    """Write a run as one HTML file that needs no network: the answer, figures, tables, every item."""
    from gapeval_lab.pages.run_page import write_report
    from gapeval_lab.stored_runs import read_outcome

    folder = find_run(run)
    file = write_report(read_outcome(folder), folder, to=out)
    print(f"{short(file)} ({file.stat().st_size / 1024**2:.1f} MiB)")
    if open_ and not webbrowser.open(file.absolute().as_uri()):
        print("no browser could be opened; open the file by hand")
