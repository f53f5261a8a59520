"""RealUnify: understanding that helps drawing (UEG), and drawing that helps understanding (GEU).

    benchmark: {use: realunify, root: RealUnify}

Reads the user's copy of UEG_direct.json, UEG_step.json, GEU_direct.json and GEU_step.json; the data may
not be passed on. An item is asked and scored on one side: a picture of UEG by its yes/no questions, all of
which must agree (they stand in `target` for a judge that looks); an answer of GEU by its option's letter.
The other side's prompt is the stepwise one, for protocols: writing the drawing prompt anew (UEG), editing the
picture (GEU). Knows no models and no judges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gapeval_lab.benchmarks.options import options_in
from gapeval_lab.benchmarks.published import PublishedData
from gapeval_lab.errors import UserError
from gapeval_lab.gapeval_layout import is_there, picture_flaw
from gapeval_lab.items import Direction, Item, PictureFile, Prompt

UEG, GEU = "UEG", "GEU"
PICTURE_KEYS = ("image", "image_path", "img", "images")
STEP_KEYS = {UEG: ("new_prompt",), GEU: ("edit_prompt", "evaluation_prompt")}
FILES = {half: (f"{half}_direct.json", f"{half}_step.json") for half in (UEG, GEU)}
SHOWN = 100
LETTERS = ("A", "B", "C", "D")  # of questions whose options are not marked in their text


class RealUnify(PublishedData):
    """Where the user's copy is.

    Attributes:
        root: the folder with the four files; pictures are found from it.
        halves: which of UEG and GEU.
        flawed: whether entries that cannot be used are an error or are left out.
    """

    root: str
    halves: tuple[Literal["UEG", "GEU"], ...] = Field(default=("UEG", "GEU"), min_length=1)

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return "realunify"

    @property
    def version(self) -> str:
        """Of this reading of the published files."""
        return "1.0"

    @property
    def categories(self) -> tuple[str, ...]:
        """The chosen halves."""
        return tuple(dict.fromkeys(self.halves))

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        items: list[Item] = []
        flaws: list[str] = []
        for half in self.categories:
            direct, step = (_entries(Path(self.root).expanduser() / name) for name in FILES[half])
            if len(direct) != len(step):
                raise UserError(
                    f"root: {FILES[half][0]} has {len(direct)} entries and {FILES[half][1]} {len(step)}; "
                    "take both files of one release"
                )
            for number, pair in enumerate(zip(direct, step, strict=True)):
                made = _item(half, number, *pair, root=Path(self.root).expanduser())
                if isinstance(made, Item):
                    items.append(made)
                else:
                    flaws += made
        if flaws and (self.flawed == "refuse" or not items):
            more = [f"... and {len(flaws) - SHOWN} more"] if len(flaws) > SHOWN else []
            head = f"root: {self.root} has entries that cannot be used; mend them, or set flawed: skip"
            raise UserError("\n  ".join([head, *flaws[:SHOWN], *more]))
        return tuple(items)


def _entries(file: Path) -> list[Any]:
    """The entries of one file."""
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"root: cannot read {file} ({error.strerror}); give the folder that holds RealUnify's four files"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"root: {file} is not valid JSON ({error}); take it anew from where it is published"
        ) from None
    if not isinstance(data, list) or not data:
        raise UserError(
            f"root: {file} should hold a list of entries; take it anew from where it is published"
        )
    return data


def _item(half: str, number: int, direct: Any, step: Any, *, root: Path) -> Item | list[str]:
    """One entry with its stepwise twin; else what is wrong with them, one line per file."""
    needed = {UEG: ("prompt", "question_list"), GEU: ("evaluation_prompt", "answer")}[half]
    flaws = [
        f"{name}, entry {number}: {problem}"
        for name, entry, keys in zip(FILES[half], (direct, step), (needed, STEP_KEYS[half]), strict=True)
        if (problem := _lacks(entry, ("task_type", *keys)))
    ]
    if flaws:
        return flaws
    place = f"{FILES[half][0]}, entry {number}"
    if direct["task_type"] != step["task_type"]:
        told = f"task_type {direct['task_type']!r} here, {step['task_type']!r} in {FILES[half][1]}"
        return [f"{place}: {told}; the files do not belong together"]
    tags = {key: str(step[key]) for key in STEP_KEYS[half]}
    made = _ueg(number, direct, step, tags) if half == UEG else _geu(number, direct, step, tags, root)
    return made if isinstance(made, Item) else [f"{place}: {made}"]


def _lacks(entry: Any, keys: Sequence[str]) -> str:
    """Which keys are missing, empty or (but for the questions) no text."""
    if not isinstance(entry, dict):
        return "is no object"
    kinds = {"question_list": list}
    missing = [key for key in keys if not isinstance(entry.get(key), kinds.get(key, str)) or not entry[key]]
    return f"lacks {', '.join(missing)}" if missing else ""


def _ueg(number: int, direct: Mapping[str, Any], step: Mapping[str, Any], tags: dict[str, str]) -> Item | str:
    """Drawn from a prompt that takes thought; judged by questions about the picture."""
    questions = []
    for one in direct["question_list"]:
        question, answer = (one.get("question"), one.get("answer")) if isinstance(one, dict) else (None, None)
        said = str(answer).strip().lower().rstrip(".")
        if not isinstance(question, str) or not question or said not in ("yes", "no"):
            return "question_list: every entry needs a question, and the answer yes or no"
        questions.append({"question": question, "answer": said})
    return Item(
        id=f"{UEG}_{number}",
        category=UEG,
        subcategory=direct["task_type"],
        understand=Prompt(step["new_prompt"]),
        generate=Prompt(direct["prompt"]),
        accepted=("(a picture to which every question has the right answer)",),
        target={"realunify": {"half": UEG, "questions": questions, "rule": "all"}},
        tags=tags,
        directions=frozenset({Direction.GENERATION}),
    )


def _geu(
    number: int, direct: Mapping[str, Any], step: Mapping[str, Any], tags: dict[str, str], root: Path
) -> Item | str:
    """A question about a picture that is easier once the picture is edited; answered by a letter."""
    named = next((direct[key] for key in PICTURE_KEYS if direct.get(key)), None)
    name = named[0] if isinstance(named, list) and named else named
    if not isinstance(name, str):
        return f"lacks a picture ({', '.join(PICTURE_KEYS)})"
    file = root / name
    if not is_there(file):
        return f"the picture {name[:100]} is not there"
    if flaw := picture_flaw(file):
        return flaw
    answer = direct["answer"].strip()
    choices = options_in(direct["evaluation_prompt"]) or LETTERS
    if len(answer) != 1 or answer.upper() not in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]:
        return f"answer: should be the letter of one of its {len(choices)} options; got {answer[:20]!r}"
    picture = PictureFile(file)
    return Item(
        id=f"{GEU}_{number}",
        category=GEU,
        subcategory=direct["task_type"],
        understand=Prompt(direct["evaluation_prompt"], (picture,)),
        generate=Prompt(step["edit_prompt"], (picture,)),
        accepted=(answer.upper(),),
        target={"realunify": {"half": GEU, "rule": "option_letter"}},
        choices=choices,
        tags=tags,
        directions=frozenset({Direction.UNDERSTANDING}),
    )
