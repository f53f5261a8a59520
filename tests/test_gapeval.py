"""GapEval as published: every category, every trap, every flaw, and the table of rows."""

import json
import shutil
from pathlib import Path
from typing import Any

import gapeval_data as data
import pytest
from PIL import Image

from gapeval_lab import registry
from gapeval_lab.benchmarks.gapeval import GapEval
from gapeval_lab.benchmarks.options import options_in
from gapeval_lab.errors import UserError
from gapeval_lab.gapeval_layout import is_model, models_in
from gapeval_lab.interfaces import Benchmark
from gapeval_lab.items import Direction, Item, PictureFile, Prompt, items_digest
from gapeval_lab.recipe import resolve

RED = (255, 0, 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return data.build(tmp_path / "set")


def read(root: Path, **settings: Any) -> dict[int, Item]:
    items = GapEval(root=str(root), **settings).items()
    return {int(item.id.removeprefix("data_")): item for item in items}


def colours(pictures: tuple[Image.Image, ...]) -> list[int]:
    """Red of the first pixel: the item's number (JPEG may be off by a little)."""
    return [image.getpixel((0, 0))[0] for image in pictures]  # type: ignore[index]


def test_all_categories_are_read(root: Path) -> None:
    items = read(root)
    assert list(items) == list(range(1, data.NUMBER + 1))
    assert {n: items[n].category for n in (1, 3, 5, 6, 8, 11, 12)} == {
        1: "world_knowledge",
        3: "reasoning",
        5: "instruction_following",
        6: "numerical_perception",
        8: "reasoning",
        11: "world_knowledge",
        12: "world_knowledge",
    }
    kinds = [items[n].target["gapeval"]["kind"] for n in range(1, 13)]
    assert kinds == [
        *("multi_hop", "multi_hop", "physics", "physics", "rule_based", "counting", "counting"),
        *("draw", "puzzle", "choice", "knowledge", "knowledge"),
    ]
    # und_prompt is empty, or missing: problem stands for it
    assert (items[3].understand.text, items[4].understand.text) == ("what 3", "tell 4")
    assert items[6].target["gapeval"]["counting"] == {"objects": ["cat", "dog"], "number": 3}
    assert items[9].choices == ("a square", "a circle", "a cross") and items[9].accepted == ("B",)
    assert items[10].accepted == ("C\nbecause it is",)
    assert items[8].accepted != ("",) and items[8].target["gapeval"]["reference"] == ""
    assert items[4].tags == {"published_category": "physics", "published_subcategory": "heat"}


def test_pictures_are_files_and_go_where_they_belong(root: Path) -> None:
    items = read(root)
    for item in items.values():
        every = (*item.understand.pictures, *item.generate.pictures, *item.references)
        assert all(isinstance(picture, PictureFile) for picture in every)
        assert item.understand.pictures == item.generate.pictures  # editing, but for Multi Hop
    assert [len(items[n].understand.pictures) for n in range(1, 13)] == [0, 0, *[1] * 8, 0, 1]
    names = {n: items[n].references[0].path for n in range(1, 10)}  # type: ignore[union-attr]
    assert {n: path.relative_to(root).as_posix() for n, path in names.items()} == {
        1: "data_1/ref/1.png",
        2: "data_2/image/1.png",
        3: "data_3/e.jpg",
        4: "data_4/ref/r.png",
        5: "data_5/ref/1.png",
        6: "data_6/image/1.png",
        7: "data_7/ref/1.png",
        8: "data_8/ref/1.png",
        9: "data_9/ref/1.png",
    }
    assert items[10].references == ()
    assert items[4].understand.pictures[0].path.name == "a.jpeg"  # type: ignore[union-attr]
    assert colours(items[5].understand.images) == [5]  # from inage/


def test_the_hash_covers_every_byte_and_the_table(root: Path, tmp_path: Path) -> None:
    before = GapEval(root=str(root)).content_hash()
    assert GapEval(root=str(root)).content_hash() == before
    copy = tmp_path / "elsewhere"
    shutil.copytree(root, copy)
    assert GapEval(root=str(copy)).content_hash() == before  # of the content, not of the place
    for place in ("data_7/ref/1.png", "data_7/image/1.png"):  # references count, too
        data.picture(copy / place, RED)
        changed = GapEval(root=str(copy)).content_hash()
        assert changed != before
        before = changed
    table = tmp_path / "own.yaml"
    table.write_text(
        "rows: {x: [multi_hop, World Knowledge, celebrity], y: [physics, Rule-Based, counting, reasoning]}"
    )
    own = GapEval(root=str(copy), mapping=str(table))
    assert own.categories == ("x", "y") and {item.category for item in own.items()} == {"x", "y"}
    assert own.content_hash() != before and own.version != GapEval(root=str(copy)).version


def test_a_text_in_the_place_of_a_pictures_name_names_none(root: Path) -> None:
    folder = root / "data_4"
    shutil.rmtree(folder / "ref", ignore_errors=True)
    keys = json.loads((folder / "prompt.json").read_text())
    found = []
    for name in ("x" * 5000, "a\0b", "none.png"):
        data.item(root, 4, {**keys, "expect_image": name})
        found.append(read(root)[4].digest)
    assert len(set(found)) == 1


def test_the_table_of_rows_is_pinned_in_the_recipe(root: Path, tmp_path: Path) -> None:
    table = tmp_path / "own.yaml"
    rows = "rows: {a: [multi hop, celebrity, world knowledge], b: [physics, counting, rule based, reasoning]}"
    table.write_text(rows)
    text = (
        "name: r\nabout: x\nseed: 0\nmodel: {use: replay, root: x, model: m}\njudge: {use: option_letter}\n"
        f"benchmark: {{use: gapeval, root: {root}, mapping: {table}}}\n"
    )
    loaded = resolve(text, source="r.yaml")
    pinned = loaded.resolved["benchmark"]["mapping_hash"]
    assert len(pinned) == 64
    assert loaded.recipe.build("benchmark").items()
    table.write_text("# only a comment\n" + rows)
    assert loaded.recipe.build("benchmark").items()
    table.write_text(rows.replace("celebrity, ", "").replace("[physics", "[celebrity, physics"))
    assert resolve(text, source="r.yaml").resolved["benchmark"]["mapping_hash"] != pinned
    with pytest.raises(UserError, match="mapping_hash"):
        loaded.recipe.build("benchmark")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("rows: [a]", "should hold rows"),
        ("rows: {a: x}", "should hold rows"),
        ("other: {}", "should hold rows"),
        ("rows: {a: [x], b: [X]}", "names 'X' twice"),
    ],
)
def test_tables_that_are_none(root: Path, tmp_path: Path, rows: str, said: str) -> None:
    (tmp_path / "t.yaml").write_text(rows)
    with pytest.raises(UserError, match=said):
        GapEval(root=str(root), mapping=str(tmp_path / "t.yaml"))


