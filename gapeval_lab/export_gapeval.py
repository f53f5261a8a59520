"""A stored run's answers in GapEval's published layout, so that the authors' scripts can judge them.

    <out>/data_<N>/<model>/text.json, output.png

Items of GapEval keep their folders, so that `out` may be the user's own copy; items of other benchmarks
are numbered, and an index says which is which. What is there already is kept if it is the same and
refused if it is not; nothing is overwritten. Reads an Outcome and the benchmark, never a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gapeval_lab import registry
from gapeval_lab.errors import UserError
from gapeval_lab.files import write_bytes
from gapeval_lab.gapeval_layout import (
    INDEX,
    PROBLEM_FOLDERS,
    PROMPT_FILE,
    REFERENCE_FOLDER,
    SHOWN,
    SUFFIXES,
    TEXT_FILE,
    Index,
    is_item,
    is_model,
    read_item,
)
from gapeval_lab.interfaces import Benchmark
from gapeval_lab.items import (
    Direction,
    Item,
    Picture,
    PictureFile,
    Prompt,
    image_digest,
    items_digest,
    opened,
    picture_digest,
    png_bytes,
)
from gapeval_lab.outcome import ItemRow, Outcome, PhaseResult

PICTURE = "output.png"
State = Literal["before", "after"]


@dataclass(frozen=True)
class Exported:
    """What was written: whose answers, of how many items, and how many of each kind."""

    model: str
    phase: State
    items: int
    texts: int
    pictures: int


@dataclass(frozen=True)
class _Entry:
    """One item on its way into a folder of the layout."""

    name: str
    item: Item
    row: ItemRow


@dataclass(frozen=True)
class _File:
    """A file to be written, with its content or where that lies."""

    path: Path
    source: bytes | Path

    def data(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


def export_run(run: Path, out: Path, *, phase: State | None = None, model: str | None = None) -> Exported:
    """Write the answers of one phase of a run.

    Args:
        run: the folder of its outcome.
        out: a new folder, one that an export wrote, or a copy of the published set.
        phase: None: after its intervention, or before if it has none.
        model: name of the folder inside each item; None: the model's name and the phase.

    Raises:
        UserError: the run has no such phase, its benchmark is not as it was, or other files lie in the way.
    """
    outcome = _outcome(run)
    state: State = phase or ("before" if outcome.after is None else "after")
    result = outcome.before if state == "before" else outcome.after
    if result is None:
        raise UserError("--phase: the run has no intervention, and so nothing after it; take before")
    name = _model_name(outcome, state, model)
    entries, index = _entries(outcome, result)
    _check_pictures(run, entries)
    problems = list(_in_the_way(run, out, entries, index, name))
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        head = f"--out: {out} holds other files; choose another folder, or another --model than {name}"
        raise UserError("\n  ".join([head, *problems[:SHOWN], *more]))
    if index is not None:  # first, so that no item of the folder is ever read without it
        _write(_File(out / INDEX, index.text().encode()))
    for entry in entries:
        folder = out / entry.name
        if not (folder / PROMPT_FILE).exists():
            for file in _inputs(folder, entry.item):
                _write(file)
        for file in _answers(run, folder / name, entry.row):
            _write(file)
    return Exported(
        name,
        state,
        len(entries),
        texts=sum(entry.row.answer is not None for entry in entries),
        pictures=sum(entry.row.picture is not None for entry in entries),
    )


def _outcome(run: Path) -> Outcome:
    try:
        return Outcome.load(run)
    except (OSError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise UserError(
            f"run: {run / 'outcome.json'} cannot be read ({first}); run the recipe again"
        ) from None


def _model_name(outcome: Outcome, phase: State, given: str | None) -> str:
    """The name of the model's folders: one that the authors' scripts take for a model's."""
    words = outcome.umm if given is None else given
    name = "".join(mark if mark.isalnum() or mark in "-_." else "_" for mark in words)
    if given is None:
        return f"{name.strip('._') or 'model'}-{phase}".removeprefix("output_")
    if not given or name != given or not is_model(given):
        raise UserError(
            f"--model: '{given}' cannot be a model's folder; use letters, digits, - and _, none of image, "
            "inage, ref and lumoo, and no name that begins with output_"
        )
    return given


def _entries(outcome: Outcome, result: PhaseResult) -> tuple[list[_Entry], Index | None]:
    """The run's items with their folders; an index where these are not the items' own names."""
    node = dict(outcome.recipe["benchmark"])
    benchmark: Benchmark = registry.build("benchmarks", node.pop("use"), settings=node)
    known = {item.id: item for item in benchmark.items()}
    items = [known[row.id] for row in result.rows if row.id in known]
    if len(items) < len(result.rows) or items_digest(items) != outcome.data_hash:
        raise UserError(
            f"run: the items of {benchmark.name} are not those that the run asked; export it with the data "
            "and the version of this package that it was made with"
        )
    own = all("gapeval" in item.target and is_item(item.id) for item in items)
    names = [item.id if own else f"data_{number}" for number, item in enumerate(items, start=1)]
    entries = [_Entry(*parts) for parts in zip(names, items, result.rows, strict=True)]
    if own:
        return entries, None
    pictures = {
        entry.name: {
            direction.value: [_shown_at(entry.item)[picture_digest(one)] for one in prompt.pictures]
            for direction in Direction
            for prompt in [entry.item.prompt(direction)]
        }
        for entry in entries
    }
    return entries, Index({entry.name: entry.item.id for entry in entries}, pictures)


