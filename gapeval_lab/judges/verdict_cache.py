"""Verdicts on disk: a file each, named after a hash of all that went in.

Written under another name and renamed: a kill, or a second process, leaves whole files alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gapeval_lab.files import write_text
from gapeval_lab.home import home

FORMAT = 1


class VerdictCache:
    """A folder of verdicts."""

    def __init__(self, folder: Path | None) -> None:
        """None: `cache/verdicts` in the folder of runs."""
        self.folder = folder or home() / "mlruns" / "cache" / "verdicts"

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> dict[str, Any] | None:
        """What is kept; None for nothing, and for a file that is not whole or of another format."""
        try:
            row = json.loads(self._file(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = (
            isinstance(row, dict)
            and row.get("format") == FORMAT
            and row.get("key") == key
            and isinstance(row.get("correct"), bool)
            and isinstance(row.get("reason"), str)
        )
        return row if whole else None

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep a verdict.

        Raises:
            UserError: the folder cannot be written.
        """
        text = json.dumps({"format": FORMAT, "key": key, **row}, ensure_ascii=False)
        write_text(self._file(key), text + "\n")
