"""Where a user's runs and caches lie. Knows the environment and folders, and nothing of MLflow."""

import os
import tomllib
from pathlib import Path


def project_root(start: Path) -> Path:
    """The folder whose `mlruns` is used: `start` or its nearest parent that is a project, else `start`.

    A project is a folder with an `mlruns` folder, or with this project's pyproject.toml.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / "mlruns").is_dir() or _is_our_project(folder / "pyproject.toml"):
            return folder
    return start


def home() -> Path:
    """GAPEVAL_LAB_HOME, else the project around the current directory; touches no file."""
    named = os.environ.get("GAPEVAL_LAB_HOME")
    return (Path(named).expanduser() if named else project_root(Path.cwd())).resolve()


def _is_our_project(file: Path) -> bool:
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False
    return isinstance(project, dict) and project.get("name") in ("gapeval_lab", "gapeval-lab")
