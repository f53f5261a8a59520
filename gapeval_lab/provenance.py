"""What a number came from, beside recipe and data: versions, code, machine, memory used."""

import hashlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gapeval_lab import __version__

PACKAGES = (
    *("torch", "transformers", "numpy", "scipy", "mlflow", "tokenizers", "safetensors", "pillow", "peft"),
    *("diffusers", "accelerate", "openai", "datasets", "easyeditor"),
)
"""Packages that numbers may depend on; what is not installed is left out."""

GROUPS = ("models", "benchmarks", "judges", "interventions")


@cache
def versions() -> dict[str, str]:
    """Versions of everything that numbers depend on, packages with plug-ins of ours among them."""
    found = {"gapeval_lab": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    for group in GROUPS:
        for point in metadata.entry_points(group=f"gapeval_lab.{group}"):
            if point.dist is not None:
                found[point.dist.name] = point.dist.version
    return found


@cache
def git_revision() -> str | None:
    """The revision of the code that runs, "+dirty" where it was changed; None outside a checkout.

    Asked once in a process, like the versions: the code that runs is the code that was imported.
    """
    found = _git("describe", "--always", "--dirty=+dirty", "--exclude=*", "--abbrev=40")
    return found.decode().strip() or None


@cache
def git_diff() -> str | None:
    """SHA-256 of what was changed since the revision; None where nothing was, or outside a checkout."""
    changed = _git("diff", "HEAD", "--no-ext-diff", "--binary")
    return hashlib.sha256(changed).hexdigest() if changed else None


@cache
def code_hash() -> str:
    """SHA-256 over the package's own source files: the same code, whatever git says of it."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def stamp() -> None:
    """Look at the code now, before a long run in which it may be changed on disk."""
    versions()
    git_revision()
    git_diff()
    code_hash()


def machine() -> dict[str, str]:
    """What the last digits of a number may depend on: processor, threads, accelerators, their settings."""
    import torch

    # Some of these have no types.
    on: Any = torch.backends
    cuda = torch.cuda.is_available()
    found = {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": str(_cores()),
        "torch threads": str(torch.get_num_threads()),
        "cpu capability": on.cpu.get_cpu_capability(),
        "MKL": _yes(on.mkl.is_available()),
        "oneDNN": _yes(on.mkldnn.is_available() and on.mkldnn.enabled),
        "gpus": ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
        if cuda
        else "none",
        "float32 matmul": torch.get_float32_matmul_precision(),
        "deterministic": _yes(torch.are_deterministic_algorithms_enabled()),
    }
    if on.mps.is_built() and on.mps.is_available():
        found["gpus"] = "Apple MPS"
    if cuda:
        found["CUDA"] = str(torch.version.cuda or torch.version.hip)
        found["cuDNN"] = str(on.cudnn.version())
        found["cuDNN deterministic"] = _yes(on.cudnn.deterministic)
        found["cuDNN benchmark"] = _yes(on.cudnn.benchmark)
        found["TF32"] = _yes(on.cudnn.allow_tf32)
        found["CUBLAS_WORKSPACE_CONFIG"] = os.environ.get("CUBLAS_WORKSPACE_CONFIG", "not set")
    return found


def peak_memory_gib() -> float:
    """The process's largest resident size so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)


def _git(*words: str) -> bytes:
    """What git prints about our own code; nothing where it cannot."""
    try:
        found = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return found.stdout if found.returncode == 0 else b""


@cache
def _cpu() -> str:
    try:
        lines: Sequence[str] = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ()
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _cores() -> int:
    """How many this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def _yes(value: bool) -> str:
    return "yes" if value else "no"
