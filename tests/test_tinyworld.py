"""The benchmark: sizes, both directions, truth, and the wall between items and training."""

import importlib.util
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gapeval_lab.benchmarks import tinyworld_entities as people
from gapeval_lab.benchmarks.tinyworld import TinyWorld, held_out_questions
from gapeval_lab.benchmarks.tinyworld_facts import NEIGHBOURS, make_facts
from gapeval_lab.benchmarks.tinyworld_tasks import OPERATIONS, ask, draw_target
from gapeval_lab.items import Direction, Item, Response
from gapeval_lab.judges.exact import Exact
from gapeval_lab.scene import render

GOLDEN_HASH = "984715cbc9de"  # of tinyworld 1.0; a change of any item is a new version


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return TinyWorld().items()


@pytest.fixture(scope="module")
def training() -> ModuleType:
    """What the script that trains the embedded UMM really shows it."""
    path = Path(__file__).parents[1] / "scripts" / "embedded_data.py"
    spec = importlib.util.spec_from_file_location("embedded_data", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_four_categories_with_at_least_400_items_each(items: list[Item]) -> None:
    counts = Counter(item.category for item in items)
    assert tuple(counts) == TinyWorld().categories
    assert min(counts.values()) >= 400
    assert len({item.id for item in items}) == len(items)
    assert len({(item.understand.digest, item.generate.digest) for item in items}) == len(items)


def test_sub_categories(items: list[Item]) -> None:
    found = {
        name: {item.subcategory for item in items if item.category == name} for name in TinyWorld().categories
    }
    assert found["instruction_following"] == {"recolour", "add", "remove", "move"}
    assert found["numerical_perception"] == {"count", "draw", "as_many_as"}
    assert found["world_knowledge"] == {"attribute", "whole_entity", "two_hop"}
    assert found["reasoning"] == {"polygon_order", "arithmetic", "same_as", "sequence"}


def test_three_categories_hold_picture_questions_and_picture_edits(items: list[Item]) -> None:
    edits = {item.category for item in items if item.understand.images and item.generate.images}
    assert edits == {"instruction_following", "numerical_perception", "reasoning"}


def test_every_item_can_be_asked_in_both_directions_and_its_truth_is_accepted(items: list[Item]) -> None:
    judge = Exact()
    for direction in Direction:
        pairs = [
            (
                item,
                Response(item.id, direction, text=item.reference_text)
                if direction is Direction.UNDERSTANDING
                else Response(item.id, direction, picture=item.references[0]),
            )
            for item in items
        ]
        assert all(item.prompt(direction).text for item in items)
        assert all(verdict.correct for verdict in judge(pairs))


def test_entities_have_names_of_two_tokens_and_balanced_attributes() -> None:
    everyone = people.entities()
    taught = [entity for entity in everyone.values() if entity.taught != "neither"]
    assert len(taught) >= 64
    assert all(e.name[:3] in people.FIRST and e.name[3:] in people.LAST for e in everyone.values())
    colours = Counter(entity.colour for entity in everyone.values())
    assert max(colours.values()) - min(colours.values()) <= 1
    for entity in everyone.values():
        assert entity.friend != entity.name
        assert everyone[entity.friend].taught == entity.taught


def test_content_is_the_same_in_another_process() -> None:
    code = "from gapeval_lab.benchmarks.tinyworld import TinyWorld; print(TinyWorld().content_hash())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == TinyWorld().content_hash()
    assert TinyWorld().content_hash().startswith(GOLDEN_HASH)


def test_benchmark_questions_are_held_out_and_facts_rewordings_are_not_trained_on(items: list[Item]) -> None:
    for operation in OPERATIONS:
        assert all(question.held_out for question in held_out_questions(operation, 20))
    trained = {(q.understand, q.generate) for q in people.trained_questions()}
    told = {understand for understand, _ in trained}
    drawn = {generate for _, generate in trained}
    for item in items:
        if item.category == "world_knowledge":
            assert item.understand.text not in told
            assert item.generate.text not in drawn


def test_no_item_stands_in_the_training_data(items: list[Item], training: ModuleType) -> None:
    """Over samples of the real training data of both stages: no prompt of an item, on its own side."""
    from gapeval_lab.models.tiny import JanusShape, build_janus

    _, processor = build_janus(training.vocabulary(), JanusShape(image_size=48, patch_size=8))
    asked = {item.understand.digest for item in items} | {item.generate.digest for item in items}
    stages = [training.Data(processor, 7, 0.0, late=late) for late in (False, True)]
    rng = np.random.default_rng(0)
    seen = 0
    for data, direction in product(stages, ("text", "image")):
        for picture in (False, True):
            for _ in range(750):
                question = data.sample(direction, picture, rng)
                assert not question.held_out
                item = training_item(question)
                assert item.understand.digest not in asked
                assert (
                    item.generate.digest not in asked
                    or question.edited is None
                    and question.shown is not None
                )
                seen += 1
    for question in (*stages[0].told, *stages[0].shown):
        item = training_item(question)
        assert item.understand.digest not in asked and item.generate.digest not in asked
    assert seen == 6000


def test_the_wall_can_be_seen_to_fail(items: list[Item]) -> None:
    """Sampling without the wall does hit benchmark keys: the test above can fail."""
    rng = np.random.default_rng(0)
    plus = next(operation for operation in OPERATIONS if operation.name == "plus")
    assert any(ask(plus, rng).held_out for _ in range(100))


def training_item(question: object) -> Item:
    from gapeval_lab.benchmarks.tinyworld import to_item

    return to_item(question, "x", {})  # type: ignore[arg-type]


def test_operations_make_right_answers() -> None:
    """The text answer and the drawing of an operation tell the same."""
    rng = np.random.default_rng(3)
    for operation in OPERATIONS:
        for _ in range(50):
            question = ask(operation, rng)
            scene = draw_target(question.target)
            if operation.category == "instruction_following":
                assert question.answers[0] == scene.listing()
            if operation.subcategory == "arithmetic":
                terms = question.key.split("|")[1].split()[:-2]
                words = ["zero", "one", "two", "three", "four", "five", "six"]
                numbers = {word: number for number, word in enumerate(words)}
                expected = numbers[terms[0]]
                for sign, term in zip(terms[1::2], terms[2::2], strict=True):
                    expected += numbers[term] if sign == "plus" else -numbers[term]
                assert len(scene.things) == expected == numbers[question.answers[0]]
            if operation.name == "sequence_two" and question.edited is not None:
                things = scene.things
                assert all(things[i] == things[i - 2] for i in range(2, len(things)))


def test_facts_have_every_kind_of_probe_and_follow_the_edited_world() -> None:
    chosen = [(e.name, "colour") for e in people.entities().values() if e.taught == "both"][:4]
    facts = make_facts(chosen, "test")
    for fact in facts:
        assert fact.target_new != fact.target_true
        assert fact.edit.accepted == (fact.target_new,)
        assert len(fact.reworded) >= 3
        assert len(fact.neighbours) >= NEIGHBOURS
        assert all(fact.subject in item.understand.text for item in (fact.edit, *fact.reworded))
        assert all(fact.subject in item.generate.text for item in (fact.edit, *fact.reworded))
        assert fact.target_new in fact.derived[-1].accepted[0]  # the whole entity
        texts = {item.understand.text for item in (fact.edit, *fact.reworded)}
        assert len(texts) == 1 + len(fact.reworded)


def test_render_and_targets_agree() -> None:
    scene = draw_target({"count": 3})
    assert len(scene.things) == 3
    assert render(scene).size == (48, 48)
