"""Fact files: one JSON object per line, read strictly and written so that reading gives the same.

    {"id", "subject", "relation", "target_true", "target_new", "split", "category",
     "edit": P, "taught": [P, ...], "reworded": [P, ...], "neighbours": [P, ...], "derived": [P, ...]}
    P = {"understand": text, "generate": text, "accepted": [text, ...], "target": {...}}

`split` ("test"), `subcategory` (the relation) and the lists of questions (empty) may be left out. Knows
no models; what a target means is its judge's business.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gapeval_lab.errors import UserError
from gapeval_lab.files import write_text
from gapeval_lab.items import Fact, Item, Prompt
from gapeval_lab.shipped import find_file, read_text
from gapeval_lab.validation import dotted, explain, validate

Role = Literal["edit", "taught", "reworded", "neighbours", "derived"]

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Probe(_Strict):
    """One question, in both directions."""

    understand: Text
    generate: Text
    accepted: Annotated[list[Text], Field(min_length=1)]
    target: dict[str, Any]


class _Line(_Strict):
    """One line of a fact file. Ids become parts of file names and of curves' names."""

    id: Id
    subject: Text
    relation: Text
    target_true: Text
    target_new: Text
    split: Text = "test"
    category: Text
    subcategory: Text | None = None
    edit: _Probe
    taught: list[_Probe] = []
    reworded: list[_Probe] = []
    neighbours: list[_Probe] = []
    derived: list[_Probe] = []


def item_id(fact_id: str, role: Role, index: int = 0) -> str:
    """The id of a fact's probe: `zorb-colour.reworded.1`; fit for a file name."""
    return f"{fact_id}.{role}.{index}"


def read_facts(path: str | Path, *, split: str = "test", count: int | None = None) -> tuple[Fact, ...]:
    """The facts of one split, in the file's order. The whole file is checked, whatever the split.

    Args:
        path: a path, or a name in ./recipes or in the packaged recipes ("facts/name.jsonl").
        split: which facts.
        count: only the first so many of them; None means all.

    Raises:
        UserError: with every mistake of the file and its line; or the split has too few facts.
    """
    file = find_file(str(path), folder="recipes")
    facts = parse_facts(read_text(file), source=str(file))
    chosen = tuple(fact for fact in facts if fact.split == split)
    if not chosen:
        splits = ", ".join(f"{name} ({n})" for name, n in sorted(Counter(f.split for f in facts).items()))
        raise UserError(f"facts.split: {file} has no split '{split}'; it has {splits}")
    if count is not None and not 1 <= count <= len(chosen):
        raise UserError(f"facts.count: {count} facts of '{split}' were asked for; {file} has {len(chosen)}")
    return chosen[:count]


def parse_facts(text: str, *, source: str) -> tuple[Fact, ...]:
    """All facts of a file's text; `source` names it in messages.

    Raises:
        UserError: with every mistake and its line.
    """
    problems: list[str] = []
    lines: list[tuple[int, _Line]] = []
    rows = [(number, row) for number, row in enumerate(text.split("\n"), start=1) if row.strip()]
    if not rows:
        raise UserError(f"{source}: the file is empty; it should have one JSON object per line")
    for number, row in rows:
        found = _parse_line(row)
        if isinstance(found, _Line):
            lines.append((number, found))
            problems += [
                f"line {number}: fact '{found.id}': {problem}" for problem in _subject_problems(found)
            ]
        else:
            problems += [f"line {number}: {problem}" for problem in found]
    placed = [(f"line {number}", line) for number, line in lines]
    problems += [f"{placed[index][0]}: {problem}" for index, problem in conflicts(placed)]
    if problems:
        raise UserError("\n  ".join([f"{source}: {len(problems)} to mend", *problems]))
    return tuple(_fact(line) for _, line in lines)


def write_facts(path: Path, facts: Sequence[Fact]) -> None:
    """Write a fact file, atomically.

    Raises:
        UserError: the facts would not pass `read_facts`, or the place cannot be written.
        ValueError: the facts hold what the format has no place for (pictures, choices, tags, item
            ids that are not `item_id`'s, categories that differ within a fact).
    """
    text = "".join(json.dumps(_row(fact), ensure_ascii=False) + "\n" for fact in facts)
    items = [item for fact in facts for _, items in _probes(fact) for item in items]
    lost = any(item.references or item.tags for item in items)
    if lost or facts_hash(parse_facts(text, source=str(path))) != facts_hash(facts):
        raise ValueError(f"{path}: reading the file would not give the same facts")
    write_text(path, text)


