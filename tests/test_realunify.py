"""RealUnify's four files, made up here: both halves, the stepwise texts, and what can be wrong."""

import json
from pathlib import Path
from typing import Any

import gapeval_data as data
import pytest

from gapeval_lab.benchmarks.realunify import LETTERS, RealUnify
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import evaluate
from gapeval_lab.interfaces import Benchmark
from gapeval_lab.items import Direction, PictureFile
from gapeval_lab.judges.option import OptionLetter
from gapeval_lab.testing import ScriptedUMM


def files(root: Path, number: int = 3) -> dict[str, list[dict[str, Any]]]:
    """What the four files hold, as far as it is known; keys beside these do not matter."""
    made: dict[str, list[dict[str, Any]]] = {
        "UEG_direct": [],
        "UEG_step": [],
        "GEU_direct": [],
        "GEU_step": [],
    }
    for n in range(number):
        asked = [{"question": f"Is it {n}?", "answer": "yes"}, {"question": "Is it blue?", "answer": "No"}]
        drawn = {"task_type": "commonsense_reasoning", "question_list": asked, "index": n}
        made["UEG_direct"].append({**drawn, "prompt": f"draw {n}", "generated_image": ""})
        made["UEG_step"].append({**drawn, "new_prompt": f"rewrite {n}", "response": ""})
        data.picture(root / "images" / f"{n}.png", (n, 0, 0))
        seen = {
            "task_type": "mental_tracking",
            "image_path": f"images/{n}.png",
            "evaluation_prompt": f"Which {n}?\nA. red\nB. green\nC. blue" if n else "Which? A to D.",
            "answer": "ABC"[n % 3],
        }
        made["GEU_direct"].append({**seen, "response": ""})
        made["GEU_step"].append({**seen, "edit_prompt": f"edit {n}", "edit_image": ""})
    return made


def write(root: Path, made: dict[str, Any]) -> Path:
    root.mkdir(exist_ok=True)
    for name, entries in made.items():
        (root / f"{name}.json").write_text(json.dumps(entries))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path, files(tmp_path))


def test_both_halves_are_read(root: Path) -> None:
    bench = RealUnify(root=str(root))
    assert isinstance(bench, Benchmark) and bench.categories == ("UEG", "GEU")
    items = {item.id: item for item in bench.items()}
    assert list(items) == ["UEG_0", "UEG_1", "UEG_2", "GEU_0", "GEU_1", "GEU_2"]
    drawn, seen = items["UEG_1"], items["GEU_1"]
    assert (drawn.generate.text, drawn.understand.text) == ("draw 1", "rewrite 1")
    assert drawn.target["realunify"]["questions"] == [
        {"question": "Is it 1?", "answer": "yes"},
        {"question": "Is it blue?", "answer": "no"},
    ]
    assert drawn.target["realunify"]["rule"] == "all" and drawn.tags["new_prompt"] == "rewrite 1"
    assert drawn.subcategory == "commonsense_reasoning" and not drawn.choices
    assert seen.understand.pictures == seen.generate.pictures == (PictureFile(root / "images" / "1.png"),)
    assert seen.choices == ("red", "green", "blue") and seen.accepted == ("B",)
    assert seen.generate.text == seen.tags["edit_prompt"] == "edit 1"
    assert seen.tags["evaluation_prompt"] == seen.understand.text
    assert items["GEU_0"].choices == LETTERS
    assert RealUnify(root=str(root), halves=("GEU",)).items() == bench.items()[3:]
    json.dumps([dict(item.target) for item in items.values()])


def test_letters_are_judged_and_pictures_are_left_to_a_judge_that_looks(root: Path) -> None:
    items = RealUnify(root=str(root)).items()
    umm = ScriptedUMM(lambda prompt, seed: "Answer: B.", lambda prompt, seed: data.Image.new("RGB", (2, 2)))
    result = evaluate(umm, items, judge=OptionLetter(), seed=0)
    told = {item.id: result.correct(item, Direction.UNDERSTANDING) for item in items}
    assert told == {
        **dict.fromkeys(("UEG_0", "UEG_1", "UEG_2")),
        "GEU_0": False,
        "GEU_1": True,
        "GEU_2": False,
    }
    assert all(result.correct(item, Direction.GENERATION) is None for item in items)
    asked = {(item_id[:3], direction) for item_id, direction in result.responses}
    assert asked == {("UEG", Direction.GENERATION), ("GEU", Direction.UNDERSTANDING)}
    assert umm.calls == {Direction.UNDERSTANDING: 3, Direction.GENERATION: 3}


def test_content_hash_covers_questions_and_pictures(root: Path) -> None:
    hashes = {RealUnify(root=str(root)).content_hash(), RealUnify(root=str(root)).content_hash()}
    assert len(hashes) == 1
    data.picture(root / "images" / "1.png", (200, 0, 0))
    hashes.add(RealUnify(root=str(root)).content_hash())
    made = files(root)
    made["UEG_direct"][0]["question_list"][0]["answer"] = "no"
    write(root, made)
    hashes.add(RealUnify(root=str(root)).content_hash())
    assert len(hashes) == 3


def test_everything_missing_is_in_one_message(root: Path) -> None:
    made = files(root, 9)
    del made["UEG_direct"][0]["prompt"], made["UEG_direct"][0]["task_type"]
    made["UEG_step"][1]["new_prompt"] = ""
    made["UEG_direct"][2]["question_list"][1]["answer"] = "maybe"
    made["UEG_direct"][3]["question_list"] = "none"
    made["GEU_step"][1] = "text"
    made["GEU_direct"][2]["answer"] = "E"
    del made["GEU_direct"][3]["image_path"]
    made["GEU_direct"][4]["image_path"] = "images/none.png"
    made["GEU_direct"][8]["image_path"] = "iVBORw0KGgo" * 1000  # the picture itself, where its name should be
    (root / "images" / "5.png").write_bytes(b"no picture")
    made["GEU_step"][6]["task_type"] = "other"
    made["GEU_direct"][7]["evaluation_prompt"] = 7
    write(root, made)
    with pytest.raises(UserError) as caught:
        RealUnify(root=str(root)).items()
    for line in (
        "UEG_direct.json, entry 0: lacks task_type, prompt",
        "UEG_step.json, entry 1: lacks new_prompt",
        "UEG_direct.json, entry 2: question_list: every entry needs",
        "UEG_direct.json, entry 3: lacks question_list",
        "GEU_step.json, entry 1: is no object",
        "GEU_direct.json, entry 2: answer: should be the letter of one of its 3 options; got 'E'",
        "GEU_direct.json, entry 3: lacks a picture (image, image_path, img, images)",
        "GEU_direct.json, entry 4: the picture images/none.png is not there",
        "GEU_direct.json, entry 5: the picture ",
        "GEU_direct.json, entry 6: task_type 'mental_tracking' here, 'other' in GEU_step.json",
        "GEU_direct.json, entry 7: lacks evaluation_prompt",
        "GEU_direct.json, entry 8: the picture iVBORw0KGgo",
    ):
        assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 13
    sound = RealUnify(root=str(root), flawed="skip").items()
    assert [item.id for item in sound] == ["UEG_4", "UEG_5", "UEG_6", "UEG_7", "UEG_8", "GEU_0"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read"),
        ("{", "not valid JSON"),
        ("{}", "a list of entries"),
        ("[]", "a list"),
        ("[{}]", "3"),
    ],
)
def test_files_that_are_none(root: Path, text: str | None, said: str) -> None:
    file = root / "UEG_step.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(UserError, match=said):
        RealUnify(root=str(root)).items()
