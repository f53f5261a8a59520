"""The import arrows of DESIGN.md, file lengths and prints: walked over the syntax trees.

`ARROWS` and `HEAVY` are the tables. A key is a module or a folder of the package; `tracking` also
stands for the files `tracking_*`, and so do the other FAMILIES for theirs. To let a module import another
one, change the table here and the design document with it.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gapeval_lab"

FOLDERS = ("models", "benchmarks", "judges", "interventions", "gap", "pages")
FAMILIES = (  # one concern in several files
    *("tracking", "delta", "cli", "search", "trials", "report", "endpoint", "rescoring", "shards"),
    *("comparing", "leaderboard", "reproducing", "doctor"),
)

EVERYTHING = {"*"}
PLUG_IN = {"delta", "files", "interfaces", "items", "errors"}

ARROWS: dict[str, set[str]] = {
    # values and contracts
    "__init__": set(),
    "errors": set(),
    "items": set(),
    "scene": set(),
    "files": {"errors"},
    "home": set(),
    "endpoint": {"items", "errors"},
    "interfaces": {"items", "errors"},
    "gapeval_layout": {"items", "errors"},
    "lessons": {"interfaces", "items", "errors", "validation"},
    "validation": set(),
    "shipped": {"errors", "validation"},
    "yaml_file": {"errors", "validation"},
    "delta": {"errors", "files"},
    "facts": {"items", "errors", "files", "shipped", "validation"},
    "fact_formats": set(),
    "fact_files": {"fact_formats", "facts", "items", "errors", "shipped", "validation"},
    "registry": {"interfaces", "errors", "validation"},
    "space": {"sections", "registry", "errors", "validation"},
    "study_settings": {"sections", "space"},
    "sections": set(),
    "protocol_settings": {"sections"},
    "evaluation_settings": {"sections", "protocol_settings"},
    "recipe_draft": {"registry", "errors", "shipped", "validation", "yaml_file"},
    "recipe": {
        *("sections", "registry", "errors", "shipped", "space", "study_settings", "validation"),
        *("yaml_file", "evaluation_settings", "recipe_draft"),
    },
    "gap": {"errors"},
    "catalogue": {"recipe", "errors", "shipped", "yaml_file"},
    "outcome": {"gap", "files"},
    # plug-ins: none imports another kind
    # a model may be made of others, whatever their family
    "models": PLUG_IN
    | {"gapeval_layout", "endpoint", "nested", "registry", "shipped", "validation", "yaml_file"},
    "benchmarks": PLUG_IN | {"scene", "gapeval_layout", "shipped", "yaml_file"},
    # a judge that is a model on this machine builds it by name
    "judges": PLUG_IN
    | {
        "scene",
        "endpoint",
        "gapeval_layout",
        "home",
        "labels",
        "nested",
        "registry",
        "validation",
        "yaml_file",
    },
    "interventions": PLUG_IN | {"validation"},
    # running
    "reasoning": {"evaluate", "sections", "interfaces", "items"},
    "protocols": {"evaluate", "protocol_settings", "sections", "interfaces", "items"},
    "quality": {"evaluate", "gap", "outcome", "reasoning", "sections", "interfaces", "items", "errors"},
    "response_store": {"items", "errors"},
    "evaluate": {"delta", "response_store", "interfaces", "items", "errors"},
    "export_gapeval": {"registry", "outcome", "gapeval_layout", "interfaces", "items", "errors", "files"},
    "provenance": set(),
    "inputs": {"lessons", "outcome", "recipe", "shipped", "errors", "files"},
    "splits": {"items", "errors"},
    "bench": {
        *("registry", "evaluate", "recipe", "delta", "facts", "fact_files", "lessons", "splits"),
        *("interfaces", "items", "errors", "protocols", "inputs", "provenance"),
    },
    "stored_deltas": {"delta", "errors", "validation"},
    "merged": {"delta", "interfaces", "errors", "files"},
    "work_folder": {"fitting", "errors"},
    "item_rows": {"evaluate", "items", "outcome", "quality"},
    "emergence": {"bench", "evaluate", "gap", "recipe", "outcome", "quality", "interfaces", "items", "files"},
    "measuring": {"bench", "evaluate", "protocols", "quality", "reasoning", "items"},
    "protocol_record": {
        *("bench", "evaluate", "gap", "outcome", "item_rows", "measuring", "protocols", "protocol_settings"),
        *("quality", "items"),
    },
    "recording": {
        *("bench", "evaluate", "delta", "gap", "outcome", "quality", "provenance"),
        *("fitting", "item_rows", "measuring", "protocol_record"),
        *("inputs", "interfaces", "items"),
    },
    "run": {
        *("bench", "evaluate", "delta", "outcome", "fitting", "measuring", "recording", "response_store"),
        *("work_folder", "errors", "files"),
    },
    "testing": {"delta", "interfaces", "items"},
    # telling
    "tracking": {
        *("run", "outcome", "recipe", "gap", "report", "stored_runs", "validation"),
        *("errors", "files", "home"),
    },
    "tracked_run": {
        *(
            "bench",
            "evaluate",
            "outcome",
            "pages",
            "recording",
            "run",
            "summaries",
            "tracking",
            "work_folder",
        ),
    },
    "summaries": {"gap", "outcome", "files", "errors"},
    "comparing": {
        *(
            "gap",
            "outcome",
            "repeats",
            "report",
            "stored_runs",
            "summaries",
            "tracking",
            "validation",
            "errors",
        ),
    },
    "leaderboard": {
        *("comparing", "gap", "outcome", "report", "summaries", "tracking", "validation", "errors"),
    },
    "trials": {
        *("bench", "evaluate", "recipe", "delta", "gap", "outcome", "quality", "fact_files", "splits"),
        *("emergence", "fitting", "measuring", "protocol_record", "recording", "run", "tracked_run"),
        "tracking",
        "study_settings",
        *("interfaces", "items", "errors", "files", "validation"),
    },
    "reproducing": {
        *("bench", "recipe", "registry", "delta", "inputs", "outcome", "provenance", "report"),
        *("run", "stored_runs", "tracked_run", "tracking", "work_folder"),
        *("interfaces", "items", "errors", "files"),
    },
    "doctor": {
        *("evaluate", "interventions", "provenance", "recipe", "registry", "tracking"),
        *("shipped", "yaml_file", "items", "errors"),
    },
    "processes": set(),
    "shards": {
        *("registry", "bench", "evaluate", "recipe", "delta", "quality", "response_store", "processes"),
        *("tracking", "interfaces", "items", "errors"),
    },
    "search": {
        *("trials", "tracking", "processes", "recipe", "space", "study_settings", "gap"),
        *("errors", "files"),
    },
    "fitting": {"bench", "delta", "emergence", "files", "interfaces", "lessons", "outcome"},
    "repeats": {"gap", "outcome"},
    "report": {"gap", "outcome", "planning", "repeats", "errors", "files"},
    "pages": {"comparing", "leaderboard", "gap", "outcome", "report", "tracking", "errors", "files"},
    "scoring": {"gap", "report"},
    "auditing": {"gap", "outcome"},
    "planning": {"gap", "outcome", "errors"},
    # judging again
    "agreement": {"gap", "items"},
    "calibration": {"gap", "errors", "files"},
    "calibrating": {
        *("bench", "calibration", "evaluate", "labels", "recipe", "registry", "rescoring", "scene"),
        "stored_runs",
        *("interfaces", "items", "errors"),
    },
    "labels": {"items", "errors"},
    "label_export": {"labels", "items", "errors", "files"},
    "nested": {"recipe_draft", "registry", "errors", "shipped", "validation", "yaml_file"},
    "rescoring": {
        *("agreement", "calibration", "gap", "labels", "outcome", "report", "stored_runs"),
        *("interfaces", "items", "errors", "files"),
    },
    "stored_runs": {"registry", "outcome", "validation", "items", "errors"},
    "cli": EVERYTHING,
}
"""Who may import whom inside the package, anywhere in the file; its own folder or family always."""

TYPES_ONLY: dict[str, set[str]] = {"interfaces": {"delta"}, "response_store": {"evaluate"}}
"""Arrows for type checkers alone, under `if TYPE_CHECKING:`."""

HEAVY_PACKAGES = {
    *("torch", "torchvision", "transformers", "tokenizers", "peft", "diffusers", "accelerate", "datasets"),
    *("mlflow", "optuna", "matplotlib", "pandas", "scipy", "ray", "easyeditor", "openai", "jinja2"),
}

HEAVY: dict[str, set[str]] = {
    "delta": {"torch"},
    "gap": {"torch", "scipy"},
    "models": {"torch", "transformers", "tokenizers"},
    "interventions": {"torch", "scipy"},
    "judges": {"scipy"},
    "report": {"matplotlib"},
    "testing": {"torch"},
    "search": {"optuna"},
}
"""Which heavy packages a module may import when it is imported. Inside functions all may, but see OWNERS."""

OWNERS = {
    **{"mlflow": "tracking", "optuna": "search", "easyeditor": "interventions"},
    **{"openai": "endpoint", "jinja2": "judges and pages"},
}
"""Packages that one module alone may import, wherever in the file."""

LONGEST_FILE = 400


@dataclass(frozen=True)
class Import:
    """One imported module: `torch.nn`, `gapeval_lab.items`."""

    module: str
    line: int
    at_import: bool  # runs when the file is imported: not in a function, not for type checkers
    types_only: bool


def key_of(module: str) -> str:
    """The table's key for a dotted module below the package."""
    first = module.split(".")[0]
    return next((family for family in FAMILIES if first.startswith(f"{family}_")), first)


