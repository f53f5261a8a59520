"""The command `gapeval-lab sync`: parses, calls one function, prints. Heavy imports inside."""

from typing import Annotated

import typer

from gapeval_lab.cli_common import find_run, short


def sync(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs (all of this project's if none is named), or folders."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is missing, and log nothing.")] = False,
) -> None:
    """Log finished runs that MLflow does not have: after a dead server, or in another MLFLOW_TRACKING_URI."""
    from gapeval_lab.tracking_store import Store, shown
    from gapeval_lab.tracking_sync import outcome_folders, sync

    store = Store.open()
    store.check()
    folders = [find_run(run) for run in runs or ()] or outcome_folders(store.folder)
    counts: dict[str, int] = {}
    for done in sync(store, folders, dry_run=dry_run):
        counts[done.what] = counts.get(done.what, 0) + 1
        print(f"{done.what:10} {done.name}" + (f"  ({done.note})" if done.note else ""), flush=True)
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    where = short(store.database) if store.database else shown(store.uri)
    print(f"{where}: {told}" if told else f"no finished runs in {short(store.folder)}")
    if counts.get("failed", 0) + counts.get("unreadable", 0):
        raise typer.Exit(1)
