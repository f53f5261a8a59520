"""The command `gapeval-lab plan`: parses, calls one function, prints. Heavy imports inside."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gapeval_lab.cli_common import find_run, short, wide_console
from gapeval_lab.errors import UserError

if TYPE_CHECKING:
    from gapeval_lab.gap.design import Way
    from gapeval_lab.planning import Basis

WIDTH = 130  # columns, where there is no terminal to ask
TINYWORLD = "tinyworld"


def plan(
    detect: Annotated[float, typer.Option(help="Size of the shift, of an accuracy and of the gap.")] = 0.1,
    power: Annotated[float, typer.Option(help="Chance to tell a shift of that size.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Chance to tell one where there is none.")] = 0.05,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="A run: its cells, flips and items.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="A recipe: the items it would ask.")
    ] = None,
    told: Annotated[float | None, typer.Option(help="Accuracy in understanding, before [0.8].")] = None,
    drawn: Annotated[float | None, typer.Option(help="Accuracy in generation, before [0.6].")] = None,
    correlation: Annotated[
        float | None, typer.Option(help="Correlation of the two over items, before [0.3].")
    ] = None,
    changed: Annotated[
        float | None, typer.Option(help="Share of items that flips without an effect [the run's, or 0.05].")
    ] = None,
    categories: Annotated[
        int | None, typer.Option(help="Categories [those of the recipe, or of tinyworld].")
    ] = None,
    items: Annotated[int | None, typer.Option(help="Items per category at hand [the recipe's].")] = None,
    way: Annotated[
        str | None,
        typer.Option(
            metavar="closes|widens", help="Where gaps go [closes, where the gap is as large as --detect]."
        ),
    ] = None,
    moves: Annotated[
        str | None,
        typer.Option(
            metavar="FROM:TO",
            help="By which items, instead of --way: und_only:both means that what was only told gets drawn, "
            "too. Cells: both, und_only, gen_only, neither.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the answers there.")
    ] = None,
) -> None:
    """Say how many items per category it takes to tell a shift, by McNemar's test and by the Gap Score.

    Example: gapeval-lab plan --detect 0.1 --from last
    """
    for name, value in (("detect", detect), ("power", power), ("alpha", alpha)):
        if not 0 < value < 1:
            raise UserError(f"--{name}: {value:g} does not lie between 0 and 1; give a share, such as 0.1")
    if power <= alpha:
        raise UserError(f"--power: {power:g} is no more than --alpha {alpha:g}; ask for more, such as 0.8")
    if detect < 0.001:
        raise UserError(
            f"--detect: {detect:g} is below 0.001, which no benchmark can tell; give a larger one"
        )
    if changed is not None and not 0 <= changed < 1:
        raise UserError(f"--changed: {changed:g} is no share below 1; give one, such as 0.05")
    for name, count in (("categories", categories), ("items", items)):
        if count is not None and not 1 <= count <= (100 if name == "categories" else 1_000_000):
            raise UserError(f"--{name}: {count} cannot be; give a number from 1 on")
    pair, chosen = _moves(moves), _way(way)
    if pair and chosen:
        raise UserError("--way: --moves says already by which items the gap shifts; leave one of the two out")
    given = {"--recipe": recipe, "--told": told, "--drawn": drawn, "--correlation": correlation}
    given |= {"--categories": categories, "--items": items}
    if from_ is not None and (more := [name for name, value in given.items() if value is not None]):
        raise UserError(f"{more[0]}: --from takes it from the run; leave one of the two out")
    from gapeval_lab.planning import basis_of_accuracies, basis_of_run
    from gapeval_lab.planning import plan as answer
    from gapeval_lab.report_plan import draw_plan

    basis: Basis
    if from_ is not None:
        from gapeval_lab.stored_runs import read_outcome

        basis = basis_of_run(read_outcome(find_run(from_, alone=True)), changed)
    else:
        source, counts = _at_hand(recipe)
        if items is not None:
            source, counts = "as given", (items,) * len(counts)
        if categories is not None:
            counts = (min(counts),) * categories
        basis = basis_of_accuracies(
            told=told,
            drawn=drawn,
            correlation=correlation,
            changed=changed,
            items=counts,
            source=source,
            categories=len(counts),
        )
    found = answer(basis, detect=detect, power=power, alpha=alpha, way=chosen, moves=pair)
    console = wide_console(WIDTH)
    console.print(draw_plan(found))
    if json_file:
        from gapeval_lab.files import write_text

        write_text(json_file, json.dumps(found.as_json(), indent=1))
        console.print(f"[dim]written to {short(json_file)}[/dim]")


def _way(text: str | None) -> "Way | None":
    if text is not None and text not in ("closes", "widens"):
        raise UserError(f"--way: '{text}' is neither closes nor widens; give one of them")
    return text  # type: ignore[return-value]


def _moves(text: str | None) -> tuple[int, int] | None:
    """Two cells by number."""
    from gapeval_lab.planning import CELLS

    if text is None:
        return None
    ends = text.split(":")
    if len(ends) != 2 or ends[0] == ends[1] or not set(ends) <= set(CELLS):
        raise UserError(f"--moves: '{text}' is not two of {', '.join(CELLS)}; write it as in und_only:both")
    return CELLS.index(ends[0]), CELLS.index(ends[1])


def _at_hand(recipe: str | None) -> tuple[str, tuple[int, ...]]:
    """What is asked, in words, and the items per category with a prompt in each direction."""
    from gapeval_lab import registry

    if recipe is None:
        chosen, source = tuple(registry.build("benchmarks", TINYWORLD, settings={}).items()), TINYWORLD
    else:
        from gapeval_lab.bench import chosen_items
        from gapeval_lab.recipe import load

        loaded = load(recipe).recipe
        chosen, source = tuple(chosen_items(loaded, loaded.build("benchmark"))), f"recipe {loaded.name}"
    counts: dict[str, int] = {}
    for item in chosen:
        if len(item.directions) == 2:
            counts[item.category] = counts.get(item.category, 0) + 1
    if not counts:
        raise UserError(f"--recipe: {recipe} asks no item in both directions; name another recipe")
    return source, tuple(counts.values())
