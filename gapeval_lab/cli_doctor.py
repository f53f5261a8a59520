"""The command `gapeval-lab doctor`: parses, calls, prints. Heavy imports inside."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gapeval_lab.cli_common import wide_console

WIDTH = 130
STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the self-test, which loads the shipped model.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the findings there.")
    ] = None,
    relocate: Annotated[
        bool,
        typer.Option(
            "--relocate", help="After the project was moved: put right where runs say artifacts lie."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --relocate: do it, not only say it.")] = False,
) -> None:
    """Say what is fine on this machine and what is not. Exit code 1 if there is a problem."""
    if yes and not relocate:
        from gapeval_lab.errors import UserError

        raise UserError("--yes: it confirms --relocate; give both, or none")
    if relocate:
        _relocate(yes)
        return
    from rich.text import Text

    from gapeval_lab.doctor import examine, healthy

    console = wide_console(WIDTH)
    with console.status("looking around"):
        sections = examine(quick=quick)
    width = max(len(line.name) for section in sections for line in section.lines)
    for section in sections:
        console.print(Text(section.title, style="bold"))
        for line in section.lines:
            told = Text(f"  {line.status:8}", style=STYLES[line.status])
            told.append(f"{line.name:{width}}  {line.text}", style="default")
            if line.fix:
                told.append(f"; {line.fix}", style="default")
            console.print(told, soft_wrap=True)
    if json_file:
        from gapeval_lab.files import write_text

        found = {"healthy": healthy(sections), "sections": [asdict(section) for section in sections]}
        write_text(json_file, json.dumps(found, indent=1))
    if not healthy(sections):
        raise typer.Exit(1)


def _relocate(yes: bool) -> None:
    from gapeval_lab.tracking import Store, find_moved, relocate

    store = Store.open()
    found = find_moved(store)
    if not found.changes:
        print(f"nothing to do: no path in {found.database} points into another mlruns folder")
        return
    for old in found.old:
        print(f"{old} -> {found.new}")
        if Path(old).is_dir():
            print("  the old folder is still there; after this, runs shown here no longer read from it")
    for change in found.changes:
        print(f"  {change.table}.{change.column}: {change.rows} rows")
    if not yes:
        print("nothing was done; with --yes it is, after a copy of the database was made")
        return
    _, backup = relocate(store)
    print(f"done; the database as it was: {backup}")
