"""The command line: parses, calls one function, prints. Heavy imports stand inside the commands."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from gapeval_lab.cli_audit import audit
from gapeval_lab.cli_common import RUN_HELP, find_run, home, wide_console
from gapeval_lab.cli_compare import compare, leaderboard, list_runs
from gapeval_lab.cli_delta import app as delta_app
from gapeval_lab.cli_doctor import doctor
from gapeval_lab.cli_export import export
from gapeval_lab.cli_judge import judge_app, labels_app, score
from gapeval_lab.cli_model import app as model_app
from gapeval_lab.cli_plan import plan
from gapeval_lab.cli_report import report
from gapeval_lab.cli_reproduce import reproduce
from gapeval_lab.cli_respond import EngineOption, Processes, respond
from gapeval_lab.cli_run import WIDTH, execute, print_plan
from gapeval_lab.cli_search import search
from gapeval_lab.cli_sync import sync
from gapeval_lab.errors import RunFailed, SafetyError, UserError

if TYPE_CHECKING:
    from gapeval_lab.interfaces import Benchmark
    from gapeval_lab.recipe import LoadedRecipe


app = typer.Typer(
    help="Knowledge manipulation in unified multimodal models, measured in both directions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(delta_app, name="delta")
app.add_typer(judge_app, name="judge")
app.add_typer(labels_app, name="labels")
app.add_typer(model_app, name="model")

RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="Name or path of a recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the recipe by dotted path.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Like KEY=VALUE; may be repeated.")
]
Limit = Annotated[int | None, typer.Option(help="Ask at most so many items.")]
Categories = Annotated[str | None, typer.Option(help="Ask only these categories (comma-separated).")]
Seeds = Annotated[int, typer.Option(min=1, help="Run with so many seeds, one after the other.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the result (default: mlruns/outcomes/<run>).")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the Outcome there.")
]


@app.command()
def edit(
    recipe: RecipeOption,
    overrides: Overrides = None,
    set_: SetOption = None,
    limit: Limit = None,
    categories: Categories = None,
    seeds: Seeds = 1,
    dry_run: DryRun = False,
    out: Out = None,
    json_file: JsonFile = None,
    processes: Processes = 1,
    engine: EngineOption = "processes",
) -> None:
    """Apply a recipe's intervention, ask both directions before and after, print and store the shift."""
    if seeds > 1 and json_file:
        raise UserError(
            "--json: holds one Outcome, but --seeds makes several; use --out for a folder of them"
        )

    def recipes() -> list["LoadedRecipe"]:
        loaded = _load(recipe, overrides, set_, limit, categories)
        if loaded.recipe.intervention is None:
            raise UserError(
                f"--recipe: '{loaded.recipe.name}' has no intervention; use 'gapeval-lab eval', or add one"
            )
        further = range(loaded.recipe.seed + 1, loaded.recipe.seed + seeds)
        given = set_ or []
        return [
            loaded,
            *(_load(recipe, overrides, [*given, f"seed={one}"], limit, categories) for one in further),
        ]

    if dry_run:
        print_plan(recipes()[0])
        return
    done = execute(recipes, out=out, json_file=json_file, processes=processes, engine=engine)
    if len(done) > 1:
        from gapeval_lab.report import draw_repeats

        wide_console(WIDTH).print(draw_repeats(done))


@app.command("eval")
def eval_(
    recipe: RecipeOption,
    overrides: Overrides = None,
    set_: SetOption = None,
    limit: Limit = None,
    categories: Categories = None,
    dry_run: DryRun = False,
    out: Out = None,
    json_file: JsonFile = None,
    processes: Processes = 1,
    engine: EngineOption = "processes",
) -> None:
    """Ask both directions of the model as it is; a recipe's intervention is left out."""
    gone = ("intervention=null", "facts=null", "then=[]", "evaluation.reasoning=null", "search=null")
    given = [*(set_ or []), *gone]

    def recipes() -> list["LoadedRecipe"]:
        return [_load(recipe, overrides, given, limit, categories)]

    if dry_run:
        print_plan(*recipes())
        return
    execute(recipes, out=out, json_file=json_file, processes=processes, engine=engine)


