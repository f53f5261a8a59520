"""What interventions may train on: facts as examples in both directions, and what is to be rehearsed.

The wall between training and measuring stands here: a lesson that is an item of the benchmark is
refused, and nothing is rehearsed that a probe asks about. Knows no models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, ValidationError

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Benchmark, Lesson
from gapeval_lab.items import Direction, Example, Fact, Item, Prompt
from gapeval_lab.validation import dotted, explain, validate

TEXT, IMAGE = Direction.UNDERSTANDING, Direction.GENERATION
CAPTIONS = "metadata.jsonl"


class Caption(BaseModel):
    """One line of a picture folder's `metadata.jsonl`: the picture, what is asked, and whose fact it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_name: str
    text: str
    fact: str


def lessons_of(
    facts: Sequence[Fact], benchmark: Benchmark, *, items: Sequence[Item] = (), pictures: Path | None = None
) -> list[Lesson]:
    """The facts as examples: each taught wording with its answer, and with a picture of it.

    Args:
        facts: `edit` and `taught` become lessons; probes never do.
        benchmark: draws the pictures of targets that it can draw.
        items: of the benchmark; none of their prompts may be a lesson.
        pictures: a folder of pictures with captions that stand for the benchmark's own drawings.

    Raises:
        UserError: a lesson is an item or a rewording that measures it, or the folder does not fit.
    """
    told = [
        Lesson(fact.id, TEXT, Example(item.understand, item.reference_text))
        for fact in facts
        for item in (fact.edit, *fact.taught)
    ]
    if pictures is None:
        drawn = [
            Lesson(fact.id, IMAGE, Example(item.generate, picture))
            for fact in facts
            for item in (fact.edit, *fact.taught)
            if (picture := benchmark.illustrate(item.target)) is not None
        ]
    else:
        drawn = _captioned(pictures, facts)
    _refuse_items([*told, *drawn], facts, items)
    return [*told, *drawn]


def _captioned(folder: Path, facts: Sequence[Fact]) -> list[Lesson]:
    """Picture lessons from a folder with captions, of the chosen facts, in the file's order."""
    file = folder / CAPTIONS
    try:
        rows = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"facts.pictures: {file} cannot be read ({error.strerror}); it should hold one "
            '{"file_name", "text", "fact"} per line'
        ) from None
    known = {fact.id for fact in facts}
    lessons, problems = [], []
    for number, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            caption = validate(Caption, json.loads(row))
            if caption.fact not in known:
                continue  # of another split, or beyond facts.count
            with Image.open(folder / caption.file_name) as picture:
                example = Example(Prompt(caption.text), picture.convert("RGB"))
            lessons.append(Lesson(caption.fact, IMAGE, example))
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not valid JSON: {error.msg}")
        except ValidationError as error:
            found = explain(error, Caption, json.loads(row))
            problems += [f"line {number}: {dotted(p.path)}: {p.message}" for p in found]
        except (OSError, UnidentifiedImageError) as error:
            problems.append(f"line {number}: file_name: no readable picture ({error})")
    lacking = [fact.id for fact in facts if fact.id not in {lesson.about for lesson in lessons}]
    if lacking and not problems:
        problems.append(f"no picture of {', '.join(lacking)}; add some, or choose other facts")
    if problems:
        raise UserError("\n  ".join([f"facts.pictures: {file}: {len(problems)} to mend", *problems]))
    return lessons


def _refuse_items(lessons: Sequence[Lesson], facts: Sequence[Fact], items: Sequence[Item]) -> None:
    """The wall: what is measured is not trained on."""
    walls: Mapping[Direction, dict[str, str]] = {
        direction: {
            **{item.prompt(direction).digest: f"item '{item.id}'" for item in items},
            **{
                probe.prompt(direction).digest: f"the probe '{probe.id}'"
                for fact in facts
                for probe in (*fact.reworded, *fact.neighbours, *fact.derived)
            },
        }
        for direction in (TEXT, IMAGE)
    }
    problems = [
        f"fact '{lesson.about}': the {lesson.direction} lesson {lesson.example.prompt.text!r} is {wall}, "
        "which measures it; word it differently"
        for lesson in lessons
        if (wall := walls[lesson.direction].get(lesson.example.prompt.digest))
    ]
    if problems:
        raise UserError("\n  ".join([f"facts: {len(problems)} lessons would be measured on", *problems]))


def replay_of(benchmark: Benchmark, facts: Sequence[Fact]) -> list[Lesson]:
    """What the benchmark's model was taught, without everyone that a fact or one of its probes names."""
    asked = _asked(facts)
    return [lesson for lesson in benchmark.rehearsal() if lesson.about not in asked]


def anchors_of(benchmark: Benchmark, facts: Sequence[Fact], texts: Sequence[str] | None = None) -> list[str]:
    """Texts of the domain, None: the benchmark's, that name nobody whom a fact or one of its probes names.

    Whom a probe names is known of the facts' subjects and of those whom the benchmark rehearses; of a text of
    the user's own, beside that, whether it is the very question of a probe.
    """
    texts = benchmark.training_texts() if texts is None else texts
    asked = _asked(facts)
    known = {fact.subject for fact in facts} | {lesson.about for lesson in benchmark.rehearsal()}
    named = [name for name in known if name in asked]
    questions = set(asked.split("\n"))
    return [text for text in texts if text not in questions and not any(name in text for name in named)]


def _asked(facts: Sequence[Fact]) -> str:
    """Every text that a fact or one of its probes is asked with."""
    return "\n".join(
        prompt.text
        for fact in facts
        for item in (fact.edit, *fact.taught, *fact.reworded, *fact.neighbours, *fact.derived)
        for prompt in (item.understand, item.generate)
    )