def imports_of(tree: ast.Module) -> list[Import]:
    """Every import of a file; relative ones keep their dots."""
    found: list[Import] = []

    def visit(node: ast.AST, *, at_import: bool, types_only: bool) -> None:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            # `from gapeval_lab import recipe` imports a module, `from gapeval_lab.recipe import load` a name
            names = (
                [f"{source}.{alias.name}" for alias in node.names] if source == "gapeval_lab" else [source]
            )
        found.extend(Import(name, node.lineno, at_import, types_only) for name in names)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, at_import=False, types_only=True)
            for child in node.orelse:
                visit(child, at_import=at_import, types_only=types_only)
            return
        inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, at_import=inside, types_only=types_only)

    visit(tree, at_import=True, types_only=False)
    return found


def violations(module: str, source: str) -> list[str]:
    """What a file breaks, one line each.

    Args:
        module: dotted, below the package: "recipe", "gap.score".
        source: the file's text.
    """
    tree = ast.parse(source)
    key = key_of(module)
    if key not in ARROWS:
        return [f"{module}: not in the table of this test"]
    problems: list[str] = []
    for found in imports_of(tree):
        top, _, rest = found.module.partition(".")
        where = f"{module}:{found.line}"
        if found.module.startswith("."):
            problems.append(f"{where}: relative import; write gapeval_lab.<module>")
        elif top == "gapeval_lab":
            target = "__init__" if not rest or rest.startswith("__") else key_of(rest)
            allowed = (
                ARROWS[key] | {key, "__init__"} | (TYPES_ONLY.get(key, set()) if found.types_only else set())
            )
            if target not in allowed and ARROWS[key] is not EVERYTHING:
                problems.append(f"{where}: may not import {target}")
        elif key not in OWNERS.get(top, key).split(" and "):
            problems.append(f"{where}: only {OWNERS[top]} imports {top}")
        elif top in HEAVY_PACKAGES and found.at_import and top not in HEAVY.get(key, set()):
            problems.append(
                f"{where}: imports {top} when it is imported; do it in the function that needs it"
            )
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            and key != "cli"
        ):
            problems.append(f"{module}:{node.lineno}: print")
    lines = source.splitlines()
    if len(lines) > LONGEST_FILE and not re.search(r"over 400 lines because", " ".join(lines[:10])):
        problems.append(
            f"{module}: {len(lines)} lines; split it, or say 'over 400 lines because ...' at its head"
        )
    return problems


