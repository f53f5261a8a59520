"""The commands of `gapeval-lab model`: parses, calls one function, prints. Heavy imports inside."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from gapeval_lab.cli_common import wide_console

if TYPE_CHECKING:
    from torch import nn

    from gapeval_lab.interfaces import Sites
    from gapeval_lab.report_cells import Row

WIDTH = 160  # columns, where there is no terminal to ask

app = typer.Typer(
    help="Models: which there are, and what they are made of.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[str, typer.Argument(metavar="NAME", help="Name or path of a model's config.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the config by dotted path.")
]


@app.command("list")
def list_() -> None:
    """List the models' configs with what they say of themselves, and the plug-ins that they may use."""
    from gapeval_lab.registry import names
    from gapeval_lab.shipped import find_file, names_in, read_text

    for name in names_in("configs/models", suffix=".yaml"):
        lines = read_text(find_file(name, folder="configs/models", suffix=".yaml")).splitlines()
        about = next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
        print(f"{name}\n    {about}" if about else name)
    print(f"plug-ins: {', '.join(names('models'))}")


@app.command()
def sites(name: Config, overrides: Overrides = None) -> None:
    """Print where a model's sites are: path, layers, shape of the weight, and whether they exist.

    Reads config.json alone where the family can be built without weights; else the model is loaded.
    """
    from gapeval_lab.report_cells import Row

    root, table = _sketch(name, overrides)
    found = table()
    rows = []
    for site, template in found.templates.items():
        layers = found.layers if "{}" in template else 1
        modules = [_module(root, found.path(site, layer)) for layer in range(layers)]
        there = [module for module in modules if module is not None]
        shapes = dict.fromkeys(_shape(module) for module in there)
        cells = (template, str(layers), " or ".join(shapes), f"{len(there)} of {layers}")
        rows.append(Row(site, cells))
    _print("Sites", ("path", "layers", "weight", "there"), rows)
    stored = "in x out: transposed" if found.transposed else "out x in: not transposed"
    print(f"{found.layers} layers, 0 to {found.layers - 1}; weights are {stored}")


@app.command()
def modules(name: Config, overrides: Overrides = None) -> None:
    """Print every module of a model that holds a weight; numbers in paths that repeat stand as {}."""
    from gapeval_lab.report_cells import Row

    root, _ = _sketch(name, overrides)
    counts: dict[tuple[str, str, str], int] = {}
    for path, module in root.named_modules():
        if shape := _shape(module):
            key = (re.sub(r"\.\d+(?=\.|$)", ".{}", path), type(module).__name__, shape)
            counts[key] = counts.get(key, 0) + 1
    rows = [Row(path, (kind, shape, str(count))) for (path, kind, shape), count in counts.items()]
    _print("Modules with a weight", ("class", "weight", "how many"), rows)


def _sketch(name: str, overrides: list[str] | None) -> tuple["nn.Module", Callable[[], "Sites"]]:
    """A model's root, without weights if that can be had, and a function that gives its sites."""
    from gapeval_lab.interfaces import Sketchable
    from gapeval_lab.recipe import model_node
    from gapeval_lab.registry import build

    node = model_node(name, overrides or [])
    settings = build("models", node.use, settings=node.settings)
    if isinstance(settings, Sketchable):
        root = settings.sketch()
        return root, lambda: settings.sites_in(root)
    backbone = settings.load().backbone()
    table: Sites = backbone.sites
    return backbone.root, lambda: table


def _module(root: "nn.Module", path: str) -> "nn.Module | None":
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _shape(module: "nn.Module") -> str:
    """The weight's shape; empty where the module has none of its own."""
    shape = getattr(getattr(module, "weight", None), "shape", ())
    return " x ".join(map(str, shape))


def _print(title: str, columns: tuple[str, ...], rows: "list[Row]") -> None:
    from gapeval_lab.report_cells import draw_rows

    wide_console(WIDTH).print(draw_rows(title, columns, rows))
