"""EasyEdit's own files: where they lie, what is changed in them while they are read, and how they go again.

Two sources, one at a time: the package on PyPI (0.0.1.dev0, of 2023; its pins are ignored) and a checkout
of the current repository (github.com/zjunlp/EasyEdit), which cannot be installed. Neither is imported as
it is: its `__init__` files import every method and all that any of them needs. Modules are read one by
one below empty packages instead, through a loader that makes the replacements of `PATCHES`, takes `print`
out of their hands, and leaves the files untouched. Afterwards they are gone from `sys.modules`: the next
import begins with fresh globals, since EasyEdit keeps contexts and statistics there and never asks which
model they are of.

Knows no method, no model and no fact.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType, MappingProxyType, ModuleType
from typing import Any, Final

from gapeval_lab.errors import UserError

VARIABLE: Final = "GAPEVAL_EASYEDIT"
INSTALL: Final = "pip install --no-deps easyeditor==0.0.1.dev0"
TOP: Final = "easyeditor"


@dataclass(frozen=True)
class Patch:
    """An expression that is replaced wherever it stands in some files, while they are read.

    Attributes:
        files: below the folder `easyeditor`.
        old, new: source text.
        why: what happens without it.
    """

    files: tuple[str, ...]
    old: str
    new: str
    why: str


_DEVICE: Final = "the package knows CUDA devices alone; here the setting holds a device's whole name"
_TUPLE: Final = "blocks of transformers 5 give a tensor, not a tuple that begins with one"
_Z: Final = ("models/memit/compute_z.py",)

PATCHES: Final = (
    Patch(
        (
            *("models/rome/compute_u.py", "models/rome/compute_v.py", "models/rome/layer_stats.py"),
            *("models/memit/compute_z.py", "models/memit/memit_main.py"),
        ),
        'f"cuda:{hparams.device}"',
        "hparams.device",
        _DEVICE,
    ),
    Patch(("models/ft/ft_main.py",), "f'cuda:{hparams.device}'", "hparams.device", _DEVICE),
    Patch(
        _Z,
        "cur_out[0][0, lookup_idxs[0]]",
        "(cur_out[0] if isinstance(cur_out, tuple) else cur_out)[0, lookup_idxs[0]]",
        _TUPLE,
    ),
    Patch(
        _Z,
        "cur_out[0][i, idx, :] += delta",
        "(cur_out[0] if isinstance(cur_out, tuple) else cur_out)[i, idx, :] += delta",
        _TUPLE,
    ),
    Patch(
        _Z,
        "tr[hparams.layer_module_tmp.format(loss_layer)].output[0][",
        "(lambda out: out[0] if isinstance(out, tuple) else out)"
        "(tr[hparams.layer_module_tmp.format(loss_layer)].output)[",
        _TUPLE,
    ),
)
"""What the package needs to run here; a checkout of today has none of these expressions."""


def _refuse(*args: Any) -> Any:
    raise RuntimeError("EasyEdit wants to load a data set; its second moments should have been given to it")


STAND_INS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {"datasets": {"load_dataset": _refuse}, "hydra": {}}
)
"""Packages that some modules import and that no method offered here uses, with the names taken from them."""


@dataclass(frozen=True)
class Source:
    """One of the two sources.

    Attributes:
        folder: the folder `easyeditor`.
        name: what it is called in messages.
    """

    folder: Path
    name: str

    def has(self, module: str) -> bool:
        """Whether it has a module, dotted, below `easyeditor`."""
        return self.folder.joinpath(*module.split(".")).with_suffix(".py").is_file()


def find_source(root: str | None) -> Source:
    """The checkout that is named, else the one that the environment names, else the installed package.

    Raises:
        UserError: there is none, or what is named is none.
    """
    named = root or os.environ.get(VARIABLE)
    if named:
        folder = Path(named).expanduser() / TOP
        if not (folder / "models").is_dir():
            raise UserError(
                f"root: '{named}' is no checkout of EasyEdit: it has no {TOP}/models; give the folder that "
                "`git clone https://github.com/zjunlp/EasyEdit` made"
            )
        return Source(folder.resolve(), f"the checkout {named}")
    # Not importlib.util.find_spec: it would believe what stands in sys.modules.
    spec = PathFinder.find_spec(TOP)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"intervention: easyedit needs EasyEdit itself, which is not there; `{INSTALL}`, or clone "
            f"https://github.com/zjunlp/EasyEdit and name the folder in root, or in {VARIABLE}"
        )
    try:
        version = importlib.metadata.version(TOP)
    except importlib.metadata.PackageNotFoundError:
        version = "without a version"
    return Source(Path(next(iter(spec.submodule_search_locations))), f"the package easyeditor {version}")


class Engine:
    """EasyEdit's modules, for as long as `opened` lasts.

    Attributes:
        source: where they come from.
    """

    def __init__(self, source: Source, finder: _Finder) -> None:
        self.source, self._finder = source, finder

    def module(self, name: str) -> Any:
        """A module by its dotted name below `easyeditor`.

        Raises:
            UserError: it cannot be imported.
        """
        try:
            return importlib.import_module(f"{TOP}.{name}")
        except ImportError as error:
            raise UserError(
                f"intervention: {self.source.name} cannot be imported ({type(error).__name__}: {error}); "
                "install what it asks for, or take the other source"
            ) from error

    def attribute(self, module: str, name: str) -> Any:
        """What a module calls `name`.

        Raises:
            UserError: it has nothing of that name: another version than those known here.
        """
        try:
            return getattr(self.module(module), name)
        except AttributeError:
            raise UserError(
                f"root: {module} of {self.source.name} has no '{name}'; this version is not known here, "
                f"take another checkout, or the package (`{INSTALL}`)"
            ) from None

    def digest(self) -> str:
        """SHA-256 over the text of every module read so far, as it lies on the disk."""
        result = hashlib.sha256()
        for name, text in sorted(self._finder.texts.items()):
            result.update(f"{name}\x00{text}\x00".encode())
        return result.hexdigest()


@contextmanager
def opened(source: Source, say: Callable[[str], None]) -> Iterator[Engine]:
    """EasyEdit's modules, imported on demand with fresh globals, and none of them left afterwards.

    What stood in `sys.modules` under their names comes back, and so does the path of finders.

    Args:
        source: where they lie.
        say: takes what they print, whole calls of `print` at a time.
    """
    aside = _taken_out()
    finder = _Finder(source.folder, say)
    sys.meta_path.insert(0, finder)
    try:
        yield Engine(source, finder)
    finally:
        sys.meta_path.remove(finder)
        _taken_out()
        sys.modules.update(aside)


def patched(text: str, file: str, patches: Sequence[Patch] = PATCHES) -> str:
    """The text of a file below `easyeditor` with its replacements made."""
    for patch in patches:
        if file in patch.files:
            text = text.replace(patch.old, patch.new)
    return text


def _taken_out() -> dict[str, ModuleType]:
    """Remove EasyEdit's modules and the stand-ins' names from `sys.modules`; returns them."""
    tops = {TOP, *STAND_INS}
    names = [name for name in sys.modules if name.partition(".")[0] in tops]
    return {name: sys.modules.pop(name) for name in names}


@lru_cache(maxsize=256)
def _compiled(text: str, file: str) -> CodeType:
    """The code of a module's text: the same for every edit, whose globals are its own."""
    return compile(text, file, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    """Finds EasyEdit's modules in one folder, whatever is installed."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.texts: dict[str, str] = {}

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname in STAND_INS:
            return ModuleSpec(fullname, _Named(STAND_INS[fullname]))
        top, *below = fullname.split(".")
        if top != TOP:
            return None
        place = self.folder.joinpath(*below)
        if place.is_dir():
            return ModuleSpec(fullname, _Named({}), is_package=True)
        file = place.with_suffix(".py")
        return ModuleSpec(fullname, _Loader(self, file), origin=str(file)) if file.is_file() else None


class _Named(Loader):
    """A module with a few names, or none: a stand-in, or a package whose `__init__` never runs."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update(self._names)


class _Loader(Loader):
    """Runs a file's text with its patches."""

    def __init__(self, finder: _Finder, file: Path) -> None:
        self._finder, self._file = finder, file

    def exec_module(self, module: ModuleType) -> None:
        text = self._file.read_text(encoding="utf-8")
        below = self._file.relative_to(self._finder.folder).as_posix()
        self._finder.texts[below] = text
        say = self._finder.say

        def print_aside(
            *parts: Any, sep: str | None = " ", end: str | None = "\n", file: Any = None, flush: bool = False
        ) -> None:
            say((" " if sep is None else sep).join(map(str, parts)) + ("\n" if end is None else end))

        # A global of the module shadows the built-in: unlike redirecting stdout, that is nobody else's.
        module.__dict__.update(__file__=str(self._file), __builtins__=builtins, print=print_aside)
        exec(_compiled(patched(text, below), str(self._file)), module.__dict__)