def test_a_subcategory_of_its_own_goes_before_its_category(root: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.yaml"
    table.write_text(
        "rows:\n  a: [multi hop, celebrity, world knowledge, reasoning/mmlu/mmmu]\n"
        "  b: [physics, counting, rule based, reasoning]\n"
    )
    items = read(root, mapping=str(table))
    assert items[9].category == "b" and items[10].category == "a"


def broken(root: Path) -> dict[int, str]:
    """Breaks items; what the message should say of each."""
    (root / "data_1" / "prompt.json").write_text("{not json")
    (root / "data_2" / "prompt.json").unlink()
    (root / "data_3" / "prompt.json").write_text("[]")
    (root / "data_4" / "image" / "a.jpeg").write_bytes((root / "data_4/image/a.jpeg").read_bytes()[:-60])
    (root / "data_5" / "ref" / "1.png").unlink()
    data.item(root, 6, data.keys("counting", "Animals Counting", 6, reference="three"))
    data.item(root, 7, data.keys("counting", "objects", 7, reference='{"objects": []}'))
    data.item(root, 8, data.keys("reasoning", "riddle", 8))
    data.item(root, 9, data.keys("astrology", "", 9))
    data.item(root, 10, {**data.keys("reasoning", "mmlu", 10), "gen_prompt": " ", "reference": 7})
    shutil.rmtree(root / "data_14" / "image")
    (root / "data_13" / "image" / "1.png").write_bytes((root / "data_13/image/1.png").read_bytes()[:40])
    return {
        1: "prompt.json cannot be read",
        2: "no prompt.json",
        3: "holds no object",
        4: "a.jpeg cannot be read",
        5: "no reference picture (in ref/)",
        6: "should be JSON",
        7: "lacks objects, number",
        8: "'riddle' is no known kind of reasoning",
        9: "'astrology' has no row in",
        10: "gen_prompt: missing or empty",
        13: "1.png cannot be read",
        14: "no problem picture",
    }


def test_every_flaw_of_every_item_is_in_one_message(root: Path) -> None:
    expected = broken(root)
    with pytest.raises(UserError) as caught:
        read(root)
    message = str(caught.value)
    lines = message.splitlines()
    for number, said in expected.items():
        assert any(line.startswith(f"  data_{number}: ") and said in line for line in lines), (
            number,
            message,
        )
    assert "data_10: reference: should be a text" in message  # both of its flaws
    assert f"{len(expected)} of {data.NUMBER} items" in lines[0]
    assert not any(line.startswith(("  data_11:", "  data_12:")) for line in lines)
    assert list(read(root, flawed="skip")) == [11, 12]


def test_flawed_items_all_of_them_are_an_error_either_way(tmp_path: Path) -> None:
    data.item(tmp_path, 1, None)
    with pytest.raises(UserError, match="1 of 1 items"):
        read(tmp_path, flawed="skip")


@pytest.mark.parametrize("settings", [{}, {"root": "a", "dataset": "b"}, {"root": "a", "split": "test"}])
def test_one_source_must_be_given(settings: dict[str, str]) -> None:
    with pytest.raises(UserError, match="root"):
        registry.build("benchmarks", "gapeval", settings=settings)


@pytest.mark.parametrize("make", [False, True])
def test_a_root_that_is_none(tmp_path: Path, make: bool) -> None:
    place = tmp_path / "x"
    if make:
        place.mkdir()
    with pytest.raises(UserError, match="data_1"):
        read(place)


def test_it_is_a_benchmark_that_only_measures(root: Path) -> None:
    bench = GapEval(root=str(root))
    assert isinstance(bench, Benchmark)
    assert bench.training_texts() == [] and bench.rehearsal() == []
    assert all(bench.illustrate(item.target) is None for item in bench.items())


def test_only_models_are_taken_for_models(root: Path) -> None:
    data.answer(root, 2, "bagel", text="x")
    data.answer(root, 2, "output_1", text="x")
    folders = [root / f"data_{n}" for n in range(1, data.NUMBER + 1)]
    shutil.rmtree(root / "data_3" / "pictures")
    assert models_in(folders) == ["bagel", "output_1"]
    assert [is_model(name) for name in ("inage", "image", "ref", "lumoo", ".x", "output_a", "output_11")] == [
        *[False] * 6,
        True,
    ]


def rows_of(root: Path) -> list[dict[str, Any]]:
    """The data set as rows, by the names of prompt.json's keys."""
    rows = []
    for n, item in read(root).items():
        keys = json.loads((root / f"data_{n}" / "prompt.json").read_text())
        keys = keys[0] if isinstance(keys, list) else keys
        shown, expected = item.understand.pictures, item.references
        reference = keys.get("reference")
        rows.append(
            {
                "category": keys["category"],
                "subcategory": keys["subcategory"],
                "und_prompt": keys.get("und_prompt", " ").strip() or keys["problem"],
                "gen_prompt": keys["gen_prompt"],
                "reference": "\n".join(reference) if isinstance(reference, list) else reference,
                "img": str(shown[0].path) if shown else None,  # type: ignore[union-attr]
                "expect_image": str(expected[0].path) if expected else None,  # type: ignore[union-attr]
            }
        )
    return rows


def saved(rows: list[dict[str, Any]], place: Path, **splits: Any) -> Path:
    import datasets  # takes most of a second, and one test process has this file

    features = datasets.Features(
        {
            name: datasets.Image() if name in ("img", "expect_image") else datasets.Value("string")
            for name in rows[0]
        }
    )
    made = datasets.Dataset.from_list(rows, features=features)
    (datasets.DatasetDict({"test": made, **splits}) if splits else made).save_to_disk(str(place))
    return place


def without_problem(item: Item) -> dict[str, Any]:
    return {name: value for name, value in item.target["gapeval"].items() if name != "problem"}


def test_a_dataset_gives_the_same_items(root: Path, tmp_path: Path) -> None:
    place = saved(rows_of(root), tmp_path / "saved")
    kept = tmp_path / "kept"
    bench = GapEval(dataset=str(place), pictures=str(kept))
    there, here = list(read(root).values()), bench.items()
    assert [item.id for item in here] == [f"row_{n}" for n in range(data.NUMBER)]
    for one, other in zip(there, here, strict=True):
        assert one.category == other.category and one.accepted == other.accepted
        assert without_problem(one) == without_problem(other)
        for direction in Direction:
            assert one.prompt(direction).digest == other.prompt(direction).digest
    files = sorted(kept.rglob("*.*"))
    assert files and all(file.stem.startswith(file.parent.name) for file in files)
    times = [file.stat().st_mtime_ns for file in files]
    files[0].write_bytes(b"damaged")
    again = GapEval(dataset=str(place), pictures=str(kept))
    assert items_digest(again.items()) == items_digest(here)
    assert sorted(kept.rglob("*.*")) == files
    assert [file.stat().st_mtime_ns for file in files][1:] == times[1:]  # written once


def test_pictures_of_a_dataset_as_lists_and_as_paths(root: Path, tmp_path: Path) -> None:
    import datasets

    rows = [row for row in rows_of(root) if row["img"] and row["expect_image"]]
    for row in rows:
        row["image"], row["ref"] = [row.pop("img")] * 2, row.pop("expect_image")
    rows[1]["ref"] = str(tmp_path / "nowhere.png")
    features = datasets.Features(
        {name: datasets.Value("string") for name in rows[0]} | {"image": datasets.List(datasets.Image())}
    )
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(str(tmp_path / "saved"))
    kept = str(tmp_path / "kept")
    with pytest.raises(UserError, match="row_1: ref: the picture .*nowhere.png is not there"):
        GapEval(dataset=str(tmp_path / "saved"), pictures=kept).items()
    items = GapEval(dataset=str(tmp_path / "saved"), pictures=kept, flawed="skip").items()
    assert len(items) == len(rows) - 1
    published = {item.generate.digest for item in read(root).values()}
    assert {item.generate.digest for item in items} < published
    assert all(item.references[0].path.is_file() for item in items)  # type: ignore[union-attr]


def test_damaged_pictures_of_a_dataset_are_flaws(root: Path, tmp_path: Path) -> None:
    import datasets

    made = datasets.Dataset.from_list(
        [{**row, "img": {"bytes": b"none", "path": None}} for row in rows_of(root)[:2]]
    )
    made.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError) as caught:
        GapEval(dataset=str(tmp_path / "saved"), pictures=str(tmp_path / "kept")).items()
    assert all(f"row_{n}: img: the picture cannot be read" in str(caught.value) for n in (0, 1))