@app.command("ls")
def list_(
    what: Annotated[
        str, typer.Argument(help="recipes, runs, models, benchmarks, judges or interventions.")
    ] = "recipes",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Of runs, their names alone.")] = False,
) -> None:
    """List recipes (default), finished runs, or plug-ins and the configs of models and judges."""
    if what == "recipes":
        from gapeval_lab.catalogue import available, describe

        for name in available():
            print(f"{name}\n    {describe(name).about}")
    elif what == "runs":
        list_runs(quiet=quiet)
    else:
        from gapeval_lab import registry

        kind = next((kind for kind in get_args(registry.Kind) if kind == what), None)
        if kind is None:
            options = ", ".join(["recipes", "runs", *get_args(registry.Kind)])
            raise UserError(f"ls: '{what}' cannot be listed; choose from {options}")
        for name in registry.names(kind):
            print(name)
        from gapeval_lab.shipped import names_in

        for name in names_in(f"configs/{kind}", suffix=".yaml") if kind in ("models", "judges") else ():
            print(f"{{config: {name}}}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help=f"A recipe. {RUN_HELP}")],
    overrides: Overrides = None,
) -> None:
    """Print a run's result, or a recipe with every default filled in."""
    from gapeval_lab.catalogue import available, is_recipe
    from gapeval_lab.stored_runs import exactly

    if exactly(name, home()) is None and is_recipe(name):
        import yaml

        from gapeval_lab.recipe import load

        resolved = load(name, overrides or []).resolved
        print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), end="")
        return
    from gapeval_lab.report import draw_outcome
    from gapeval_lab.stored_runs import read_outcome
    from gapeval_lab.tracking_find import NoSuchRun
    from gapeval_lab.validation import did_you_mean

    try:
        place = find_run(name, alone=True)
    except NoSuchRun as error:
        hint = did_you_mean(name, available())
        raise UserError(f"{error}\n  nor is it a recipe{hint}; see 'gapeval-lab ls'") from None
    if overrides:
        raise UserError(f"show: '{name}' is a run, which takes no {overrides[0]}; name a recipe")
    wide_console(WIDTH).print(draw_outcome(read_outcome(place)))


@app.command()
def validate(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="Recipes; all of them if none is named.")
    ] = None,
) -> None:
    """Check recipes and their facts, without running anything.

    Without a name, recipes whose benchmark is not on this machine are checked as far as they can be.
    """
    from gapeval_lab.bench import stages_of
    from gapeval_lab.catalogue import available
    from gapeval_lab.recipe import load

    for name in recipes or available():
        recipe = load(name).recipe
        benchmark = recipe.build("benchmark")
        try:
            stages = stages_of(recipe, benchmark)
        except UserError:
            lacking = "" if recipes else _lacking(benchmark)
            if not lacking:
                raise
            print(f"{name}: valid as far as can be told without its benchmark ({lacking})")
            continue
        counts = " + ".join(str(len(stage.facts)) for stage in stages)
        skipped = sum(len(stage.left_out) for stage in stages)
        flawed = f" ({skipped} flawed entries left out)" if skipped else ""
        print(f"{name}: valid" + (f", {counts} facts{flawed}" if stages else ""))


@app.command()
def ui(port: Annotated[int, typer.Option(help="Local port.")] = 5000) -> None:
    """Open the MLflow UI on this project's store."""
    from gapeval_lab.tracking import Store, ViewLinks, ui

    def ready(links: Sequence[ViewLinks]) -> None:
        if not links:
            print(f"no runs yet; the UI is at http://127.0.0.1:{port}")
        for link in links:
            print(
                f"{link.experiment}\n    leaderboard  {link.leaderboard}\n    gap shift    {link.gap_shift}"
            )
        print("Ctrl-C stops it.", flush=True)

    store = Store.open()
    store.check()
    raise typer.Exit(ui(store, port, ready=ready))


def _load(
    recipe: str,
    overrides: list[str] | None,
    set_: list[str] | None,
    limit: int | None,
    categories: str | None,
) -> "LoadedRecipe":
    from gapeval_lab.recipe import load

    given = [*(overrides or []), *(set_ or [])]
    if limit is not None:
        given.append(f"evaluation.limit={limit}")
    if categories is not None:
        given.append(f"evaluation.categories=[{categories}]")
    return load(recipe, given)


def _lacking(benchmark: "Benchmark") -> str:
    """Why a benchmark's items cannot be read, in a line; nothing where they can be."""
    try:
        benchmark.items()
    except UserError as error:
        return str(error).partition("\n")[0]
    return ""


app.command()(search)  # after the commands above, as the help lists them
app.command()(score)
app.command()(export)
app.command()(report)
app.command()(respond)
app.command()(compare)
app.command()(leaderboard)
app.command()(reproduce)
app.command()(doctor)
app.command()(audit)
app.command()(plan)
app.command()(sync)


def main() -> None:
    """Entry point: what goes wrong in known ways is one message and an exit code; see errors.py."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RunFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except SafetyError as error:
        print(f"stopped: {error}", file=sys.stderr)
        raise SystemExit(3) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
