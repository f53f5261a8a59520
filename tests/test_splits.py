"""Halves of a benchmark: as it marks them, or by hash; and a recipe that asks one of them."""

from dataclasses import replace

import pytest

from gapeval_lab.bench import chosen_items
from gapeval_lab.benchmarks.tinyworld import TinyWorld
from gapeval_lab.errors import UserError
from gapeval_lab.items import Item, Prompt
from gapeval_lab.recipe import load
from gapeval_lab.splits import half, marked, of_split


def items(number: int, **tags: str) -> list[Item]:
    return [
        Item(f"i-{n}", "a", "s", Prompt("tell"), Prompt("draw"), ("x",), tags=tags) for n in range(number)
    ]


def test_marks_of_the_benchmark_decide() -> None:
    both = [*items(3, split="dev"), *(replace(item, id=f"t-{item.id}") for item in items(2, split="test"))]
    assert [item.id for item in of_split(both, "dev")] == ["i-0", "i-1", "i-2"]
    assert [item.id for item in of_split(both, "test")] == ["t-i-0", "t-i-1"]
    assert of_split(both, None) == both
    assert marked(both)


def test_without_marks_a_hash_gives_two_halves_that_never_move() -> None:
    all_ = items(400)
    dev, test = of_split(all_, "dev"), of_split(all_, "test")
    assert not marked(all_)
    assert sorted([*dev, *test], key=all_.index) == all_
    assert 160 < len(dev) < 240
    assert [half(f"i-{n}") for n in range(6)] == ["dev", "dev", "test", "dev", "test", "test"]


def test_marks_that_are_no_halves_are_refused() -> None:
    with pytest.raises(UserError, match="2 of 3 items have no tag 'split', i-0 for one"):
        of_split([*items(2), *(replace(item, id="t") for item in items(1, split="dev"))], "dev")
    with pytest.raises(UserError, match="no item is marked 'dev'; the benchmark has train"):
        of_split(items(2, split="train"), "dev")


def test_a_recipe_asks_one_half() -> None:
    asked = {
        split: chosen_items(load("rome_world_knowledge", [f"evaluation.split={split}"]).recipe, TinyWorld())
        for split in ("dev", "test")
    }
    for split, chosen in asked.items():
        assert {item.tags["split"] for item in chosen} == {split}
        assert len(chosen) == 480
    with pytest.raises(UserError, match=r"evaluation\.split"):
        load("rome_world_knowledge", ["evaluation.split=train"])
