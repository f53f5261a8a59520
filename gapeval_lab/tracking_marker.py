"""The file `logged` beside an outcome: in which stores it is whole, and in which its run was left open."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from gapeval_lab.files import write_text
from gapeval_lab.tracking_store import Store, shown

LOGGED = "logged"


@dataclass
class Marker:
    """What is known of an outcome's runs.

    Attributes:
        key: hash of everything that makes two runs the same experiment; empty where it is not known.
        whole: store -> id of the run that holds all of it.
        open: store -> id of a run that was begun, and lost.
    """

    key: str = ""
    whole: dict[str, str] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> "Marker":
        """The folder's marker; an empty one where there is none, or one of an older version."""
        try:
            found = json.loads((folder / LOGGED).read_text(encoding="utf-8"))
            return Marker(found["key"], dict(found["whole"]), dict(found["open"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Marker()

    def write(self, folder: Path) -> None:
        """Replace the folder's marker."""
        text = json.dumps({"key": self.key, "whole": self.whole, "open": self.open}, indent=1)
        write_text(folder / LOGGED, text)

    def is_whole(self, store: Store, run_id: str) -> None:
        """Say that a run of a store holds all."""
        self.whole[shown(store.uri)] = run_id
        self.open.pop(shown(store.uri), None)

    def is_open(self, store: Store, run_id: str | None) -> None:
        """Say that a run of a store was lost, where one was begun."""
        self.whole.pop(shown(store.uri), None)
        if run_id is not None:
            self.open[shown(store.uri)] = run_id

    def whole_in(self, store: Store) -> str | None:
        """The id of the run that holds all."""
        return self.whole.get(shown(store.uri))

    def open_in(self, store: Store) -> str | None:
        """The id of the run that was lost."""
        return self.open.get(shown(store.uri))
