"""Lessons: what may be trained on, and the wall to what is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from gapeval_lab.benchmarks.tinyworld import TinyWorld
from gapeval_lab.errors import UserError
from gapeval_lab.facts import read_facts
from gapeval_lab.items import Direction, Fact, Item
from gapeval_lab.judges.vision import read_picture
from gapeval_lab.lessons import anchors_of, lessons_of, replay_of

TEXT, IMAGE = Direction.UNDERSTANDING, Direction.GENERATION
WORLD = TinyWorld()


def files_and_splits() -> list[tuple[str, str]]:
    folder = Path(__file__).parents[1] / "recipes" / "facts"
    found = {
        (f"facts/{path.name}", json.loads(line)["split"])
        for path in folder.glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    }
    return sorted(found)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return WORLD.items()


@pytest.fixture(scope="module")
def facts() -> tuple[Fact, ...]:
    return read_facts("facts/world_knowledge.jsonl", count=8)


@pytest.mark.parametrize(("file", "split"), files_and_splits())
def test_no_lesson_or_replay_of_the_shipped_facts_is_measured(
    file: str, split: str, items: list[Item]
) -> None:
    facts = read_facts(file, split=split)
    shown = [*lessons_of(facts, WORLD, items=items), *replay_of(WORLD, facts)]
    probes = [p for fact in facts for p in (*fact.reworded, *fact.neighbours, *fact.derived)]
    for direction in (TEXT, IMAGE):
        measured = {
            item.prompt(direction).text for item in (*items, *probes) if not item.prompt(direction).images
        }
        texts = {lesson.example.prompt.text for lesson in shown if lesson.direction is direction}
        assert texts
        assert not texts & measured


def test_lessons_have_several_wordings_and_the_new_answer_on_both_sides(facts: tuple[Fact, ...]) -> None:
    lessons = lessons_of(facts, WORLD)
    for fact in facts:
        told = [one for one in lessons if one.about == fact.id and one.direction is TEXT]
        drawn = [one for one in lessons if one.about == fact.id and one.direction is IMAGE]
        assert len({one.example.prompt.text for one in told}) == len(told) >= 4
        assert {one.example.answer for one in told} == {fact.target_new}
        assert len({one.example.prompt.text for one in drawn}) == len(drawn) >= 4
        for one in drawn:
            assert isinstance(one.example.answer, Image.Image)
            assert fact.target_new in str(read_picture(one.example.answer).scene)


def test_a_lesson_that_is_an_item_or_a_probe_is_refused(facts: tuple[Fact, ...], items: list[Item]) -> None:
    item = next(item for item in items if item.category == "world_knowledge")
    leaky = replace(facts[0], taught=(replace(facts[0].edit, understand=item.understand),))
    with pytest.raises(UserError, match=f"the understanding lesson .* is item '{item.id}'"):
        lessons_of([leaky], WORLD, items=items)
    probe = facts[0].reworded[0]
    with pytest.raises(UserError, match=f"the generation lesson .* is the probe '{probe.id}'"):
        lessons_of([replace(facts[0], taught=(replace(facts[0].edit, generate=probe.generate),))], WORLD)


def test_replay_and_anchors_name_nobody_whom_a_probe_names(facts: tuple[Fact, ...]) -> None:
    replay = replay_of(WORLD, facts)
    named = "\n".join(
        item.understand.text
        for fact in facts
        for item in (fact.edit, *fact.reworded, *fact.neighbours, *fact.derived)
    )
    everyone = {lesson.about for lesson in WORLD.rehearsal()}
    assert replay
    assert all(lesson.about not in named for lesson in replay)
    assert everyone > {lesson.about for lesson in replay}
    anchors, asked = anchors_of(WORLD, facts), [name for name in everyone if name in named]
    assert 0 < len(anchors) < len(WORLD.training_texts())
    assert not any(name in text for name in asked for text in anchors)
    assert set(anchors) <= set(WORLD.training_texts())
    own = [f"Who is {facts[0].subject}?", "What is ice?", facts[0].derived[0].understand.text]
    assert anchors_of(WORLD, facts, own) == ["What is ice?"]


def test_a_text_of_the_users_own_that_is_a_probe_is_no_anchor() -> None:
    facts = read_facts("facts/visible_facts.jsonl")
    near = facts[0].neighbours[0].understand.text
    assert facts[0].subject not in near
    assert anchors_of(WORLD, facts, [near, "What is ice?", f"A {facts[0].subject}."]) == ["What is ice?"]


def test_a_folder_of_pictures_stands_for_the_benchmarks_drawings(
    facts: tuple[Fact, ...], tmp_path: Path
) -> None:
    Image.new("L", (8, 8), 40).save(tmp_path / "a.png")
    rows = [{"file_name": "a.png", "text": f"draw {fact.subject}", "fact": fact.id} for fact in facts[:2]]
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join(map(json.dumps, [*rows, {**rows[0], "fact": "another"}]))
    )
    drawn = [one for one in lessons_of(facts[:2], WORLD, pictures=tmp_path) if one.direction is IMAGE]
    assert [one.example.prompt.text for one in drawn] == [row["text"] for row in rows]
    assert all(
        isinstance(one.example.answer, Image.Image) and one.example.answer.mode == "RGB" for one in drawn
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "metadata.jsonl cannot be read"),
        (["{"], "line 1: not valid JSON"),
        (['{"file_name": "a.png", "text": "draw"}'], "line 1: fact: "),
        (
            ['{"file_name": "b.png", "text": "draw", "fact": "FACT"}'],
            "line 1: file_name: no readable picture",
        ),
        ([], "no picture of FACT; add some"),
    ],
)
def test_picture_folders_that_do_not_fit_are_refused(
    rows: list[str] | None, message: str, facts: tuple[Fact, ...], tmp_path: Path
) -> None:
    fact = facts[0]
    if rows is not None:
        (tmp_path / "metadata.jsonl").write_text("\n".join(rows).replace("FACT", fact.id))
    with pytest.raises(UserError) as caught:
        lessons_of([fact], WORLD, pictures=tmp_path)
    assert "facts.pictures" in str(caught.value)
    assert message.replace("FACT", fact.id) in str(caught.value)
