"""Checks of what is installed, of the machine, and of the store."""

import os
import platform
import re
import shutil
import stat
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from gapeval_lab import __version__
from gapeval_lab.doctor import Line
from gapeval_lab.provenance import git_revision, machine
from gapeval_lab.tracking import Store, health

ROOT = Path(__file__).parent.parent
"""The checkout, if it is one."""

GIB = 1 << 30
LITTLE_DISK, TIGHT_DISK = 2 * GIB, 10 * GIB
LITTLE_MEMORY = 2 * GIB


def python() -> Iterator[Line]:
    """Python, and our own version."""
    wanted, version = _project().get("requires-python", ""), platform.python_version()
    if wanted and not _within(version, wanted):
        yield Line(
            "python", "problem", f"{version}; {wanted} is needed", "make an environment with another Python"
        )
    else:
        yield Line("python", "ok", version)
    revision = git_revision()
    at = f" at {revision[:12]}" + (" with changes" if revision.endswith("+dirty") else "") if revision else ""
    yield Line("gapeval_lab", "ok", f"{__version__}{at}")


def packages() -> Iterator[Line]:
    """What we need: within the versions we ask for, and whether they are those that were tested together."""
    from packaging.requirements import InvalidRequirement, Requirement

    tested = _tested()
    for text in _required():
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        name, asked = wanted.name, str(wanted.specifier)
        fix = f"pip install '{name}{asked}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Line(name, "problem", f"not installed; {asked or 'any version'} is needed", fix)
            continue
        was = tested.get(_plain(name))
        if not wanted.specifier.contains(version, prereleases=True):
            yield Line(name, "problem", f"{version}; {asked} is needed", fix)
        elif was is not None and version.partition("+")[0] != was:
            fix = f"pip install '{name}=={was}', if results are odd"
            yield Line(name, "note", f"{version}; tested with {was}", fix)
        else:
            yield Line(name, "ok", version)


def processor() -> Iterator[Line]:
    """Cores and memory."""
    found = machine()
    yield Line(
        "cpu", "ok", f"{found['cpu']}, cores: {found['cores']}, torch's threads: {found['torch threads']}"
    )
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    total = pages * size
    free = _available()
    text = f"{total / GIB:.1f} GiB" + (f", {free / GIB:.1f} GiB free" if free is not None else "")
    if free is not None and free < LITTLE_MEMORY:
        yield Line("memory", "note", text, "close something; a run of the shipped model needs about 1 GiB")
    else:
        yield Line("memory", "ok", text)


def accelerators() -> Iterator[Line]:
    """GPUs with their memory."""
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            yield Line(f"cuda:{number}", "ok", f"{name}, {total / GIB:.1f} GiB, {free / GIB:.1f} GiB free")
    elif torch.backends.mps.is_available():
        yield Line("mps", "ok", "Apple's GPU; it shares the memory above")
    elif shutil.which("nvidia-smi") and torch.version.cuda is None:
        fix = "install a CUDA build of torch, see pytorch.org"
        yield Line("gpu", "note", "this machine seems to have one, but torch was built without CUDA", fix)
    else:
        yield Line(
            "gpu",
            "note",
            "none; larger models will be slow",
            "the shipped model needs none",
        )


def home_folder() -> Iterator[Line]:
    """The folder of runs: whether it can be written, and how much space there is."""
    store = Store.open()
    folder = store.folder
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        fix = "make it writable, or set GAPEVAL_LAB_HOME to a folder that is"
        yield Line("folder", "problem", f"{folder} cannot be written", fix)
    elif not folder.exists():
        yield Line("folder", "ok", f"{folder}, made by the first run")
    elif folder.stat().st_mode & stat.S_IWOTH:
        fix = f"chmod o-w {folder}"
        yield Line("folder", "note", f"{folder} can be written by everybody on this machine", fix)
    else:
        runs = sum(1 for _ in folder.glob("outcomes/*/outcome.json"))
        yield Line("folder", "ok", f"{folder}, {runs} outcomes")
    free = shutil.disk_usage(nearest).free
    text, fix = f"{free / GIB:.1f} GiB free", "free some space, or set GAPEVAL_LAB_HOME to another disk"
    if free < LITTLE_DISK:
        yield Line("disk", "problem", text, fix)
    elif free < TIGHT_DISK:
        yield Line("disk", "note", text, fix)
    else:
        yield Line("disk", "ok", text)


def store() -> Iterator[Line]:
    """MLflow's store: reachable, whole, its schema, what stands as running, where artifacts are."""
    opened = Store.open()
    seen = health(opened)
    source = "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "the project's own"
    if seen.error:
        yield Line("tracking", "problem", f"{seen.uri} ({source}): {seen.error}", seen.fix)
        return
    if not seen.exists:
        yield Line("tracking", "ok", f"{seen.uri} ({source}), made by the first run")
        return
    yield Line("tracking", "ok", f"{seen.uri} ({source}), {seen.runs} runs, can be used")
    if seen.schema and seen.wanted and seen.schema != seen.wanted:
        fix = "the next run upgrades it and keeps a copy; an older MLflow cannot read it then"
        yield Line("schema", "note", f"{seen.schema}; the installed MLflow has {seen.wanted}", fix)
    elif seen.schema:
        yield Line("schema", "ok", seen.schema)
    if seen.stale:
        fix = "the next run ends them; the same command as then goes on with one"
        yield Line("running", "note", f"{seen.running}, of which {seen.stale} have lost their process", fix)
    else:
        yield Line("running", "ok", f"{seen.running}")
    if seen.moved:
        fix = "gapeval-lab doctor --relocate"
        yield Line(
            "artifacts", "problem", f"of {seen.moved} experiments are said to lie in another project", fix
        )
    elif seen.missing:
        fix = "bring the folder back; numbers are not lost, tables and pictures are"
        yield Line("artifacts", "problem", f"of {seen.missing} experiments with finished runs are gone", fix)
    elif opened.served:
        yield Line("artifacts", "ok", "kept by the server")
    else:
        yield Line("artifacts", "ok", str(opened.artifacts))


def _project() -> dict[str, Any]:
    """What pyproject.toml says, or the installed package's own words about itself."""
    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if project.get("name") in ("gapeval_lab", "gapeval-lab"):
            return dict(project)
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        pass
    try:
        about = metadata.metadata("gapeval_lab")
    except metadata.PackageNotFoundError:
        return {}
    python = about.get_all("Requires-Python") or [""]
    return {"requires-python": python[0], "dependencies": metadata.requires("gapeval_lab") or []}


def _required() -> list[str]:
    return [str(text) for text in _project().get("dependencies", [])]


def _tested() -> dict[str, str]:
    """Name -> version, of a checkout's constraints.txt; nothing where only the package is installed."""
    try:
        text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    except OSError:
        return {}
    return {
        _plain(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE)
    }


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _within(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)


def _available() -> int | None:
    """Bytes of memory that can be had, where the system tells."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else None