def test_splits_and_columns_of_a_dataset(root: Path, tmp_path: Path) -> None:
    import datasets

    rows = rows_of(root)
    place = saved(rows, tmp_path / "two", other=datasets.Dataset.from_list([{"a": 1}]))
    kept = str(tmp_path / "kept")
    assert len(GapEval(dataset=str(place), split="test", pictures=kept).items()) == data.NUMBER
    with pytest.raises(UserError, match="split: should be one of test, other"):
        GapEval(dataset=str(place), pictures=kept).items()
    with pytest.raises(UserError) as caught:
        GapEval(dataset=str(place), split="other", pictures=kept).items()
    for name in (
        "category",
        "subcategory",
        "und_prompt or problem",
        "gen_prompt",
        "reference",
        "img or image",
    ):
        assert name in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        GapEval(dataset=str(tmp_path / "nothing" / "here"), pictures=kept).items()


def test_a_dataset_without_the_package(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"gapeval_lab\[datasets\]"):
        GapEval(dataset="x").items()


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("What?\nA. red\nB. green", ("red", "green")),
        ("What? (A) red (B) dark green (C) blue", ("red", "dark green", "blue")),
        ("What?\nA: red\nB: green\n\nAnswer with a letter.", ("red", "green")),
        ("See fig. A. and point B) there", ("and point", "there")),
        ("What is A. Smith's job?\nA) clerk\nB) judge", ("clerk", "judge")),
        ("No options. A cat.", ()),
        ("Only A. one", ()),
        ("", ()),
    ],
)
def test_options_in_a_question(text: str, options: tuple[str, ...]) -> None:
    assert options_in(text) == options


def test_prompts_differ_by_picture(root: Path) -> None:
    items = read(root)
    assert items[13].understand.text == items[14].understand.text
    assert items[13].understand.digest != items[14].understand.digest
    assert isinstance(items[13].understand, Prompt)
