"""Evaluation: seeds, batching, resuming, errors, and the choice of items."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import (
    ResponseStore,
    evaluate,
    prompt_seed,
    select,
    store_key,
)
from gapeval_lab.items import Direction, Item, Prompt, image_digest
from gapeval_lab.testing import ScriptedJudge, ScriptedUMM

ALL_RIGHT = ScriptedJudge(lambda item, response: True)


def make_items(number: int, category: str = "c") -> list[Item]:
    return [
        Item(f"{category}-{i}", category, f"s{i % 3}", Prompt(f"tell {i}"), Prompt(f"draw {i}"), (f"{i}",))
        for i in range(number)
    ]


def paint(prompt: Prompt, seed: int) -> Image.Image:
    return Image.new("RGB", (2, 2), (seed % 256, seed // 256 % 256, len(prompt.text) % 256))


def tell(prompt: Prompt, seed: int) -> str:
    return f"{prompt.text} {seed}"


def test_every_item_is_asked_once_in_each_direction_with_its_own_seed() -> None:
    umm, items = ScriptedUMM(tell, paint), make_items(10)
    result = evaluate(umm, items, judge=ALL_RIGHT, seed=3, chunk=4)
    assert umm.calls == {Direction.UNDERSTANDING: 10, Direction.GENERATION: 10}
    for item in items:
        told = result.responses[item.id, Direction.UNDERSTANDING]
        assert told.text == f"{item.understand.text} {prompt_seed(3, item, Direction.UNDERSTANDING)}"
        assert result.correct(item, Direction.GENERATION) is True
    seeds = {prompt_seed(3, item, direction) for item in items for direction in Direction}
    assert len(seeds) == 20
    assert prompt_seed(3, items[0], Direction.GENERATION) != prompt_seed(4, items[0], Direction.GENERATION)


def test_chunks_and_order_change_nothing() -> None:
    items = make_items(10)
    one = evaluate(ScriptedUMM(tell, paint), items, judge=ALL_RIGHT, seed=0, chunk=3)
    two = evaluate(ScriptedUMM(tell, paint), items[::-1], judge=ALL_RIGHT, seed=0, chunk=10)
    for item in items:
        for direction in Direction:
            a, b = one.responses[item.id, direction], two.responses[item.id, direction]
            assert a.text == b.text
            assert (a.image is None) == (b.image is None)
            if a.image and b.image:
                assert a.image.tobytes() == b.image.tobytes()


def test_a_missing_direction_has_no_responses_and_no_verdicts() -> None:
    umm, items = ScriptedUMM(tell), make_items(3)
    result = evaluate(umm, items, judge=ALL_RIGHT, seed=0)
    assert result.correct(items[0], Direction.GENERATION) is None
    assert result.correct(items[0], Direction.UNDERSTANDING) is True


def test_what_is_on_disk_is_not_asked_again(tmp_path: Path) -> None:
    items = make_items(8)
    first = evaluate(ScriptedUMM(tell, paint), items, judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path))
    umm = ScriptedUMM(tell, paint)
    again = evaluate(umm, items, judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path))
    assert sum(umm.calls.values()) == 0
    key = (items[2].id, Direction.GENERATION)
    one, two = first.responses[key].image, again.responses[key].image
    assert one is not None and two is not None and one.tobytes() == two.tobytes()


def test_a_changed_item_is_asked_anew(tmp_path: Path) -> None:
    items = make_items(4)
    evaluate(ScriptedUMM(tell, paint), items, judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path))
    changed = [
        Item(i.id, i.category, i.subcategory, Prompt("new"), i.generate, i.accepted) for i in items[:1]
    ]
    umm = ScriptedUMM(tell, paint)
    evaluate(umm, changed + items[1:], judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path))
    assert umm.calls[Direction.UNDERSTANDING] == 1


def test_a_run_that_dies_keeps_what_was_finished(tmp_path: Path) -> None:
    items = make_items(12)
    asked: list[str] = []

    def dies(prompt: Prompt, seed: int) -> str:
        asked.append(prompt.text)
        if len(asked) == 9:
            raise KeyboardInterrupt
        return tell(prompt, seed)

    with pytest.raises(KeyboardInterrupt):
        evaluate(
            ScriptedUMM(dies, paint), items, judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path), chunk=4
        )
    umm = ScriptedUMM(tell, paint)
    resumed = evaluate(umm, items, judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path), chunk=4)
    assert umm.calls[Direction.UNDERSTANDING] == 4
    whole = evaluate(ScriptedUMM(tell, paint), items, judge=ALL_RIGHT, seed=0)
    key = Direction.UNDERSTANDING
    assert [resumed.responses[i.id, key].text for i in items] == [
        whole.responses[i.id, key].text for i in items
    ]


def test_a_torn_last_line_and_a_lost_picture_are_asked_again(tmp_path: Path) -> None:
    items = make_items(5)
    evaluate(ScriptedUMM(tell, paint), items, judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path))
    file = tmp_path / "responses.jsonl"
    file.write_bytes(file.read_bytes()[:-7])
    next((tmp_path / "pictures").iterdir()).write_bytes(b"\x89PNG torn")
    umm = ScriptedUMM(tell, paint)
    evaluate(umm, items, judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path))
    assert 1 <= sum(umm.calls.values()) <= 2
    umm = ScriptedUMM(tell, paint)
    evaluate(umm, items, judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path))
    assert sum(umm.calls.values()) == 0


def test_processes_share_a_store_and_lose_nothing(tmp_path: Path) -> None:
    first, second = make_items(4, "a"), make_items(4, "b")
    file = tmp_path / "responses.jsonl"
    evaluate(ScriptedUMM(tell), first, judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path))
    line = file.read_bytes().strip().split(b"\n")[-1]
    file.write_bytes(file.read_bytes().replace(line, b""))
    with file.open("ab", buffering=0) as other:  # a process that is just writing
        other.write(line[:20])
        store = ResponseStore(tmp_path)
        other.write(line[20:] + b"\n")
    evaluate(ScriptedUMM(tell), second, judge=ALL_RIGHT, seed=0, store=store)
    umm = ScriptedUMM(tell)
    evaluate(umm, [*first, *second], judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path))
    assert sum(umm.calls.values()) == 0
    spoilt = file.read_bytes().replace(b'"key"', b'"ke{"key"', 1)  # two that wrote into each other
    file.write_bytes(spoilt)
    evaluate(umm, [*first, *second], judge=ALL_RIGHT, seed=0, store=ResponseStore(tmp_path))
    assert sum(umm.calls.values()) == 1


def test_an_items_content_covers_its_references() -> None:
    """Judges look at them: verdicts, labels and data hashes of a changed one must not be the old ones."""
    items = [
        Item("i", "c", "s", Prompt("t"), Prompt("d"), ("x",), references=references)
        for references in ((), (paint(Prompt(""), 1),), (paint(Prompt(""), 2),))
    ]
    assert len({item.digest for item in items}) == 3


def test_the_store_key_depends_on_weights_settings_and_seed() -> None:
    umm = ScriptedUMM(tell)
    key = store_key(umm, weights="a", seed=0)
    assert key == store_key(umm, weights="a", seed=0)
    assert key != store_key(umm, weights="b", seed=0)
    assert key != store_key(umm, weights="a", seed=1)


def test_an_error_is_its_items_and_is_not_kept(tmp_path: Path) -> None:
    items = make_items(40)

    def fails_once(prompt: Prompt, seed: int) -> str:
        if prompt.text == "tell 7":
            raise RuntimeError("out of memory")
        return tell(prompt, seed)

    judge = ScriptedJudge(lambda item, response: None if response.error else True)
    result = evaluate(
        ScriptedUMM(fails_once, paint), items, judge=judge, seed=0, store=ResponseStore(tmp_path)
    )
    assert result.correct(items[7], Direction.UNDERSTANDING) is None
    assert "out of memory" in str(result.responses[items[7].id, Direction.UNDERSTANDING].error)
    assert result.correct(items[8], Direction.UNDERSTANDING) is True
    umm = ScriptedUMM(tell, paint)
    evaluate(umm, items, judge=judge, seed=0, store=ResponseStore(tmp_path))
    assert umm.calls[Direction.UNDERSTANDING] == 1


def test_too_many_errors_are_the_runs() -> None:
    def fails(prompt: Prompt, seed: int) -> str:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="5 of 10 prompts failed.*broken"):
        evaluate(ScriptedUMM(fails, paint), make_items(5), judge=ALL_RIGHT, seed=0)


def test_a_users_mistake_is_not_taken_for_an_items_error() -> None:
    def fails(prompt: Prompt, seed: int) -> str:
        raise UserError("model.device: no such device")

    with pytest.raises(UserError):
        evaluate(ScriptedUMM(fails, paint), make_items(5), judge=ALL_RIGHT, seed=0)


def test_progress_counts_up_to_the_whole(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    store = ResponseStore(tmp_path)
    for _ in range(2):
        evaluate(
            ScriptedUMM(tell, paint),
            make_items(10),
            judge=ALL_RIGHT,
            seed=0,
            store=store,
            chunk=4,
            progress=lambda done, total: told.append((done, total)),
        )
    assert told[-1] == (20, 20) and all(total == 20 for _, total in told)


def test_an_unwritable_store_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        ResponseStore(tmp_path / "file" / "below")


def test_a_subset_is_stratified_nested_and_fixed() -> None:
    items = make_items(60, "a") + make_items(40, "b")
    chosen = select(items, categories=None, number=20, limit=None)
    assert Counter(item.category for item in chosen) == {"a": 10, "b": 10}
    strata = Counter(item.subcategory for item in chosen if item.category == "a")
    assert max(strata.values()) - min(strata.values()) <= 1
    again = select(items[::-1], categories=None, number=20, limit=None)
    assert {item.id for item in chosen} == {item.id for item in again}
    larger = select(items, categories=None, number=40, limit=None)
    assert {item.id for item in chosen} <= {item.id for item in larger}


def test_categories_and_limits() -> None:
    items = make_items(6, "a") + make_items(6, "b")
    only = select(items, categories=["b"], number=None, limit=None)
    assert {item.category for item in only} == {"b"}
    few = select(items, categories=None, number=None, limit=4)
    assert Counter(item.category for item in few) == {"a": 2, "b": 2}
    with pytest.raises(UserError, match="'z' is unknown; choose from a, b"):
        select(items, categories=["z"], number=None, limit=None)


def test_a_palette_belongs_to_a_pictures_content() -> None:
    """The same indices in other colours are another picture, and models see its colours."""
    pictures = [Image.new("P", (2, 2), 1) for _ in range(2)]
    for picture, colour in zip(pictures, ((255, 0, 0), (0, 0, 255)), strict=True):
        picture.putpalette([0, 0, 0, *colour])
    assert image_digest(pictures[0]) != image_digest(pictures[1])
    assert image_digest(pictures[0]) == image_digest(pictures[0].copy())


def test_an_item_of_one_direction_is_asked_there_alone() -> None:
    told, drawn = (
        Item(
            name, "c", "s", Prompt(f"tell {name}"), Prompt(f"draw {name}"), ("x",), directions=frozenset({d})
        )
        for name, d in (("told", Direction.UNDERSTANDING), ("drawn", Direction.GENERATION))
    )
    both = Item("both", "c", "s", Prompt("tell both"), Prompt("draw both"), ("x",))
    assert both.digest == Item("both", "c", "s", Prompt("tell both"), Prompt("draw both"), ("x",)).digest
    assert len({told.digest, replace(told, directions=frozenset(Direction)).digest}) == 2
    umm = ScriptedUMM(lambda prompt, seed: prompt.text, lambda prompt, seed: Image.new("RGB", (2, 2)))
    seen: list[tuple[int, int]] = []
    result = evaluate(
        umm,
        [told, drawn, both],
        judge=ScriptedJudge(lambda item, response: True),
        seed=0,
        progress=lambda done, total: seen.append((done, total)),
    )
    asked = {(item_id, direction.value) for item_id, direction in result.responses}
    assert asked == {
        *(("told", "understanding"), ("both", "understanding"), ("drawn", "generation")),
        ("both", "generation"),
    }
    assert set(result.verdicts) == set(result.responses) and seen[-1] == (4, 4)
    assert result.correct(told, Direction.GENERATION) is None
