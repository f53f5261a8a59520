"""The commands of `gapeval-lab delta`: parses, calls one function, prints. Heavy imports inside."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapeval_lab.cli_common import home, short, wide_console
from gapeval_lab.delta_file import SHORT
from gapeval_lab.errors import UserError

if TYPE_CHECKING:
    from gapeval_lab.delta_file import Head, Origin, ScaledFile
    from gapeval_lab.interfaces import UMM
    from gapeval_lab.report_cells import Row
    from gapeval_lab.stored_deltas import Stored

WIDTH = 160  # columns, where there is no terminal to ask
MOST_FACTS, MOST_NAMES = 8, 3  # facts and parameters that one line names

app = typer.Typer(
    help="What runs added to a model's weights: listed, shown, compared, composed, applied.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

REF = "A file, a run, <run>/<n> for its n-th intervention, or an address's first letters; 'REF*0.5' scales."
Ref = Annotated[str, typer.Argument(metavar="REF", help=REF)]
Model = Annotated[str | None, typer.Option(help="Name or path of a model's config, such as 'embedded'.")]
AnyWeights = Annotated[
    bool, typer.Option("--any-weights", help="Take other weights than the delta was made for.")
]


@app.command("ls")
def list_() -> None:
    """List the deltas of finished runs and the composed ones, newest last."""
    from gapeval_lab.stored_deltas import stored

    entries = stored(home())
    for entry in entries:
        print("\n    ".join(_lines(entry)))
    if not entries:
        print("no deltas yet; 'gapeval-lab edit' makes some")


@app.command()
def show(ref: Ref, model: Model = None) -> None:
    """Print what a delta touches: shapes, ranks, norms, leading singular values."""
    from gapeval_lab.delta import WeightDelta
    from gapeval_lab.delta_measures import spectrum, stable_rank
    from gapeval_lab.report_cells import Row

    given, head = _resolve(ref)
    delta = WeightDelta.load(given.path).scaled(given.scale)
    weights: dict[str, float] = {}
    if model is not None:
        root = _load_model(model).backbone().root
        delta.check(root)
        weights = {name: float(root.get_parameter(name).detach().double().norm()) for name in delta.terms}
    norms, spectra = delta.norms(), spectrum(delta)
    rows = []
    for name, term in head.terms.items():
        stable = stable_rank(norms[name], max(spectra[name], default=0.0))
        cells = [
            " x ".join(map(str, term.shape)),
            "dense" if term.rank is None else str(term.rank),
            f"{norms[name]:.4g}",
            *([f"{100 * norms[name] / weights[name]:.2f} %" if weights[name] else "n/a"] if model else []),
            "n/a" if stable is None else f"{stable:.2f}",
            " ".join(f"{value:.3g}" for value in spectra[name]),
        ]
        rows.append(Row(name, tuple(cells)))
    print(f"{delta.digest}  norm {delta.norm():.4g}")
    print("\n".join(_origin(given, head)))
    columns = ("shape", "rank", "norm", *(["of weight"] if model else []), "stable rank", "singular values")
    _print_table("Per parameter", columns, rows)


@app.command()
def compare(one: Ref, other: Ref) -> None:
    """Print what two deltas share: cosines, and angles between what they read and what they write."""
    from gapeval_lab.delta import WeightDelta
    from gapeval_lab.delta_measures import interference
    from gapeval_lab.report_cells import Row

    deltas = [WeightDelta.load(given.path).scaled(given.scale) for given, _ in map(_resolve, (one, other))]
    found = interference(*deltas)
    rows = [
        Row(name, (_cosine(overlap.cosine), _angles(overlap.columns), _angles(overlap.rows)))
        for name, overlap in found.shared.items()
    ]
    rows.append(Row("all parameters", (_cosine(found.cosine), "", ""), strong=True))
    _print_table("What both change", ("cosine", "columns, degrees", "rows, degrees"), rows)
    for words, names in (("first", found.first_only), ("second", found.second_only)):
        if names:
            print(f"only the {words}: {_many(names, MOST_NAMES)}")
    print(
        "cosine 0: they do not meet; 1: the same change; -1: one undoes the other. Angles between the spaces"
        "\nof columns (what is written, where a weight is stored as out x in) and of rows (what it is written"
        "\nfor), from smallest to largest: 0 is a direction that both have, 90 one that they do not share."
    )


@app.command()
def compose(
    refs: Annotated[list[str], typer.Argument(metavar="REF...", help=REF)],
    out: Annotated[
        Path | None, typer.Option(help="File for the result (default: kept in the store by its address).")
    ] = None,
    any_weights: AnyWeights = False,
) -> None:
    """Add deltas up, each times its scale, into a new one; its file remembers what it was made of."""
    from gapeval_lab.delta_compose import compose as add_up
    from gapeval_lab.stored_deltas import composed_path

    total, origin = add_up([_resolve(ref)[0] for ref in refs], any_weights=any_weights)
    file = total.save(out or composed_path(home(), total.digest), origin=origin)
    print(f"{total.digest}  norm {total.norm():.4g}")
    print("\n".join(_parts(origin)))
    print(f"written to {short(file)}")


@app.command()
def apply(
    ref: Ref,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the recipe.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Run this recipe with the delta for intervention.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Ask at most so many items.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    model: Model = None,
    out: Annotated[Path | None, typer.Option(help="With --model: folder for the merged checkpoint.")] = None,
    any_weights: AnyWeights = False,
) -> None:
    """Measure a delta with --recipe, or write a model that holds it with --model and --out.

    With --recipe: its facts, items and controls stay, its intervention (and what comes 'then') is
    replaced by the delta. With --model: weights and delta are added up for good, for use elsewhere.
    """
    if (recipe is None) == (model is None):
        raise UserError(
            "delta apply: give --recipe R to measure the delta, or --model M --out FOLDER to write a merged "
            "checkpoint"
        )
    given, head = _resolve(ref)
    if recipe is not None:
        if out is not None:
            raise UserError("--out: is for merged checkpoints; give it with --model, without --recipe")
        from gapeval_lab.cli import edit

        node = {"use": "saved", "delta": str(given.path.absolute()), "scale": given.scale}
        node |= {"direction": head.origin.direction or "both", "any_weights": any_weights}
        edit(recipe, [*_instead(node), *(overrides or [])], limit=limit, dry_run=dry_run)
        return
    if out is None or overrides or limit is not None or dry_run:
        raise UserError("--model: needs --out FOLDER, and takes no fields of a recipe")
    from gapeval_lab.delta import WeightDelta
    from gapeval_lab.merged import write_merged

    after = write_merged(
        _load_model(str(model)),
        WeightDelta.load(given.path).scaled(given.scale),
        out,
        head=head,
        source=given.path,
        scale=given.scale,
        any_weights=any_weights,
    )
    print(f"written to {short(out)}; weights {after[:SHORT]}")
    print(f"measure it with: gapeval-lab eval --recipe baseline model.weights={short(out)}")


def _instead(node: dict[str, Any]) -> list[str]:
    """Overrides that put a node in the place of a recipe's interventions and of what they alone need."""
    import json

    return [f"intervention={json.dumps(node)}", "then=[]", "emergence=null", "search=null"]


