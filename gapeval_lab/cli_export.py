"""The command `gapeval-lab export`: parses, calls one function, prints. Heavy imports inside."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gapeval_lab.cli_common import RUN_HELP, find_run, short


def export(
    run: Annotated[str, typer.Argument(help=RUN_HELP)],
    out: Annotated[Path, typer.Option(help="Folder: a new one, or a copy of the published set.")],
    layout: Annotated[
        Literal["gapeval"], typer.Option(help="How the folder is laid out: as GapEval is published.")
    ] = "gapeval",
    phase: Annotated[
        Literal["before", "after"] | None,
        typer.Option(help="Which answers (default: after the intervention, where there is one)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the answers' folders (default: the model and the phase).")
    ] = None,
) -> None:
    """Write a run's answers as folders that the benchmark's own scripts, and {use: replay}, read."""
    from gapeval_lab.export_gapeval import export_run

    done = export_run(find_run(run), out, phase=phase, model=model)
    print(
        f"{done.items} items, answered {done.phase}: {done.texts} texts and {done.pictures} pictures in "
        f"{short(out)}/data_*/{done.model} (layout {layout})"
    )
    node = f"{{use: replay, root: {short(out)}, model: {done.model}}}"
    print(f"a recipe on the same benchmark measures them with: model: {node}")
