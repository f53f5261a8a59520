"""A small data set in GapEval's published layout, made up here: every category, and every known trap."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

OPTIONS = "Which one comes next?\nA. a square\nB. a circle\nC. a cross"
NUMBER = 14


def picture(path: Path, colour: tuple[int, int, int], size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def item(root: Path, number: int, keys: Any, **pictures: tuple[int, int, int]) -> Path:
    """One folder; pictures by their place, "ref/1.png" written as ref__1_png."""
    folder = root / f"data_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    if keys is not None:
        (folder / "prompt.json").write_text(json.dumps(keys, ensure_ascii=False), encoding="utf-8")
    for place, colour in pictures.items():
        name, _, suffix = place.replace("__", "/").rpartition("_")
        picture(folder / f"{name}.{suffix}", colour)
    return folder


def keys(category: str, subcategory: str = "", number: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "category": category,
        "subcategory": subcategory,
        "und_prompt": f"tell {number}",
        "gen_prompt": f"draw {number}",
        "reference": f"answer {number}",
        **more,
    }


def without(name: str, given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != name}


def build(root: Path) -> Path:
    """The data set; items 1 to `NUMBER`."""
    counted = {"objects": ["cat", "dog"], "number": 3}
    item(root, 1, [keys("Multi Hop", number=1)], ref__1_png=(1, 0, 0), image__1_png=(1, 0, 1))
    item(root, 2, keys("Multi Hop", number=2), image__1_png=(2, 0, 0))  # the reference lies in image/
    told = keys("physics", "optics", 3, problem="what 3", und_prompt=" ")
    told |= {"img": "pictures/p.png", "expect_image": "data_3/e.jpg"}  # relative to the item, and to the root
    item(root, 3, told, pictures__p_png=(3, 0, 0), e_jpg=(3, 0, 2))
    item(
        root,
        4,
        without("und_prompt", keys("physics", "heat", 4, problem="tell 4")),
        image__b_png=(4, 0, 1),
        image__a_jpeg=(4, 0, 0),
        ref__r_png=(4, 0, 2),
    )
    item(root, 5, keys("rule_based", "", 5), inage__1_png=(5, 0, 0), ref__1_png=(5, 0, 2))
    item(
        root,
        6,
        keys("counting", "Animals Counting", 6, reference=json.dumps(counted)),
        image__1_png=(6, 0, 0),  # no ref/: stands for the reference, too
    )
    item(
        root,
        7,
        keys("counting", "objects", 7, reference=json.dumps(counted)),
        image__1_png=(7, 0, 0),
        ref__1_png=(7, 0, 2),
    )
    drawn = without("reference", keys("reasoning", "draw", 8))
    item(root, 8, drawn, image__1_png=(8, 0, 0), ref__1_png=(8, 0, 2))
    item(
        root,
        9,
        keys("reasoning", "puzzle", 9, reference="B", und_prompt=OPTIONS),
        image__1_png=(9, 0, 0),
        ref__1_png=(9, 0, 2),
    )
    item(
        root,
        10,
        keys("reasoning", "mmlu/mmmu", 10, reference=["C", "because it is"], und_prompt=OPTIONS),
        image__1_png=(10, 0, 0),
    )
    item(root, 11, keys("world knowledge", "animal", 11))
    item(root, 12, keys("celebrity", "", 12), image__1_JPG=(12, 0, 0), ref__1_png=(12, 0, 2))
    same = {"und_prompt": "tell the same", "gen_prompt": "draw the same"}  # told apart by their pictures
    item(root, 13, keys("rule_based", "", 13, **same), image__1_png=(13, 0, 0), ref__1_png=(13, 0, 2))
    item(root, 14, keys("rule_based", "", 14, **same), image__1_png=(14, 0, 0), ref__1_png=(14, 0, 2))
    (root / "data_4" / "image" / "._a.png").write_bytes(b"no picture")
    (root / "data_4" / "image" / "Thumbs.db").write_bytes(b"no picture")
    for name in ("lumoo", ".cache", "output_2"):  # never models
        answer(root, 4, name, text="no", colour=(0, 0, 0))
    (root / "notes").mkdir()
    (root / "data_x").mkdir()
    return root


def answer(
    root: Path,
    number: int,
    model: str,
    *,
    text: str | None = None,
    colour: tuple[int, int, int] | None = None,
    more: Mapping[str, tuple[int, int, int]] | None = None,
) -> None:
    """What a model answered to one item."""
    folder = root / f"data_{number}" / model
    folder.mkdir(parents=True, exist_ok=True)
    if text is not None:
        (folder / "text.json").write_text(json.dumps({"output_text": text}), encoding="utf-8")
    if colour is not None:
        picture(folder / "b.png", colour)
    for name, other in (more or {}).items():
        picture(folder / name, other)


def answer_all(root: Path, model: str) -> None:
    """Every item of `build` answered, each one differently."""
    for number in range(1, NUMBER + 1):
        answer(root, number, model, text=f"told {number}", colour=(number, 100, 0))
