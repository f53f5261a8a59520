"""Facts from files of several formats: our own lines, and the knowledge-editing files of the field.

    facts: {file: counterfact.json, format: counterfact, count: 100, flawed: skip}

The format is stated, never guessed. Files of the field are JSON lists or one JSON object per line;
what their entries hold stands in `fact_formats`. They have no splits: all facts are of the split that
is asked for. A fact's id is the format and the file's own `case_id`, or else the entry's number from 0.

These files (but for UniKE's) ask in text alone. What is to be drawn is made from what is asked, by the
template `facts.draw`, `DRAW` if none is given; a right picture shows the answer, and which judges can
see that is theirs to say.

As published, several of these files hold entries that cannot be used: rewordings without the subject
(CounterFact), facts that contradict each other (CounterFact), empty answers (zsRE). The whole file is
refused with all of its flaws, or, with `facts.flawed: skip`, read without the flawed entries; of two
facts that contradict each other the first one stays. Knows no models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from gapeval_lab.errors import UserError
from gapeval_lab.fact_formats import FORMATS, Entry, Probe
from gapeval_lab.facts import Role, conflicts, item_id, read_facts, unique_keys
from gapeval_lab.items import Fact, Item, Prompt
from gapeval_lab.shipped import find_file, read_text
from gapeval_lab.validation import dotted, explain, validate

DRAW = "Draw a picture that shows the answer: {prompt}"
"""How a picture is asked for where a file asks in text alone."""

CATEGORY = "world_knowledge"
"""The category of every fact of the field's files; the relation is the subcategory."""

SHOWN = 100
"""Mistakes that one message lists; further ones are counted."""

Flawed = Literal["refuse", "skip"]


class FactFile(NamedTuple):
    """What was read. `left_out` are the ids of flawed entries that `flawed: skip` left out."""

    facts: tuple[Fact, ...]
    left_out: tuple[str, ...] = ()


class _Row(NamedTuple):
    """One entry of a file: the line it begins on, and its value, or what is wrong with its JSON."""

    line: int
    data: Any = None
    problem: str = ""


def read_fact_file(
    path: str | Path,
    *,
    format: str = "lines",
    split: str = "test",
    count: int | None = None,
    draw: str | None = None,
    flawed: Flawed = "refuse",
) -> FactFile:
    """The facts that a recipe names, in the file's order.

    Args:
        path: a path, or a name in ./recipes or in the packaged recipes.
        format: "lines" (see `facts`), or a key of `FORMATS`.
        split: which facts of "lines"; the name of the split that others get.
        count: only the first so many of them; None means all.
        draw: the drawing prompt, with `{prompt}` for what is asked in text; None means `DRAW`.
        flawed: whether entries that cannot be used are an error or are left out.

    Raises:
        UserError: with every mistake of the file and its line; or there are too few facts.
    """
    _check_settings(format, draw=draw, flawed=flawed)
    if format == "lines":
        return FactFile(read_facts(path, split=split, count=count))
    file = find_file(str(path), folder="recipes")
    read = parse_fact_file(
        read_text(file), source=str(file), format=format, split=split, draw=draw or DRAW, flawed=flawed
    )
    if count is not None and not 1 <= count <= len(read.facts):
        without = f" beside {len(read.left_out)} flawed ones" if read.left_out else ""
        raise UserError(f"facts.count: {count} facts were asked for; {file} has {len(read.facts)}{without}")
    return read._replace(facts=read.facts[:count])