def _check_pictures(run: Path, entries: Sequence[_Entry]) -> None:
    missing = [
        entry.row.picture
        for entry in entries
        if entry.row.picture is not None and not (run / entry.row.picture).is_file()
    ]
    if missing:
        raise UserError(
            f"run: {len(missing)} of its pictures are gone from {run}, {missing[0]} for one; put them back, "
            "or run the recipe again"
        )


def _in_the_way(
    run: Path, out: Path, entries: Sequence[_Entry], index: Index | None, model: str
) -> Iterator[str]:
    """What lies where something else would be written."""
    if out.exists() and not out.is_dir():
        yield f"{out} is a file"
        return
    if index is not None:
        yield from _differing([_File(out / INDEX, index.text().encode())])
    for entry in entries:
        folder = out / entry.name
        if (folder / PROMPT_FILE).exists():
            if not _asks_the_same(folder, entry.item, index):
                yield f"{folder} is another item than {entry.item.id}"
                continue
        else:
            yield from _differing(_inputs(folder, entry.item))
        answers = list(_answers(run, folder / model, entry.row))
        yield from _differing(answers)
        yield from map(str, _strangers(folder / model, [file.path for file in answers]))


def _strangers(folder: Path, planned: Sequence[Path]) -> list[Path]:
    """Files in a model's folder that would spoil its answers: pictures, or verdicts on other answers.

    Beside answers that are there already, verdicts are on these, and may stay.
    """
    if not folder.is_dir():
        return []
    others = sorted(path for path in folder.iterdir() if path not in planned)
    whole = all(path.exists() for path in planned)
    return [path for path in others if not whole or path.suffix.lower() in SUFFIXES]


def _differing(files: Iterator[_File] | list[_File]) -> Iterator[str]:
    for file in files:
        if file.path.exists() and not (file.path.is_file() and file.path.read_bytes() == file.data()):
            yield str(file.path)


def _asks_the_same(folder: Path, item: Item, index: Index | None) -> bool:
    """Whether an item that is there already has these prompts, pictures compared by pixels."""
    there = read_item(folder, check_pictures=False)
    try:
        return all(
            _same((index or Index()).prompt(folder, there, direction), item.prompt(direction))
            for direction in Direction
        )
    except OSError:
        return False


def _same(one: Prompt, other: Prompt) -> bool:
    if one.digest == other.digest:
        return True
    pixels = [[image_digest(image.convert("RGB")) for image in prompt.images] for prompt in (one, other)]
    return one.text == other.text and pixels[0] == pixels[1]


def _inputs(folder: Path, item: Item) -> Iterator[_File]:
    """The item itself: pictures first, prompt.json last, so that where it stands all of it stands."""
    shown = _shown_at(item)
    for picture in (*item.understand.pictures, *item.generate.pictures):
        name = shown.pop(picture_digest(picture), None)
        if name is not None:
            yield _File(folder / name, _content(picture))
    for number, picture in enumerate(item.references, start=1):
        yield _File(folder / REFERENCE_FOLDER / f"{number}{_suffix(picture)}", _content(picture))
    yield _File(folder / PROMPT_FILE, json.dumps(_keys(item), indent=1, ensure_ascii=False).encode())


def _keys(item: Item) -> dict[str, Any]:
    """prompt.json."""
    published = item.target.get("gapeval", {})
    return {
        "category": published.get("category", item.category),
        "subcategory": published.get("subcategory", item.subcategory),
        "und_prompt": item.understand.text,
        "gen_prompt": item.generate.text,
        **({"problem": published["problem"]} if published.get("problem") else {}),
        "reference": published.get("reference", item.reference_text),
    }


def _answers(run: Path, folder: Path, row: ItemRow) -> Iterator[_File]:
    if row.picture is not None:
        yield _File(folder / PICTURE, run / row.picture)
    if row.answer is not None:
        text = json.dumps({"output_text": row.answer}, indent=1, ensure_ascii=False)
        yield _File(folder / TEXT_FILE, text.encode())


def _shown_at(item: Item) -> dict[str, str]:
    """Digest of a prompt's picture -> its place in the item's folder."""
    pictures = {
        picture_digest(picture): picture for picture in (*item.understand.pictures, *item.generate.pictures)
    }
    return {
        digest: f"{PROBLEM_FOLDERS[0]}/{number}{_suffix(picture)}"
        for number, (digest, picture) in enumerate(pictures.items(), start=1)
    }


def _suffix(picture: Picture) -> str:
    """That of its file, if the layout knows it; what is in memory or of another format becomes PNG."""
    own = picture.path.suffix.lower() if isinstance(picture, PictureFile) else ""
    return own if own in SUFFIXES else ".png"


def _content(picture: Picture) -> bytes | Path:
    if isinstance(picture, PictureFile) and picture.path.suffix.lower() in SUFFIXES:
        return picture.path
    return png_bytes(opened(picture))


def _write(file: _File) -> None:
    if not file.path.exists():  # what is there was found to be the same
        write_bytes(file.path, file.data())
