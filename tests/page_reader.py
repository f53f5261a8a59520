"""Reads a page as a browser would, and holds its numbers against the record and MLflow."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "br", "img", "input", "link", "hr"}
LOGGED = 0.5e-4  # metrics have four decimals


@dataclass
class Shown:
    """A number of a page: what is read, and what it says of its origin."""

    text: str = ""
    path: str = ""
    metric: str = ""
    step: int = 0
    scale: int = 1
    total: tuple[str, ...] = ()
    less: str = ""

    @property
    def value(self) -> float:
        return float(self.text.replace("−", "-"))

    @property
    def half(self) -> float:
        """Half of its last digit."""
        mantissa, _, power = self.text.partition("e")
        return 0.5 * 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2])) * (1 + 1e-9)


@dataclass
class PageReader(HTMLParser):
    """`numbers`, `tags` as (name, attributes), `texts` by section, `problems` of nesting."""

    html: str
    numbers: list[Shown] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(self.html)
        self.close()
        if self._open:
            self.problems.append(f"never closed: {[name for name, _ in self._open]}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append((tag, found))
        if found.get("class") == "n":
            self.numbers.append(
                Shown(
                    path=found.get("data-path", ""),
                    metric=found.get("data-metric", ""),
                    step=int(found.get("data-step", 0)),
                    scale=int(found.get("data-scale", 1)),
                    total=tuple(found.get("data-total", "").split()),
                    less=found.get("data-less", ""),
                )
            )

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1][0] != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")
        else:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][1].get("class") == "n":
            self.numbers[-1].text += data
        inside = [found["id"] for name, found in self._open if name == "section"]
        place = inside[0] if inside else self._open[-1][0] if self._open else ""
        self.texts[place] = self.texts.get(place, "") + data

    def attributes(self, name: str) -> list[str]:
        return [found[name] for _, found in self.tags if name in found]


def stands_at(record: Any, pointer: str, total: tuple[str, ...] = ()) -> float:
    """What a JSON pointer leads to; a list counts as its length, and several fields as their sum."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        record = record[int(key)] if isinstance(record, list) else record[key]
    if total:
        return sum(record[name] for name in total)
    return len(record) if isinstance(record, list | dict) else record


def wrong_numbers(page: PageReader, file: Path, metrics: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Numbers that are not those of `outcome.json` (in `file`), or not those of MLflow (by key and step)."""
    record = json.loads(file.read_text(encoding="utf-8"))
    found = []
    for one in page.numbers:
        if not (one.path or one.metric) or not re.fullmatch(r"[+−]?\d+(\.\d+)?(e[-+]\d+)?", one.text):
            found.append(f"{one}: no number, or from nowhere")
            continue
        held = stands_at(record, one.path, one.total) if one.path else 0.0
        held -= stands_at(record, one.less) if one.less else 0.0
        if one.path and abs(one.value - one.scale * held) > one.half:
            found.append(f"{one}: {held} in outcome.json")
        if one.metric:
            logged = metrics.get(one.metric, {}).get(one.step)
            if logged is None or abs(one.value - one.scale * logged) > one.half + one.scale * LOGGED:
                found.append(f"{one}: {logged} in MLflow")
    return found