def read_texts(path: str | Path) -> tuple[str, ...]:
    """The texts of a file, one a line; empty lines and repetitions are left out.

    Args:
        path: a path, or a name in ./recipes or in the packaged recipes.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    file = find_file(str(path), folder="recipes")
    texts = tuple(dict.fromkeys(line.strip() for line in read_text(file).splitlines() if line.strip()))
    if not texts:
        raise UserError(f"facts.texts: {file} holds no text; write one per line")
    return texts


def parse_fact_file(
    text: str, *, source: str, format: str, split: str = "test", draw: str = DRAW, flawed: Flawed = "refuse"
) -> FactFile:
    """All facts of a file of the field; `source` names it in messages.

    Raises:
        UserError: with every mistake and its line; also if nothing is left without the flawed entries.
    """
    rows = list(_rows(text))
    broken = [f"line {row.line}: {row.problem}" for row in rows if row.problem]
    problems: dict[int, list[str]] = {}
    found: list[tuple[int, Fact]] = []
    for number, row in enumerate(rows):
        if row.problem:
            continue
        entry = _entry(row.data, format)
        if isinstance(entry, Entry):
            case = number if entry.case is None else entry.case
            found.append((number, _fact(entry, f"{format}-{case}", split=split, draw=draw)))
            problems[number] = _subject_problems(entry, FORMATS[format].older_names, row.data)
        else:
            problems[number] = entry
    sound = [(number, fact) for number, fact in found if flawed == "refuse" or not problems[number]]
    placed = [(f"fact '{fact.id}' (line {rows[number].line})", fact) for number, fact in sound]
    for index, problem in conflicts(placed):
        problems[sound[index][0]].append(problem)
    ids = {number: fact.id for number, fact in found}
    flawed_ids = {n: ids.get(n, _identity(rows[n].data, n, format)) for n, wrong in problems.items() if wrong}
    flaws = [
        f"line {rows[number].line}: fact '{identity}': {problem}"
        for number, identity in flawed_ids.items()
        for problem in problems[number]
    ]
    facts = tuple(fact for number, fact in sound if not problems[number])
    if broken or (flaws and (flawed == "refuse" or not facts)):
        raise UserError(_message(source, broken, flaws))
    if not facts:
        raise UserError(f"{source}: no entries; it should hold a JSON list, or one JSON object per line")
    return FactFile(facts, tuple(flawed_ids.values()))


def _check_settings(format: str, *, draw: str | None, flawed: Flawed) -> None:
    """Settings that would not be heeded are mistakes."""
    problems = []
    if draw is not None and format in ("lines", "unike"):
        problems.append(f"facts.draw: '{format}' files have drawing prompts of their own; leave it out")
    elif draw is not None and "{prompt}" not in draw:
        problems.append(f"facts.draw: should hold {{prompt}}, where the question goes; got {draw!r}")
    if flawed == "skip" and format == "lines":
        problems.append("facts.flawed: 'lines' files are read whole; leave it out, and mend the file")
    if problems:
        raise UserError("\n  ".join(problems))


def _message(source: str, broken: list[str], flaws: list[str]) -> str:
    every = [*broken, *flaws]
    lines = [f"{source}: {len(every)} to mend", *every[:SHOWN]]
    if len(every) > SHOWN:
        lines.append(f"... and {len(every) - SHOWN} more")
    if not broken:
        lines.append("mend these entries, check facts.format, or leave them out with facts.flawed: skip")
    return "\n  ".join(lines)


def _rows(text: str) -> Iterator[_Row]:
    """The entries of a JSON list, or of a text with one JSON object per line."""
    return _list_rows(text) if text.lstrip().startswith("[") else _line_rows(text)


def _line_rows(text: str) -> Iterator[_Row]:
    lines = [(number, row) for number, row in enumerate(text.split("\n"), start=1) if row.strip()]
    if len(lines) > 1 and _is_one_object(text):
        yield _Row(lines[0][0], problem="one JSON object over many lines; take the list out of it")
        return
    for number, row in lines:
        try:
            yield _Row(number, json.loads(row, object_pairs_hook=unique_keys))
        except json.JSONDecodeError as error:
            yield _Row(number, problem=f"not valid JSON: {error.msg} (column {error.colno})")
        except ValueError as error:
            yield _Row(number, problem=str(error))


def _is_one_object(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _list_rows(text: str) -> Iterator[_Row]:
    """Entries are decoded one after the other, so that each one's line is known."""
    strict, plain = json.JSONDecoder(object_pairs_hook=unique_keys), json.JSONDecoder()
    at = _after_space(text, text.index("[") + 1)
    line, counted = 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            data, at = strict.raw_decode(text, at)
            yield _Row(line, data)
        except json.JSONDecodeError as error:
            yield _Row(error.lineno, problem=f"not valid JSON: {error.msg} (column {error.colno})")
            return
        except ValueError as error:
            yield _Row(line, problem=str(error))
            at = plain.raw_decode(text, at)[1]
        at = _after_space(text, at)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            yield _Row(line, problem="not valid JSON: a comma or the list's end should follow this entry")
            return
        elif text[at + 1 :].strip():
            line += text.count("\n", counted, at)
            yield _Row(line, problem="not valid JSON: the list ends here, but the file goes on")
            return


