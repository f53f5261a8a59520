"""Items asked otherwise than directly: prompts, seeds, what is asked again, and the records."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from test_run import bench, go, go_folder, scripted_umm

from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import Evaluation, ResponseStore, evaluate
from gapeval_lab.items import Direction, Item, Prompt, Response
from gapeval_lab.outcome import Outcome
from gapeval_lab.protocol_settings import ProtocolNode
from gapeval_lab.protocols import ByProtocol, ask_by
from gapeval_lab.recipe import load
from gapeval_lab.report import draw_outcome
from gapeval_lab.report_protocols import item_protocol_data
from gapeval_lab.testing import ScriptedJudge, ScriptedUMM
from gapeval_lab.tracking_scalars import scalars
from gapeval_lab.tracking_tables import tables

UND, GEN = Direction.UNDERSTANDING, Direction.GENERATION
NODES: TypeAdapter[Any] = TypeAdapter(ProtocolNode)


def node(settings: dict[str, Any]) -> Any:
    return NODES.validate_json(json.dumps(settings))


RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (2, 2), colour)


ITEMS = [
    Item("i0", "a", "s", Prompt("tell 0"), Prompt("paint 0"), ("blue",), tags={"hint": "think of 0"}),
    Item("i1", "a", "s", Prompt("tell 1", (picture(RED),)), Prompt("paint 1", (picture(RED),)), ("blue",)),
]


class Asked:
    """A model that says and draws by two functions of the prompt, and remembers what it was asked."""

    def __init__(self, tell: Any, paint: Any) -> None:
        self.told: list[tuple[str, int, int]] = []
        self.drew: list[tuple[str, int, int]] = []

        def say(prompt: Prompt, seed: int) -> str:
            self.told.append((prompt.text, len(prompt.pictures), seed))
            return str(tell(prompt))

        def draw(prompt: Prompt, seed: int) -> Image.Image:
            self.drew.append((prompt.text, len(prompt.pictures), seed))
            return picture(paint(prompt))

        self.umm = ScriptedUMM(say, draw)


def judge(item: Item, response: Response) -> bool:
    if response.image is not None:
        return response.image.getpixel((0, 0)) == BLUE
    return response.text in item.accepted


def ask(model: Asked, settings: dict[str, Any]) -> tuple[Evaluation, ByProtocol]:
    how: dict[str, Any] = {"judge": ScriptedJudge(judge), "seed": 5}
    direct = evaluate(model.umm, ITEMS, **how)
    model.told.clear(), model.drew.clear()
    return direct, ask_by({"p": node(settings)}, model.umm, direct, **how)["p"]


def test_drawn_from_its_own_answer() -> None:
    model = Asked(lambda p: "blue" if p.text == "tell 0" else "", lambda p: BLUE if "blue" in p.text else RED)
    direct, by = ask(model, {"use": "tell_then_draw", "draw": "{prompt} in {answer}, {tag_hint}"})
    assert model.told == [], "the direct answer is taken"
    assert [text for text, *_ in model.drew] == ["paint 0 in blue, think of 0"]
    (found,) = by.samples
    assert [direct.correct(item, GEN) for item in ITEMS] == [False, False]
    assert [found.correct(item, GEN) for item in ITEMS] == [True, False]
    assert [found.correct(item, UND) for item in ITEMS] == [direct.correct(item, UND) for item in ITEMS]
    assert by.alone == {("i1", GEN)}, "it answered nothing, and is drawn directly"
    assert found.responses["i1", GEN] is direct.responses["i1", GEN]


def test_the_step_may_be_another_question() -> None:
    model = Asked(lambda p: "blue" if p.text == "think of 0" else "red", lambda p: RED)
    _, by = ask(model, {"use": "tell_then_draw", "ask": "{tag_hint}", "draw": "{answer}"})
    assert [text for text, *_ in model.told] == ["think of 0"]
    assert [text for text, *_ in model.drew] == ["blue"]
    assert by.alone == {("i1", GEN)}, "it has no such tag"
    _, by = ask(model, {"use": "draw_then_tell", "draw": "{tag_hint} red", "ask": "which colour?"})
    assert [text for text, *_ in model.drew] == ["think of 0 red"]
    assert [(text, pictures) for text, pictures, _ in model.told] == [("which colour?", 1)]


def test_answered_with_its_own_drawing_at_hand() -> None:
    def tell(prompt: Prompt) -> str:
        return "blue" if prompt.images and prompt.images[-1].getpixel((0, 0)) == BLUE else "red"

    model = Asked(tell, lambda p: BLUE)
    direct, by = ask(model, {"use": "draw_then_tell"})
    assert model.drew == []
    assert [(text, pictures) for text, pictures, _ in model.told] == [("tell 0", 1), ("tell 1", 2)]
    (found,) = by.samples
    assert not any(direct.correct(item, UND) for item in ITEMS)
    assert all(found.correct(item, UND) and found.correct(item, GEN) for item in ITEMS)


def test_it_reasons_before_it_answers_and_before_it_draws() -> None:
    def tell(prompt: Prompt) -> str:
        return "so blue" if prompt.text.startswith("why") else "blue" if "so blue" in prompt.text else "red"

    model = Asked(tell, lambda p: BLUE if "so blue" in p.text else RED)
    settings = {"use": "think", "think": "why {task}", "answer": "{task}: {thought}"}
    direct, by = ask(model, settings)
    assert sorted((text, pictures) for text, pictures, _ in model.told) == [
        *(("tell 0: so blue", 0), ("tell 1: so blue", 1), ("why paint 0", 0), ("why paint 1", 1)),
        *(("why tell 0", 0), ("why tell 1", 1)),
    ]
    assert {text for text, *_ in model.drew} == {"paint 0: so blue", "paint 1: so blue"}
    (found,) = by.samples
    assert all(found.correct(item, direction) for item in ITEMS for direction in Direction)
    assert by.steps["i0", GEN].text == "so blue" and by.asked["i0", UND] == "tell 0: so blue"
    _, one = ask(model, {**settings, "directions": ["generation"]})
    assert set(one.asked) == {("i0", GEN), ("i1", GEN)}
    assert one.samples[0].correct(ITEMS[0], UND) == direct.correct(ITEMS[0], UND)


def test_samples_have_random_numbers_of_their_own() -> None:
    model = Asked(lambda p: "red", lambda p: BLUE)
    direct, by = ask(model, {"use": "samples", "k": 3})
    assert len(by.samples) == 3 and by.samples[0] is direct
    seeds = [seed for _, _, seed in (*model.told, *model.drew)]
    assert len(seeds) == len(set(seeds)) == 2 * 2 * 2
    assert all(set(one.responses) == set(direct.responses) for one in by.samples)
    assert all(response.item_id == key[0] for one in by.samples for key, response in one.responses.items())
    assert all(one.correct(item, GEN) for one in by.samples for item in ITEMS)


def test_it_judges_itself() -> None:
    def tell(prompt: Prompt) -> str:
        if prompt.text.startswith("answer to"):
            return " Yes, it is." if "tell 0" in prompt.text else "No"
        return "nonsense" if prompt.text.startswith("shows") and "1" in prompt.text else "yes"

    model = Asked(tell, lambda p: RED)
    settings = {"use": "self_judged", "told": "answer to {question}: {answer}", "drawn": "shows {prompt}"}
    direct, by = ask(model, settings)
    assert [(text, n) for text, n, _ in model.told] == [
        *(("answer to tell 0: yes", 0), ("answer to tell 1: yes", 1)),
        *(("shows paint 0", 1), ("shows paint 1", 2)),
    ]
    (found,) = by.samples
    assert [found.correct(item, UND) for item in ITEMS] == [True, False]
    assert [found.correct(item, GEN) for item in ITEMS] == [True, None]
    assert found.responses == direct.responses


def test_common_random_numbers_and_stored_answers(tmp_path: Path) -> None:
    model = Asked(lambda p: "blue", lambda p: BLUE)
    how: dict[str, Any] = {"judge": ScriptedJudge(judge), "seed": 5, "store": ResponseStore(tmp_path)}
    nodes = {
        "a": node({"use": "tell_then_draw"}),
        "b": node({"use": "samples", "k": 2}),
    }
    direct = evaluate(model.umm, ITEMS, **how)
    seeds = {seed for _, _, seed in model.drew}
    model.drew.clear()
    ask_by({"a": nodes["a"]}, model.umm, direct, **how)
    assert {seed for _, _, seed in model.drew} == seeds, "the noise of the direct drawing"
    first = ask_by(nodes, model.umm, direct, **how)
    asked = len(model.told) + len(model.drew)
    again = ask_by(nodes, model.umm, evaluate(model.umm, ITEMS, **how), **how)
    assert len(model.told) + len(model.drew) == asked, "nothing is asked twice"
    assert {k: v.samples[-1].verdicts for k, v in again.items()} == {
        k: v.samples[-1].verdicts for k, v in first.items()
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use": "tell_then_draw", "draw": "{prompt}"}, r"draw: should hold \{answer\}"),
        ({"use": "tell_then_draw", "draw": "{anser}"}, r"draw: \{anser\} is unknown here; use \{question\}"),
        ({"use": "tell_then_draw", "ask": "{answer}"}, r"ask: \{answer\} is unknown"),
        ({"use": "draw_then_tell", "ask": "{tag_}"}, r"\{tag_\} is unknown"),
        ({"use": "think", "answer": "{task}"}, r"answer: should hold \{thought\}"),
        ({"use": "think", "directions": []}, "at least 1"),
        ({"use": "samples", "k": 1}, "greater than or equal to 2"),
        ({"use": "self_judged", "told": "right?"}, r"told: should hold \{answer\}"),
        ({"use": "self_judged", "yes": "No", "no": "no"}, "the same word"),
        ({"use": "guess"}, "tell_then_draw"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        node(settings)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.protocols={direct: {use: samples}}", "direct: this name is taken; choose another"),
        ("evaluation.protocols={Told: {use: samples}}", "evaluation.protocols"),
        ("evaluation.protocols={told: {use: tell_then_drw}}", "evaluation.protocols.told"),
    ],
)
def test_bad_sections(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("baseline", [override])


def with_protocols(parts: Any, nodes: dict[str, Any]) -> Any:
    validated = {name: node(settings) for name, settings in nodes.items()}
    protocol = parts.loaded.recipe.evaluation.model_copy(update={"protocols": validated})
    recipe = parts.loaded.recipe.model_copy(update={"evaluation": protocol})
    return replace(parts, loaded=replace(parts.loaded, recipe=recipe))


def test_a_run_has_them_beside_the_direct_way(tmp_path: Path) -> None:
    umm = scripted_umm()  # tells "new" to "tell a 0" once it is edited
    umm._draw = lambda prompt, seed: picture(BLUE if "new" in prompt.text else RED)
    nodes = {
        "told_first": {"use": "tell_then_draw"},
        "twice": {"use": "samples", "k": 2},
        "own_eyes": {"use": "self_judged", "yes": "old", "no": "new"},
    }
    parts = replace(with_protocols(bench(umm), nodes), judge=ScriptedJudge(judge_blue))
    outcome = go(tmp_path, parts)
    first, twice, own = outcome.protocols
    assert (first.name, first.use, first.k) == ("told_first", "tell_then_draw", 1)
    assert (first.n, first.unscored) == (8, 0) and first.after is not None
    assert [state.generation.value for state in (first.before, first.after)] == [0.0, 0.125]
    assert first.shift["generation"].value == 0.125 and first.after.over_direct["generation"].value == 0.125
    assert first.after.over_direct["understanding"].value == 0.0
    assert twice.k == 2 and set(twice.before.passed) == {"understanding", "generation"}
    assert twice.before.over_direct["gap"].value == 0.0, "a model that does not sample says the same again"
    assert own.before.agreement["generation"].value == 0.0 and own.before.understanding is not None
    assert own.before.understanding.value == 1.0, "it thinks well of itself"
    rows = {(row.protocol, row.phase, row.item, row.direction): row for row in outcome.protocol_rows}
    changed = rows["told_first", "after", "a-0", "generation"]
    assert changed.asked.endswith("in words: new") and changed.correct == [True] and changed.step == "new"
    folder = go_folder(tmp_path).parent
    assert changed.picture is not None and Image.open(folder / changed.picture).getpixel((0, 0)) == BLUE
    assert ("told_first", "after", "a-0", "understanding") not in rows, "as asked directly"
    assert Outcome.load(folder) == outcome
    controls = {Direction.UNDERSTANDING: 2 * 8, Direction.GENERATION: 2 * 8}
    # each state: items and probes; then told: second sample, own verdicts; drawn: anew, second sample
    assert umm.calls[Direction.UNDERSTANDING] == 2 * (8 + 4 + 8 + 2 * 8) + controls[Direction.UNDERSTANDING]
    assert umm.calls[Direction.GENERATION] == 2 * (8 + 4 + 8 + 8) + controls[Direction.GENERATION]

    metrics = scalars(outcome)
    assert metrics["protocol/told_first/generation"] == 0.125
    assert metrics["protocol/told_first/delta_generation"] == 0.125
    assert metrics["protocol/own_eyes/agreement_generation"] == 0.0
    made = {table.name: table for table in tables(outcome, [])}
    numbers, items = made["10_item_protocols"], made["11_items_by_protocol"]
    assert all(len(row) == len(numbers.columns) for row in numbers.rows) and len(numbers.rows) == 6
    assert all(len(row) == len(items.columns) for row in items.rows)
    assert len(items.rows) == len(outcome.protocol_rows)
    text = rendered(outcome)
    assert "Asked in other ways" in text and "told_first" in text and "twice, pass@2" in text
    assert "own_eyes, agrees with the judge" in text
    alone = [part.model_copy(update={"after": None, "shift": {}}) for part in outcome.protocols]
    told = item_protocol_data(outcome.model_copy(update={"protocols": alone}))[0]
    assert told.cells[-1] == "n/a", "a baseline shifts nothing"


def judge_blue(item: Item, response: Response) -> bool:
    if response.image is not None:
        return response.image.getpixel((0, 0)) == BLUE
    return response.text == "new"


def rendered(outcome: Outcome) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(draw_outcome(outcome))
    return console.export_text()


def test_a_model_with_one_direction_is_refused_before_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    from gapeval_lab import bench as module
    from gapeval_lab.models.janus import Janus

    umm = scripted_umm()
    umm.directions = frozenset({Direction.UNDERSTANDING})
    monkeypatch.setattr(Janus, "load", lambda self: umm)
    loaded = load("baseline", ["evaluation.protocols={p: {use: think}}", "evaluation.limit=2"])
    with pytest.raises(UserError, match=r"^evaluation.protocols.p: .* does not draw, as think needs here"):
        module.load_bench(loaded)
    for enough in ("{use: samples}", "{use: think, directions: [understanding]}"):
        fine = load("baseline", [f"evaluation.protocols={{p: {enough}}}", "evaluation.limit=2"])
        parts = module.load_bench(fine)
        assert parts.umm is umm
        with pytest.raises(UserError, match=r"^evaluation.protocols.p: .* does not draw"):
            module.with_recipe(parts, loaded)
    umm.directions = frozenset({Direction.GENERATION})
    drawn = load("baseline", ["evaluation.protocols={p: {use: think, directions: [generation]}}"])
    with pytest.raises(UserError, match=r"^evaluation.protocols.p: .* does not tell, as think needs here"):
        module.load_bench(drawn)


def test_a_run_of_a_model_that_only_tells(tmp_path: Path) -> None:
    umm = scripted_umm()
    umm.directions = frozenset({Direction.UNDERSTANDING})
    thought = {"use": "think", "directions": ["understanding"], "answer": "{task} {thought}"}
    parts = with_protocols(bench(umm), {"thought": thought, "twice": {"use": "samples", "k": 2}})
    parts = replace(parts, judge=ScriptedJudge(judge_blue))
    outcome = go(tmp_path, parts)
    thought_of, twice = outcome.protocols
    for found in (thought_of, twice):
        assert (found.n, found.unscored, found.before.generation, found.before.gap) == (8, 0, None, None)
        assert found.before.understanding is not None and set(found.shift) == {"understanding"}
    assert set(twice.before.passed) == {"understanding"}
    assert {row.direction for row in outcome.protocol_rows} == {"understanding"}
    assert "twice, pass@2" in rendered(outcome)


def test_what_fails_on_the_way_is_that_items_own() -> None:
    """Failed answers are asked directly, or not judged; why stands in the reason."""
    items = [replace(ITEMS[0], id=f"i{n}", understand=Prompt(f"tell {n}")) for n in range(40)]

    def tell(prompt: Prompt) -> str:
        if prompt.text.split("\n")[0] in ("tell 3", "judge tell 7"):
            raise RuntimeError("no room")
        return "yes"

    model = Asked(tell, lambda p: BLUE)
    how: dict[str, Any] = {"judge": ScriptedJudge(lambda i, r: None if r.error else True), "seed": 5}
    direct = evaluate(model.umm, items, **how)
    assert direct.responses["i3", UND].error is not None
    own = {"use": "self_judged", "told": "judge {question}\n{answer}"}
    by = ask_by({"a": node({"use": "tell_then_draw"}), "b": node(own)}, model.umm, direct, **how)
    assert by["a"].alone == {("i3", GEN)}
    assert by["a"].samples[0].responses["i3", GEN] is direct.responses["i3", GEN]
    verdicts = by["b"].samples[0].verdicts
    reasons = {n: verdicts[f"i{n}", UND].reason for n in (3, 7)}
    assert [verdicts[f"i{n}", UND].correct for n in (3, 7, 8)] == [None, None, True]
    assert "nothing to ask about" in reasons[3] and "RuntimeError: no room" in reasons[7]


def test_items_that_are_scored_on_one_side_have_their_numbers(tmp_path: Path) -> None:
    """As in RealUnify, whose stepwise answers these protocols ask for."""
    umm = scripted_umm()
    umm._draw = lambda prompt, seed: picture(BLUE if "in words" in prompt.text else RED)

    def one_side(item: Item, response: Response) -> bool | None:
        scored = GEN if item.category == "a" else UND
        return judge_blue(item, response) if response.direction is scored else None

    parts = with_protocols(bench(umm), {"told_first": {"use": "tell_then_draw"}})
    parts.stages = []
    outcome = go(tmp_path, replace(parts, judge=ScriptedJudge(one_side)))
    (found,) = outcome.protocols
    assert (found.n, found.unscored, found.before.gap) == (8, 0, None)
    assert found.before.generation is not None and found.before.generation.value == 1.0
    assert found.before.over_direct["generation"].value == 1.0
    assert found.before.understanding is not None and found.before.understanding.value == 0.0
    assert "told_first" in rendered(outcome)


def test_items_of_one_direction_are_asked_by_steps_that_lead_there_alone() -> None:
    tags = {"hint": "think"}
    told, drawn = (replace(ITEMS[0], id=str(d), tags=tags, directions=frozenset({d})) for d in (UND, GEN))
    model = Asked(lambda p: "blue" if p.pictures else "red", lambda p: BLUE if p.text == "red" else RED)
    how: dict[str, Any] = {"judge": ScriptedJudge(judge), "seed": 5}
    direct = evaluate(model.umm, [told, drawn], **how)
    model.told.clear(), model.drew.clear()
    settings = {
        "told": {"use": "tell_then_draw", "ask": "{tag_hint}", "draw": "{answer}"},
        "drawn": {"use": "draw_then_tell", "draw": "{tag_hint}"},
        "own": {"use": "self_judged"},
        "thought": {"use": "think"},
        "two": {"use": "samples", "k": 2},
    }
    nodes = {name: node(one) for name, one in settings.items()}
    by = ask_by(nodes, model.umm, direct, **how)
    first, second = by["told"].samples[0], by["drawn"].samples[0]
    assert (direct.correct(drawn, GEN), first.correct(drawn, GEN)) == (False, True)
    assert (direct.correct(told, UND), second.correct(told, UND)) == (False, True)
    assert not any(one.alone for one in by.values())
    assert by["told"].asked.keys() == {(drawn.id, GEN)} and by["drawn"].asked.keys() == {(told.id, UND)}
    for one in by.values():
        for sample in one.samples:
            assert sample.verdicts.keys() == {(told.id, UND), (drawn.id, GEN)}
    assert [text for text, *_ in model.drew].count("think") == 1
    assert [text for text, *_ in model.told].count("think") == 1
