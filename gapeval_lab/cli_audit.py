"""The command `gapeval-lab audit`: parses, calls one function, prints. Heavy imports inside."""

from pathlib import Path
from typing import Annotated

import typer

from gapeval_lab.cli_common import RUN_HELP, find_run, short, wide_console
from gapeval_lab.errors import UserError

WIDTH = 130  # columns, where there is no terminal to ask


def audit(
    run: Annotated[str, typer.Argument(help=RUN_HELP)],
    steps: Annotated[
        str | None,
        typer.Option(
            help="Also fit the published model with so many steps, such as 500,2000,20000 (seconds each)."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the audit there.")
    ] = None,
) -> None:
    """Say whether a run's conclusions depend on how the gap is computed, and what it could have seen.

    Example: gapeval-lab audit last --steps 500,2000,20000
    """
    counts = _steps(steps)
    from gapeval_lab.auditing import audited
    from gapeval_lab.report import headline
    from gapeval_lab.report_audit import draw_audit, draw_detectable
    from gapeval_lab.stored_runs import read_outcome

    outcome = audited(read_outcome(find_run(run, alone=True)), steps=counts)
    console = wide_console(WIDTH)
    console.print(f"[bold]{headline(outcome)}[/bold]", highlight=False)
    console.print(draw_audit(outcome))
    if outcome.detectable is not None:
        console.print()
        console.print(draw_detectable(outcome))
    if json_file:
        from gapeval_lab.files import write_text

        write_text(json_file, outcome.model_dump_json(indent=1, include={"run_id", "audit", "detectable"}))
        console.print(f"[dim]written to {short(json_file)}[/dim]")


def _steps(text: str | None) -> list[int]:
    """Whole numbers above 0, separated by commas."""
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if not all(part.isdecimal() and 0 < int(part) <= 1_000_000 for part in parts):
        raise UserError(f"--steps: '{text}' is no list of step counts; write it as in 500,2000,20000")
    return [int(part) for part in parts]