def _after_space(text: str, at: int) -> int:
    """The place of the next character that is not JSON's white space."""
    found = re.compile(r"[^ \t\n\r]").search(text, at)
    return found.start() if found else len(text)


def _entry(data: Any, format: str) -> Entry | list[str]:
    """The entry, or what is wrong with it, under the names that the file uses."""
    if not isinstance(data, dict):
        return [f"should be a JSON object; got {json.dumps(data)[:40]}"]
    schema = FORMATS[format]
    used = _names_used(data, schema.older_names)
    renamed = {**data, **{name: data[older] for name, older in used.items() if older in data}}
    try:
        return validate(schema, renamed).entry()
    except ValidationError as error:
        return [
            f"{_as_written(dotted(problem.path), used)}: {problem.message}".removeprefix(": ")
            for problem in explain(error, schema, renamed)
        ]


def _identity(data: Any, number: int, format: str) -> str:
    """What messages call an entry that could not be read."""
    return f"{format}-{data.get('case_id', number) if isinstance(data, dict) else number}"


def _names_used(data: Mapping[str, Any], older_names: Mapping[str, str]) -> dict[str, str]:
    """Name read here -> the older name, where the file has that one, or neither."""
    return {name: older for older, name in older_names.items() if older in data or name not in data}


def _as_written(path: str, used: Mapping[str, str]) -> str:
    first, dot, rest = path.partition(".")
    return f"{used.get(first, first)}{dot}{rest}"


def _subject_problems(entry: Entry, older_names: Mapping[str, str], data: Mapping[str, Any]) -> list[str]:
    """Questions that should name the subject and do not."""
    used = _names_used(data, older_names)
    return [
        f"{_as_written(probe.at, used)}: the subject '{entry.subject}' is not in {probe.understand!r}; "
        "write it exactly so"
        for probe in (entry.edit, *entry.reworded)
        if entry.subject not in probe.understand
    ]


def _fact(entry: Entry, identity: str, *, split: str, draw: str) -> Fact:
    def item(probe: Probe, role: Role, index: int = 0) -> Item:
        return Item(
            id=item_id(identity, role, index),
            category=CATEGORY,
            subcategory=entry.relation,
            understand=Prompt(probe.understand),
            generate=Prompt(probe.generate or draw.replace("{prompt}", probe.understand)),
            accepted=probe.accepted,
            target=dict(probe.target) or {"text": probe.accepted[0]},
        )

    return Fact(
        id=identity,
        subject=entry.subject,
        relation=entry.relation,
        target_true=entry.target_true,
        target_new=entry.target_new,
        edit=item(entry.edit, "edit"),
        taught=tuple(item(probe, "taught", n) for n, probe in enumerate(entry.taught)),
        reworded=tuple(item(probe, "reworded", n) for n, probe in enumerate(entry.reworded)),
        neighbours=tuple(item(probe, "neighbours", n) for n, probe in enumerate(entry.neighbours)),
        derived=tuple(item(probe, "derived", n) for n, probe in enumerate(entry.derived)),
        split=split,
    )
