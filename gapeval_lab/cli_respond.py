"""The command `gapeval-lab respond`: parses, calls one function, prints. Heavy imports inside."""

import os
from typing import Annotated, Literal

import typer

from gapeval_lab.cli_common import Bars, home, short, wide_console

WIDTH = 130  # columns, where there is no terminal to ask

Processes = Annotated[
    int,
    typer.Option(min=1, help="Processes that answer prompts, each with the model (and a GPU of its own)."),
]
EngineOption = Annotated[
    Literal["processes", "ray"],
    typer.Option(help="Where the others run: processes of this machine, or actors of Ray (RAY_ADDRESS)."),
]


def respond(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Name or path of a recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the recipe by dotted path."),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="K/N", help="Answer the K-th of N parts alone; 'slurm': this task's of a job array."
        ),
    ] = "1/1",
    delta: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Hold this delta: a run, a file or an address, see 'delta ls'."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Ask at most so many items.")] = None,
    processes: Processes = 1,
    engine: EngineOption = "processes",
) -> None:
    """Answer one shard of a recipe's prompts and keep the responses for the run that comes afterwards.

    Several machines with one GAPEVAL_LAB_HOME answer a shard each; 'eval' or 'edit' (with --delta:
    'delta apply') then finds everything there. What is there already is not asked again.
    """
    from gapeval_lab.recipe import load
    from gapeval_lab.shards import Shard, crew

    part = Shard.parse(shard, os.environ)
    given = [*(overrides or []), *([] if limit is None else [f"evaluation.limit={limit}"])]
    loaded = load(recipe, given)
    console = wide_console(WIDTH)
    with crew(loaded.recipe.model, processes, engine=engine, say=console.print) as helpers:
        with console.status("loading the libraries and the model"):
            from gapeval_lab.shards_respond import fill_shard
            from gapeval_lab.stored_deltas import resolve

            change = None if delta is None else resolve(delta, home())
        with Bars(console) as bars:
            filled = fill_shard(
                loaded.recipe, part, home=home(), delta=change, helpers=helpers, on_progress=bars.update
            )
    new = filled.prompts - filled.known - filled.failed
    console.print(
        f"shard {part.number}/{part.count}: {filled.prompts} prompts, {filled.known} there already, {new} "
        f"answered, {filled.failed} failed; kept in {short(filled.folder)}",
        soft_wrap=True,
    )