def modules() -> dict[str, Path]:
    """Every file of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


@pytest.mark.parametrize("module", modules())
def test_the_file_keeps_to_the_design(module):
    assert violations(module, modules()[module].read_text(encoding="utf-8")) == []


def test_the_folders_are_those_of_the_table():
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")} - {"."}
    assert folders == set(FOLDERS)


def test_the_table_has_no_cycles():
    def below(key: str, above: tuple[str, ...]) -> None:
        assert key not in above, f"cycle: {' -> '.join((*above, key))}"
        for target in ARROWS[key] - EVERYTHING:
            below(target, (*above, key))

    for key in ARROWS:
        below(key, ())


@pytest.mark.parametrize("kind", ["models", "benchmarks", "judges", "interventions"])
def test_no_arrow_leads_from_a_plug_in_to_another_kind(kind):
    assert not ARROWS[kind] & ({"models", "benchmarks", "judges", "interventions"} - {kind})


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("gap.score", "from gapeval_lab.items import Item", "gap.score:1: may not import items"),
        ("gap.score", "from ..models.janus import Janus", "gap.score:1: relative import"),
        ("gap.score", "from . import records", "gap.score:1: relative import"),
        ("models.janus", "import gapeval_lab.judges.exact", "models.janus:1: may not import judges"),
        ("models.janus", "from gapeval_lab import scene", "models.janus:1: may not import scene"),
        ("recipe", "def f():\n    from gapeval_lab.run import run", "recipe:2: may not import run"),
        ("recipe", "import torch", "recipe:1: imports torch when it is imported"),
        ("recipe", "class A:\n    import torch.nn", "recipe:2: imports torch"),
        ("recipe", "try:\n    import torch\nexcept ImportError:\n    pass", "recipe:2: imports torch"),
        ("report", "def f():\n    import mlflow", "report:2: only tracking imports mlflow"),
        ("run", "from mlflow.entities import Run", "run:1: only tracking imports mlflow"),
        ("tracking_log", "import mlflow", "tracking_log:1: imports mlflow when it is imported"),
        ("cli", "def f():\n    from optuna import create_study", "cli:2: only search imports optuna"),
        ("cli", "import torch", "cli:1: imports torch when it is imported"),
        ("items", "if TYPE_CHECKING:\n    from gapeval_lab.delta import X", "items:2: may not import delta"),
        ("interfaces", "from gapeval_lab.delta import X", "interfaces:1: may not import delta"),
        ("interfaces", "if TYPE_CHECKING:\n    pass\nelse:\n    import torch", "interfaces:4: imports torch"),
        ("recipe", "print('x')", "recipe:1: print"),
        ("recipe", "x = 1\n" * 401, "recipe: 401 lines"),
        ("helpers", "", "helpers: not in the table"),
        ("tracking_log", "import gapeval_lab.search", "tracking_log:1: may not import search"),
        ("trials_run", "import gapeval_lab.search_study", "trials_run:1: may not import search"),
        ("search_study", "def f():\n    import mlflow", "search_study:2: only tracking imports mlflow"),
    ],
)
def test_the_checker_can_fail(module, source, expected):
    (problem,) = violations(module, source)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "gap.score",
            "import torch\nfrom gapeval_lab.errors import UserError\nimport gapeval_lab.gap.records",
        ),
        ("recipe", "def f():\n    import torch"),
        ("recipe", "from gapeval_lab import __version__, registry"),
        ("interfaces", "if TYPE_CHECKING:\n    import torch\n    from gapeval_lab.delta import WeightDelta"),
        ("tracking_log", "def f():\n    import mlflow\n    from gapeval_lab.tracking_store import Store"),
        ("search", "import optuna\nfrom gapeval_lab.tracking import track"),
        ("cli", "def f():\n    from gapeval_lab.search import search\n    print('x')"),
        ("cli_delta", "print('x')"),
        ("recipe", '"""Long: over 400 lines because it is a table."""\n' + "x = 1\n" * 500),
        ("recipe", "x = 1\n" * 400),
    ],
)
def test_the_checker_lets_pass_what_the_design_allows(module, source):
    assert violations(module, source) == []


def test_the_test_line_is_the_same_in_the_readme_and_in_ci() -> None:
    root = PACKAGE.parent
    lines = (root / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.endswith("/pytest")]
    assert line in (root / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_readme_names_every_file() -> None:
    root = PACKAGE.parent
    tree = (root / "README.md").read_text(encoding="utf-8").split("## The tree")[1]
    named = set(re.findall(r"^\s*(\w+\.py) ", tree, flags=re.MULTILINE))
    files = {
        path.name
        for folder in (PACKAGE, root / "scripts")
        for path in folder.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert named == files
