"""The command `gapeval-lab search`: parses, calls one function, prints. Heavy imports inside."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gapeval_lab.cli_common import home, short, wide_console
from gapeval_lab.errors import UserError

if TYPE_CHECKING:
    from gapeval_lab.search_report import Summary

WIDTH = 130  # columns, where there is no terminal to ask
STUDIES = "optuna"


def search(
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Name or path of a recipe with a search section.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the recipe by dotted path."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="So many trials the study is to have in all.")] = 40,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine, each with a model.")] = 1,
    study: Annotated[str | None, typer.Option(help="Name of the study (default: the recipe's).")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Optuna storage: a URL, or a journal file (default: mlruns/optuna/<study>.journal)."
        ),
    ] = None,
    show: Annotated[
        str | None, typer.Option("--show", metavar="STUDY", help="Print a study, and do nothing.")
    ] = None,
) -> None:
    """Search over the settings of a recipe's intervention, on dev facts and items; test the best.

    The same command goes on where it was stopped; run at the same time, here or on another machine
    with the same --storage, it joins in.
    """
    if (recipe is None) == (show is None):
        raise UserError("search: give --recipe R to search, or --show STUDY to look at what was found")
    name = _study_name(show if show is not None else study)
    folder = home() / STUDIES
    if show is not None:
        _show(str(name), storage, folder)
        return
    from gapeval_lab.recipe import load
    from gapeval_lab.search import Plan, run_search, trials_of
    from gapeval_lab.tracking_store import Store

    loaded = load(str(recipe), overrides or [])
    store = Store.open()
    store.check()
    plan = Plan(
        loaded=loaded,
        study=name or loaded.recipe.name,
        storage=storage,
        trials=trials,
        workers=workers,
        folder=folder,
        locks=store.locks,
    )
    make = functools.partial(trials_of, loaded, plan.study)
    found = run_search(plan, make, say=functools.partial(print, flush=True))
    _print(found)
    if found.running:
        print(f"{found.running} trials go on elsewhere; whoever ends last tests the best ones")
    else:
        for file in found.recipes:
            print(f"recipe of the best: {short(file)}")
        print("see the trials in MLflow with: gapeval-lab ui")


def _study_name(name: str | None) -> str | None:
    from gapeval_lab.tracking_study import NAME

    if name is not None and not NAME.fullmatch(name):
        raise UserError(f"--study: '{name}' cannot be a name; use letters, digits and ._-, at most 80")
    return name


def _show(name: str, storage: str | None, folder: Path) -> None:
    from gapeval_lab.search_report import summary
    from gapeval_lab.search_storage import open_place
    from gapeval_lab.search_study import load_study

    journal = folder / f"{name}.journal" if storage is None else Path(storage).expanduser()
    if "://" not in str(storage) and not journal.is_file():
        begun = [file.stem for file in journal.parent.glob("*.journal") if file.stat().st_size]
        known = ", ".join(sorted(begun)) or "none"
        raise UserError(f"--show: there is no study '{name}', or no {short(journal)} (there are: {known})")
    _print(summary(load_study(open_place(storage, folder=folder, study=name, make=False), name)))


def _print(found: "Summary") -> None:
    from gapeval_lab.report_cells import Row, draw_rows
    from gapeval_lab.search_report import told

    console = wide_console(WIDTH)
    goals = ", ".join(f"{direction} {goal}" for goal, direction in found.goal.items())
    print(f"\n{found.study}: {goals}, searched over {found.recipe}")
    print(f"    {_counts(found)}")
    for number, reason in list(found.reasons.items())[:3]:
        print(f"    no value, trial {number}: {reason}")
    if found.saved:
        print(f"    item evaluations spared by pruning: {100 * found.saved:.0f} %")
    if found.overhead is not None:
        print(
            f"    time of a trial beside fit and measurement: {100 * found.overhead:.0f} % of them (median)"
        )
    if not found.best:
        print("no trial keeps the constraints")
        return
    rows = []
    for best in found.best:
        for goal in found.goal:
            value, gap = best.test.get(goal), best.optimism.get(goal)
            cells = (
                goal,
                f"{best.dev[goal]:.4f}",
                "not run" if value is None else f"{value:.4f}",
                "" if gap is None else f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]",
            )
            rows.append(Row(f"#{best.number:03d}", cells, strong=True))
    console.print(draw_rows("Best", ("goal", "dev", "test", "dev − test [95 %]"), rows))
    for best in found.best:
        print(f"#{best.number:03d}: {told(best.overrides)}")
    if found.importances:
        _print_importances(found.importances)


def _counts(found: "Summary") -> str:
    counts = {
        "finished": found.finished,
        "pruned": found.pruned,
        "without a value": found.failed,
        "lost and tried again": found.lost,
        "going on": found.running,
        "known from past runs": found.past,
    }
    return "trials: " + ", ".join(f"{count} {words}" for words, count in counts.items() if count)


def _print_importances(importances: Mapping[str, Mapping[str, float]]) -> None:
    from gapeval_lab.report_cells import Row, draw_rows

    names = list(dict.fromkeys(name for found in importances.values() for name in found))
    rows = [
        Row(name, tuple(f"{found[name]:.2f}" if name in found else "" for found in importances.values()))
        for name in names
    ]
    wide_console(WIDTH).print(draw_rows("Importance (PED-ANOVA)", tuple(importances), rows))