def facts_hash(facts: Sequence[Fact]) -> str:
    """SHA-256 over everything in the facts, in order; the same in any process."""
    rows = [
        [
            *(fact.id, fact.subject, fact.relation, fact.target_true, fact.target_new, fact.split),
            *([item.digest for item in items] for _, items in _probes(fact)),
        ]
        for fact in facts
    ]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys stand once each: an `object_pairs_hook`.

    Raises:
        ValueError: a key stands twice.
    """
    twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
    if twice:
        raise ValueError(f"key '{twice[0]}' stands twice in one object; keep one of them")
    return dict(pairs)


def _parse_line(row: str) -> _Line | list[str]:
    """The line, or what is wrong with it."""
    try:
        data = json.loads(row, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        return [f"not valid JSON: {error.msg} (column {error.colno})"]
    except ValueError as error:
        return [str(error)]
    if not isinstance(data, dict):
        return [f"should be a JSON object; got {row.strip()[:40]}"]
    try:
        return validate(_Line, data)
    except ValidationError as error:
        return [f"{dotted(problem.path)}: {problem.message}" for problem in explain(error, _Line, data)]


def _subject_problems(line: _Line) -> list[str]:
    """Prompts that should hold the subject and do not."""
    probes = {
        "edit": line.edit,
        **{f"taught.{index}": probe for index, probe in enumerate(line.taught)},
        **{f"reworded.{index}": probe for index, probe in enumerate(line.reworded)},
    }
    return [
        f"{name}.{side}: the subject '{line.subject}' is not in {prompt!r}; write it exactly so"
        for name, probe in probes.items()
        for side, prompt in (("understand", probe.understand), ("generate", probe.generate))
        if line.subject not in prompt
    ]


def conflicts(found: Sequence[tuple[str, _Line | Fact]]) -> list[tuple[int, str]]:
    """Ids that stand twice, and facts that cannot both be true.

    Args:
        found: each fact with its place in the file, in the words of messages ("line 3").

    Returns:
        The index of each later one, with what is wrong.
    """
    problems: list[tuple[int, str]] = []
    ids: dict[str, int] = {}
    targets: dict[tuple[str, str], int] = {}
    for index, (_, fact) in enumerate(found):
        place = found[ids.setdefault(fact.id, index)][0]
        if ids[fact.id] != index:
            problems.append((index, f"id: '{fact.id}' stands in {place} already; choose another"))
        place, first = found[targets.setdefault((fact.subject, fact.relation), index)]
        if first.target_new != fact.target_new:
            problems.append(
                (
                    index,
                    f"target_new: the {fact.relation} of '{fact.subject}' is to become "
                    f"'{fact.target_new}', but '{first.target_new}' in {place}; keep one of them",
                )
            )
    return problems


def _fact(line: _Line) -> Fact:
    def item(probe: _Probe, role: Role, index: int = 0) -> Item:
        return Item(
            id=item_id(line.id, role, index),
            category=line.category,
            subcategory=line.subcategory or line.relation,
            understand=Prompt(probe.understand),
            generate=Prompt(probe.generate),
            accepted=tuple(probe.accepted),
            target=probe.target,
        )

    return Fact(
        id=line.id,
        subject=line.subject,
        relation=line.relation,
        target_true=line.target_true,
        target_new=line.target_new,
        edit=item(line.edit, "edit"),
        taught=tuple(item(probe, "taught", n) for n, probe in enumerate(line.taught)),
        reworded=tuple(item(probe, "reworded", n) for n, probe in enumerate(line.reworded)),
        neighbours=tuple(item(probe, "neighbours", n) for n, probe in enumerate(line.neighbours)),
        derived=tuple(item(probe, "derived", n) for n, probe in enumerate(line.derived)),
        split=line.split,
    )


def _probes(fact: Fact) -> tuple[tuple[Role, tuple[Item, ...]], ...]:
    """A fact's items by role."""
    return (
        ("edit", (fact.edit,)),
        ("taught", fact.taught),
        ("reworded", fact.reworded),
        ("neighbours", fact.neighbours),
        ("derived", fact.derived),
    )


def _row(fact: Fact) -> dict[str, Any]:
    """A fact as the plain values of its line."""

    def probe(item: Item) -> dict[str, Any]:
        return {
            "understand": item.understand.text,
            "generate": item.generate.text,
            "accepted": list(item.accepted),
            "target": dict(item.target),
        }

    head = {
        "id": fact.id,
        "subject": fact.subject,
        "relation": fact.relation,
        "target_true": fact.target_true,
        "target_new": fact.target_new,
        "split": fact.split,
        "category": fact.edit.category,
    }
    if fact.edit.subcategory != fact.relation:
        head["subcategory"] = fact.edit.subcategory
    lists: dict[str, Any] = {role: [probe(item) for item in items] for role, items in _probes(fact)[1:]}
    return {**head, "edit": probe(fact.edit), **lists}
