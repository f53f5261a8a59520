"""The shipped configs of judges, and RealUnify's own rule for judges that look."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from endpoint_server import Act, Request, refused, said, serving
from PIL import Image
from test_realunify import files, write

from gapeval_lab import registry
from gapeval_lab.bench import load_bench
from gapeval_lab.benchmarks.realunify import RealUnify
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Checked, Judge
from gapeval_lab.items import Direction, Item, Prompt, Response
from gapeval_lab.judges.llm import LlmJudge
from gapeval_lab.judges.local import LocalJudge
from gapeval_lab.judges.verdict_text import read_verdict
from gapeval_lab.nested import NestedNode, load_judge
from gapeval_lab.recipe import load
from gapeval_lab.shipped import names_in, packaged
from gapeval_lab.testing import ScriptedUMM

CHOSEN = {"openai": ["model=some-model"]}
"""What a user has to add to a config."""

DRAWN = Direction.GENERATION


@pytest.mark.parametrize("name", names_in("configs/judges", suffix=".yaml"))
def test_every_config_names_a_judge(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalJudge, "_what_matters", {"judge": "local"})  # its model's weights are elsewhere
    called, node = load_judge(name, CHOSEN.get(name, []))
    judge = registry.build("judges", node.use, settings=node.settings)
    assert called == name and isinstance(judge, Judge)
    in_a_recipe = load(
        "baseline", [f"judge={{config: {name}}}", *(f"judge.{one}" for one in CHOSEN.get(name, []))]
    )
    assert in_a_recipe.recipe.build("judge") == judge
    assert json.loads(json.dumps(judge.settings())) == judge.settings()
    text = (packaged("configs") / "judges" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")


def test_a_judge_at_openai_wants_a_model_and_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"judge.model: missing; this key must be given"):
        load_judge("openai")
    with pytest.raises(UserError, match=r"judge.model: missing; this key must be given"):
        load("baseline", ["judge={config: openai}"])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    loaded = load("baseline", ["judge={config: openai}", "judge.model=some-model"])
    assert isinstance(loaded.recipe.build("judge"), Checked)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):  # before the model is loaded
        load_bench(loaded)
    panel = load("baseline", ["judge={use: panel, judges: [{use: exact}, {config: openai, model: m}]}"])
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        load_bench(panel)


def test_the_local_judge_is_the_config_of_its_model_with_its_own_keys_above() -> None:
    judge = LocalJudge.model_validate({"model": {"config": "qwen2_5_vl_7b", "max_new_tokens": 512}})
    assert isinstance(judge.model, NestedNode)
    assert (judge.model.use, judge.model.settings["max_new_tokens"]) == ("vlm", 512)
    assert judge.model.settings["weights"] == "Qwen/Qwen2.5-VL-7B-Instruct"


# --- RealUnify's rule ------------------------------------------------------------------------------------


def by_colour(text: str, picture: Image.Image) -> str:
    """Sees what there is: the question's colour, or its number in the red channel."""
    asked = text.split("attached picture: ")[1].split("?")[0]
    if asked == "Is it blue":
        return "yes" if picture.getpixel((0, 0))[2] > 100 else "no"
    number = int(asked.removeprefix("Is it "))
    return "yes" if picture.getpixel((0, 0))[0] == number else "no"


def script(request: Request) -> Act:
    text, (picture,) = request.texts[1], request.pictures
    if "Is it 2" in text:
        return refused(500, "oops") if picture.getpixel((0, 0))[1] else said("I cannot tell")
    return said(f"well\n{json.dumps({'reason': 'seen', 'answer': by_colour(text, picture)})}")


@pytest.fixture
def items(tmp_path: Path) -> dict[str, Item]:
    return {item.id: item for item in RealUnify(root=str(write(tmp_path, files(tmp_path)))).items()}


def drawn(item: Item, colour: tuple[int, int, int]) -> tuple[Item, Response]:
    return item, Response(item.id, DRAWN, picture=Image.new("RGB", (4, 4), colour))


def answered(item: Item, text: str) -> tuple[Item, Response]:
    return item, Response(item.id, Direction.UNDERSTANDING, text=text)


