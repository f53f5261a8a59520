"""What a number came from, beside recipe and data: versions, revision of the code, memory used."""

import platform
import resource
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from gapeval_lab import __version__


@cache
def versions() -> dict[str, str]:
    """Versions of everything that numbers depend on."""
    names = ("torch", "transformers", "numpy", "scipy", "mlflow", "tokenizers")
    found = {name: metadata.version(name) for name in names}
    return {"gapeval_lab": __version__, "python": platform.python_version(), **found}


@cache
def git_revision() -> str | None:
    """The revision of the code that runs, "+dirty" where it was changed; None outside a checkout.

    Asked once in a process, like the versions: the code that runs is the code that was imported.
    """
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+dirty", "--exclude=*", "--abbrev=40"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def peak_memory_gib() -> float:
    """The process's largest resident size so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)
