"""The command `gapeval-lab reproduce`: parses, calls, prints. Heavy imports inside."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gapeval_lab.cli_common import RUN_HELP, Bars, short, wide_console

WIDTH = 130


def reproduce(
    run: Annotated[str, typer.Argument(help=RUN_HELP)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what differs from then, and run nothing.")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on where data, weights or settings are not those of then.")
    ] = False,
    no_track: Annotated[bool, typer.Option("--no-track", help="Leave MLflow alone.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result (default: mlruns/outcomes/<run>).")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the comparison there.")
    ] = None,
) -> None:
    """Run again what a run stored, and say metric by metric whether it comes out the same.

    Nothing is taken from caches. Exit code 0 if it was reproduced, exactly or up to rounding, else 1.
    """
    from gapeval_lab.reproducing_report import draw_comparison, draw_differences

    console = wide_console(WIDTH)
    with console.status("loading the libraries and the run"):
        from gapeval_lab import reproducing
        from gapeval_lab.tracking import Store
        from gapeval_lab.tracking_patient import prepare

        store = Store.open()
    stored = reproducing.find_stored(run, store)
    plan = reproducing.plan(stored)
    then = stored.outcome
    if dry_run:
        console.print(f"{then.run_id}, of {then.started}")
        console.print(draw_differences(plan.differences))
        console.print("the weights are compared once the model is loaded; nothing was run (--dry-run)")
        if json_file:
            _write(json_file, {"run": then.run_id, "differences": [vars(one) for one in plan.differences]})
        return
    if not no_track:
        prepare(store)
    with Bars(console) as bars:
        done, differences = reproducing.reproduce(
            plan,
            store=store,
            on_progress=bars.update,
            anyway=anyway,
            out=out,
            tracked=not no_track,
            say=partial(console.print, soft_wrap=True, style="yellow", markup=False),
        )
    comparison, report = reproducing.told(stored, done, differences, store=store)
    if json_file:
        _write(json_file, report)
    console.print()
    console.print(
        draw_comparison(comparison, differences, then=then.run_id, now=done.outcome.run_id), soft_wrap=True
    )
    console.print(f"[dim]the new run is in {short(done.place)}[/dim]", soft_wrap=True)
    if comparison.status == "differs":
        raise typer.Exit(1)


def _write(file: Path, content: object) -> None:
    from gapeval_lab.files import write_text

    write_text(file, json.dumps(content, indent=1))