def mixed(items: dict[str, Item]) -> list[tuple[Item, Response]]:
    """Is it n? should be yes, is it blue? no; letters A, B, C."""
    return [
        drawn(items["UEG_0"], (0, 0, 0)),
        drawn(items["UEG_1"], (1, 0, 255)),
        answered(items["GEU_1"], "Answer: B"),
        drawn(items["UEG_1"], (0, 0, 255)),
        answered(items["GEU_2"], "B"),
        drawn(items["UEG_2"], (2, 0, 0)),
        drawn(items["UEG_2"], (2, 0, 255)),
        drawn(items["UEG_2"], (2, 1, 0)),
    ]


def wanted(verdicts: Sequence[object]) -> None:
    assert [getattr(one, "correct") for one in verdicts] == [  # noqa: B009
        *(True, False, True, False, False),
        *(None, False, None),
    ]


def test_every_question_is_asked_and_all_must_agree(items: dict[str, Item], tmp_path: Path) -> None:
    with serving(script) as server:
        judge = LlmJudge(
            base_url=server.url,
            model="m",
            key_env=None,
            cache=tmp_path / "kept",
            parse_retries=0,
            retries=0,
        )
        pairs = mixed(items)
        assert judge.estimate(pairs).calls == 12 and judge.estimate(pairs).decided == 2
        verdicts = judge(pairs)
        asked = len(server.requests)
        wanted(verdicts)
        assert asked == 12, "two about each of six pictures, and none about letters"
        assert not any("should be" in text for one in server.requests for text in one.texts)
        assert all(len(one.pictures) == 1 for one in server.requests)
        assert verdicts[0].reason == "all 2 questions answered as they should be"
        assert verdicts[1].reason == "1 of 2 not so: Is it blue? (should be no)"
        assert verdicts[3].reason.startswith("2 of 2 not so: Is it 1? (should be yes); Is it blue?")
        assert "no verdict could be read" in verdicts[5].reason and "not judged" in verdicts[7].reason
        again = judge(pairs[::-1])[::-1]
        wanted(again)
        assert len(server.requests) == asked + 3, "what could not be judged is asked again, alone"
        assert judge.estimate(pairs).cached == 9


def test_a_local_judge_keeps_the_same_rule(items: dict[str, Item], monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(prompt: Prompt, seed: int) -> str:
        if "Is it 2" in prompt.text:
            return "I cannot tell"
        return json.dumps({"answer": by_colour(prompt.text, prompt.images[-1])})

    judge = LocalJudge.model_validate({"model": {"use": "janus"}, "parse_retries": 0})
    monkeypatch.setitem(judge.__dict__, "_umm", ScriptedUMM(tell))
    pairs = mixed(items)
    wanted(judge(pairs))
    assert [judge([pair])[0] for pair in pairs] == judge(pairs)


def test_what_an_item_is_not_scored_by_is_not_judged(items: dict[str, Item]) -> None:
    judge = LlmJudge(base_url="http://localhost:1/v1", model="m", key_env=None)
    pairs = [
        answered(items["UEG_0"], "a new prompt"),
        drawn(items["GEU_0"], (0, 0, 0)),
        (items["UEG_0"], Response("UEG_0", DRAWN, error="E: x")),
        (items["UEG_0"], Response("UEG_0", DRAWN)),
        (replace(items["UEG_0"], target={"realunify": {}}), drawn(items["UEG_0"], (0, 0, 0))[1]),
    ]
    verdicts = judge(pairs)
    assert [one.correct for one in verdicts] == [None] * 5
    assert [one.reason for one in verdicts[2:4]] == ["no response: E: x", "no picture"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"answer": "yes"}', True),
        ('{"reason": "x", "answer": " Yes "}', True),
        ('{"answer": "no"}', False),
        ('{"answer": "maybe"}', None),
        ('{"answer": 1}', None),
        ('{"answer": true}', None),
        ("yes", None),
    ],
)
def test_yes_and_no_are_read_strictly(text: str, found: bool | None) -> None:
    verdict = read_verdict(text, keys=("answer",), wanted="yes")
    assert (verdict and verdict.correct) is found
    other = read_verdict(text, keys=("answer",), wanted="no")
    assert (other and other.correct) is (None if found is None else not found)