def _resolve(words: str) -> "tuple[ScaledFile, Head]":
    from gapeval_lab.delta_file import read_head
    from gapeval_lab.stored_deltas import resolve

    given = resolve(words, home())
    return given, read_head(given.path)


def _load_model(name: str) -> "UMM":
    """The model of a config."""
    from gapeval_lab.recipe import model_node
    from gapeval_lab.registry import build

    node = model_node(name)
    umm: UMM = build("models", node.use, settings=node.settings).load()
    return umm


def _lines(entry: "Stored") -> list[str]:
    """An entry of the list: its address and name, then what it is."""
    if entry.head is None:
        return [f"{'?' * SHORT}  {entry.name or entry.path.name}", entry.problem]
    parts = [f"{part.address[:SHORT]}*{part.scale:g}" for part in entry.head.origin.parts]
    name = entry.name or (f"composed of {' + '.join(parts)}" if parts else entry.path.name)
    count = len(entry.head.terms)
    words = [
        f"recipe {entry.recipe}" if entry.recipe else "",
        " through ".join(word for word in (entry.method, entry.direction) if word),
        f"{count} parameter{'' if count == 1 else 's'}",
        f"rank {entry.head.ranks}",
        "" if entry.norm is None else f"norm {entry.norm:.4g}",
    ]
    lines = [f"{entry.head.address[:SHORT]}  {name}", ", ".join(word for word in words if word)]
    if entry.facts:
        lines.append(f"facts {_many(entry.facts, MOST_FACTS)}")
    return lines


def _many(names: Sequence[str], most: int) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _origin(given: "ScaledFile", head: "Head") -> list[str]:
    """Where a shown delta comes from."""
    lines = [f"    from {short(given.path)}" + (f", times {given.scale:g}" if given.scale != 1 else "")]
    if head.origin.weights:
        lines.append(f"    made for weights {head.origin.weights[:SHORT]}")
    return lines + _parts(head.origin)


def _parts(origin: "Origin") -> list[str]:
    return [f"    {part.scale:+g} x {part.address[:SHORT]}  {part.name}" for part in origin.parts]


def _cosine(cosine: float | None) -> str:
    return "n/a" if cosine is None else f"{cosine:+.3f}"


def _angles(angles: Sequence[float] | None) -> str:
    if not angles:
        return "n/a"
    return f"{angles[0]:.1f}" if len(angles) == 1 else f"{angles[0]:.1f} to {angles[-1]:.1f}"


def _print_table(title: str, columns: Sequence[str], rows: "Sequence[Row]") -> None:
    from gapeval_lab.report_cells import draw_rows

    wide_console(WIDTH).print(draw_rows(title, columns, rows))
