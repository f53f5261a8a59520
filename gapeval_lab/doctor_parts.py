"""Checks of engines, keys and the shipped models, and one question put to the smaller one."""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from gapeval_lab import registry
from gapeval_lab.doctor import Line
from gapeval_lab.errors import UserError
from gapeval_lab.recipe import model_node
from gapeval_lab.shipped import find_file, names_in, read_text
from gapeval_lab.yaml_file import parse

OPTIONAL = {
    "datasets": "pip install 'gapeval_lab[datasets]', to read benchmarks that are published as data sets",
    "ray": "pip install 'gapeval_lab[ray]', to run on several machines",
}

SHIPPED = {
    "embedded": "ec8c0893db217a692c267b98885e269079ce10100ac5463dec52283e92d2a920",
    "embedded_emu3": "ad511b2eb4ea011098ceb4eb4ea313bc20a21fc5197fedc91e435ae8d75281ac",
}
"""Folder -> SHA-256 over what is loaded of it: all files but `UNREAD`."""

UNREAD = ("README.md", "card.json", "emergence.json", "emergence.png")

ASKED = "recolour-011"


def easyedit() -> Iterator[Line]:
    """EasyEdit, and which of its methods can be run with the source that is there."""
    from gapeval_lab.interventions.easyedit_methods import METHODS
    from gapeval_lab.interventions.easyedit_source import VARIABLE, find_source

    try:
        source = find_source(None)
    except UserError as error:
        told, _, fix = str(error).partition("; ")
        wrong = bool(os.environ.get(VARIABLE))
        yield Line("easyedit", "problem" if wrong else "note", told.partition(": ")[2], fix)
        return
    can = [name for name, method in METHODS.items() if source.has(method.main)]
    cannot = [name for name in METHODS if name not in can]
    text = f"{source.name}: {', '.join(can) or 'no method'}"
    if cannot:
        fix = f"for {', '.join(cannot)}, clone github.com/zjunlp/EasyEdit and name its folder in {VARIABLE}"
        yield Line("easyedit", "note", text, fix)
    else:
        yield Line("easyedit", "ok", text)


def optional() -> Iterator[Line]:
    """Packages that only some things need."""
    for name, fix in OPTIONAL.items():
        try:
            yield Line(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Line(name, "note", "not installed", fix)


def api_keys() -> Iterator[Line]:
    """Which environment variables hold the keys of judges: whether they are set, never what they hold."""
    found: dict[str, list[str]] = {}
    for name in names_in("configs/judges", suffix=".yaml"):
        file = find_file(name, folder="configs/judges", suffix=".yaml")
        try:
            variables = list(_variables(parse(read_text(file), str(file)).data))
        except UserError as error:
            yield Line(name, "note", "this judge's config cannot be read", " ".join(str(error).split())[:160])
            continue
        for variable in variables:
            found.setdefault(variable, []).append(name)
    for variable, judges in found.items():
        users = ", ".join(judges)
        if os.environ.get(variable, "").strip():
            yield Line(variable, "ok", f"set, for {users}")
        else:
            yield Line(
                variable,
                "note",
                f"not set; {users} cannot judge",
                f"export {variable}, if you want to use it",
            )


def weights() -> Iterator[Line]:
    """Whether the shipped models are as they were shipped."""
    for name, wanted in SHIPPED.items():
        folder = Path(__file__).parent / "models" / name
        if not (folder / "model.safetensors").is_file():
            yield Line(name, "problem", f"{folder} has no weights", "install the package again")
        elif digest(folder) != wanted:
            yield Line(
                name, "problem", "its files are not those that were shipped", "bring them back (git checkout)"
            )
        else:
            yield Line(name, "ok", f"intact ({wanted[:12]})")


def self_test() -> Iterator[Line]:
    """The shipped model is asked one item in both directions, and judged."""
    from gapeval_lab.evaluate import evaluate
    from gapeval_lab.items import Direction

    began = time.monotonic()
    node = model_node("embedded")
    umm = registry.build("models", node.use, settings=node.settings).load()
    benchmark = registry.build("benchmarks", "tinyworld", settings={})
    judge = registry.build("judges", "exact", settings={})
    loaded = time.monotonic()
    item = next(item for item in benchmark.items() if item.id == ASKED)
    seen = evaluate(umm, [item], judge=judge, seed=0)
    spent = time.monotonic() - loaded
    wrong = [str(direction) for direction in Direction if seen.correct(item, direction) is not True]
    told = seen.responses[item.id, Direction.UNDERSTANDING].text
    times = f"loaded in {loaded - began:.1f} s, asked in {spent:.1f} s"
    if wrong:
        fix = "run the tests: another version of torch or transformers may behave otherwise"
        yield Line("self-test", "problem", f"the model fails at {', '.join(wrong)} where it should not", fix)
    else:
        yield Line("self-test", "ok", f"{ASKED}: told {told!r} and drew it, both right; {times}")


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a shipped model's files."""
    whole = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name not in UNREAD and not file.name.startswith("."):
            whole.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def _variables(node: Any) -> Iterator[str]:
    """The `key_env` of a judge's node, as it is written or as its plug-in has it, and of those within it."""
    if isinstance(node, list):
        for one in node:
            yield from _variables(one)
    if not isinstance(node, Mapping):
        return
    written = node.get("key_env")
    if "key_env" not in node and node.get("use") in registry.names("judges"):
        field = registry.find("judges", str(node["use"])).model_fields.get("key_env")
        written = field.default if field else None
    if isinstance(written, str):
        yield written
    for value in node.values():
        yield from _variables(value)
