"""Judges that are language models: what they are shown, how they are read, and what is asked only once."""

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from endpoint_server import Act, Request, refused, said, serving, sometimes
from PIL import Image

from gapeval_lab import registry
from gapeval_lab.endpoint import EndpointStopped, Ledger
from gapeval_lab.errors import UserError
from gapeval_lab.items import Direction, Item, PictureFile, Prompt, Response
from gapeval_lab.judges.conversation import SECOND, question_of
from gapeval_lab.judges.gapeval_routes import GENERIC, ROUTES, route_of
from gapeval_lab.judges.llm import LlmJudge
from gapeval_lab.judges.prompt_files import OURS, template_of
from gapeval_lab.judges.realunify_rule import YES_NO
from gapeval_lab.judges.verdict_text import read_verdict
from gapeval_lab.testing import ScriptedUMM

TOLD, DRAWN = Direction.UNDERSTANDING, Direction.GENERATION
COLOURS = {"problem": (200, 0, 0), "reference": (0, 200, 0), "answer": (0, 0, 200)}
WORLD = ("animal", "cartoon", "celebrity", "landmark")
PUBLISHED = {
    "Multi Hop": ("Multi Hop", ""),
    "physics": ("physics", "optics"),
    "rule_based": ("rule_based", ""),
    "counting/animal": ("counting", "Animals Counting"),
    "counting/object": ("counting", "Fruits"),
    "reasoning/draw": ("reasoning", "draw"),
    "reasoning/puzzle": ("reasoning", "puzzle"),
    "reasoning/mmlu/mmmu": ("reasoning", "mmlu/mmmu"),
    **{
        f"world knowledge/{k}": ("world knowledge", k) for k in ("animal", "cartoon", "celebrity", "landmark")
    },
}


def picture(name: str) -> Image.Image:
    return Image.new("RGB", (24, 24), COLOURS[name])


def item(identity: str = "i", route: str | None = None, *, bare: bool = False) -> Item:
    """An item with everything; of GapEval if a route is named."""
    target: dict[str, Any] = {}
    if route is not None:
        category, kind = PUBLISHED[route]
        target = {"gapeval": {"category": category, "subcategory": kind}}
    shown = () if bare else (picture("problem"),)
    return Item(
        identity,
        "c",
        "s",
        Prompt(f"QUESTION {identity}", shown),
        Prompt(f"TASK {identity}", shown),
        ("REFERENCE", "OTHER"),
        target,
        () if bare else (picture("reference"),),
    )


def response(identity: str, direction: Direction, text: str = "ANSWER") -> Response:
    if direction is TOLD:
        return Response(identity, direction, text=text)
    return Response(identity, direction, picture=picture("answer"))


def pairs_of(number: int, directions: Sequence[Direction] = tuple(Direction)) -> list[tuple[Item, Response]]:
    """Pairs that all differ."""
    return [
        (one, response(one.id, direction, f"ANSWER {n}"))
        for n in range(number)
        for one in [item(str(n))]
        for direction in directions
    ]


def verdict_json(correct: bool, key: str = "score") -> str:
    return json.dumps({"reason": "as told", key: int(correct)})


def is_even(request: Request) -> Act:
    """Right for items with an even number."""
    number = int(next(w for w in request.texts[1].split() if w.isdigit()))
    return said(verdict_json(number % 2 == 0))


def judge(url: str, cache: Path, **more: Any) -> LlmJudge:
    quick = {"key_env": None, "backoff": 0.002, "timeout": 5.0, "model": "judge-1"}
    return LlmJudge(**{"base_url": url, "cache": cache, **quick, **more})


def shown_colours(pictures: Sequence[Image.Image]) -> list[str]:
    names = {colour: name for name, colour in COLOURS.items()}
    return [names[image.convert("RGB").getpixel((3, 3))] for image in pictures]


READ: list[tuple[str, bool | None]] = [
    ('{"reason": "x", "score": 1}', True),
    ('{"reason": "x", "score": 0}', False),
    ('{"score": true}', True),
    ('{"score": "0"}', False),
    ('{"score": " 1 "}', True),
    ('{"score": 1.0}', True),
    ('```json\n{"score": 0}\n```', False),
    ('The set {1, 2} is {odd}: {"score": 1} as {said}.', True),
    ('First {"score": 0}, no: {"score": 1}', True),
    ('{"score": 1} and then {"score": 7}', True),
    ('{"score": 1} and then {"score": ', True),
    ('{"result": {"score": 1}}', True),
    ('{"reason": "a } and a { and \\"score\\": 0", "score": 1}', True),
    ('<think>{"score": 0}?</think>\n{"score": 1}', True),
    ("", None),
    ("score: 1", None),
    ('{"score": 2}', None),
    ('{"score": null}', None),
    ('{"score": [1]}', None),
    ('{"score": 0.5}', None),
    ('{"score": NaN}', None),
    ('{"score": "yes"}', None),
    ('{"score": "raw"}', None),
    ("{'score': 1}", None),
    ('{"verdict": 1}', None),
    ("[1]", None),
    ('{"a":' * 3000, None),
]


@pytest.mark.parametrize(("text", "expected"), READ)
def test_verdicts_are_read_strictly(text, expected):
    found = read_verdict(text, keys=("score",))
    assert (None if found is None else found.correct) is expected


def test_raw_and_second_names_of_the_verdict():
    raw = read_verdict('{"score": "RAW", "reason": "same"}', keys=("score",), raw=True)
    assert (raw.correct, raw.reason) == (False, "raw: same")
    keys = ("judge_result", "judeg_result")
    assert read_verdict('{"judeg_result": 1}', keys=keys).correct
    assert read_verdict('{"judeg_result": 1, "judge_result": true}', keys=keys).correct
    assert read_verdict('{"judeg_result": 1, "judge_result": 0}', keys=keys) is None
    assert read_verdict('{"score": 1}', keys=keys) is None


ATTACHED = {  # route: (told, drawn), in the order of the published pipeline
    "Multi Hop": ("reference", "reference answer"),
    "physics": ("", "problem reference answer"),
    "rule_based": ("", "problem reference answer"),
    "counting/animal": ("", "answer reference"),
    "counting/object": ("", "answer reference"),
    "reasoning/draw": ("problem reference", "problem reference answer"),
    "reasoning/puzzle": ("problem", "problem reference answer"),
    "reasoning/mmlu/mmmu": ("problem", "problem answer"),
    **dict.fromkeys([name for name in PUBLISHED if "world" in name], ("reference", "reference answer")),
    "generic": ("problem reference", "problem reference answer"),
}


def test_every_published_category_has_a_route():
    assert set(PUBLISHED) == set(ROUTES)
    assert set(ATTACHED) == {*ROUTES, "generic"}


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("route", ATTACHED)
def test_each_kind_is_shown_what_was_published_in_that_order(route, direction, tmp_path):
    one = item("i", None if route == "generic" else route)
    keys = route_of(one).form(direction).keys
    with serving(lambda _: said(verdict_json(True, keys[0]))) as server:
        (verdict,) = judge(server.url, tmp_path)([(one, response("i", direction))])
        (request,) = server.requests
    assert (verdict.correct, verdict.reason) == (True, "as told")
    told, drawn = ATTACHED[route]
    assert shown_colours(request.pictures) == (told if direction is TOLD else drawn).split()
    assert [turn["role"] for turn in request.body["messages"]] == ["system", "user"]
    system, user = request.texts
    assert f'"{keys[0]}"' in system
    if direction is TOLD:
        assert "-----\nANSWER\n-----" in user
        assert "ANSWER" not in system
    if (route, direction) != ("reasoning/draw", direction):
        assert "REFERENCE" in user or (route == "rule_based" and direction is DRAWN)
    if route == "rule_based" or route == "generic":
        assert ("QUESTION i" if direction is TOLD else "TASK i") in user
    if "physics" in route or "draw" in route:
        assert "QUESTION i" in user


def test_our_templates_ask_for_the_verdict_that_is_read():
    for route in (*ROUTES.values(), GENERIC):
        for form in (route.text, route.image):
            template = template_of(form, None)
            assert set(template.arguments) == set(form.values)
            assert f'"{form.keys[0]}": 1' in template.system
            assert ('"raw"' in template.system) is form.raw
    template = template_of(YES_NO, None)
    assert set(template.arguments) == set(YES_NO.values) and '"answer": "yes" or "no"' in template.system
    assert {path.stem for path in OURS.glob("*.yaml")} == {
        YES_NO.ours,
        *(form.ours for route in (*ROUTES.values(), GENERIC) for form in (route.text, route.image)),
    }


def test_what_an_item_says_of_itself_is_used():
    published = {"category": "counting", "subcategory": "Animals Counting", "reference": {"objects": ["cat"]}}
    one = replace(item("i"), target={"gapeval": published})
    asked = question_of(one, response("i", TOLD), prompt_dir=None, protocol="same")
    assert '{"objects": ["cat"]}' in asked.text
    tagged = replace(item("i"), tags={"gapeval_category": "reasoning", "gapeval_subcategory": "draw"})
    assert route_of(tagged).name == "reasoning/draw"
    with pytest.raises(
        UserError, match="category: 'reasoning/drow' of item i .*did you mean 'reasoning/draw'"
    ):
        route_of(replace(item("i"), tags={"gapeval_category": "reasoning", "gapeval_subcategory": "drow"}))


def test_nothing_to_judge_is_not_scored_and_not_asked(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    lost = Response("i", DRAWN, picture=PictureFile(tmp_path / "nothing.png"))
    pairs = [
        (item("i"), Response("i", TOLD, error="out of memory")),
        (item("i"), Response("i", TOLD)),
        (item("i"), Response("i", DRAWN)),
        (item("i", "rule_based", bare=True), response("i", DRAWN)),
        (item("i"), lost),
        (item("i"), Response("i", DRAWN, picture=PictureFile(broken))),
    ]
    with serving(is_even) as server:
        verdicts = judge(server.url, tmp_path / "cache")(pairs)
        assert server.requests == []
    assert [verdict.correct for verdict in verdicts] == [None] * 6
    assert [v.reason.split(" (")[0] for v in verdicts] == [
        "no response: out of memory",
        "no text",
        "no picture",
        "the item has no problem and no reference picture, which its template needs",
        "a picture cannot be read",
        "not judged: a picture cannot be read",
    ]


@pytest.mark.parametrize("route", ["rule_based", "reasoning/puzzle", "reasoning/mmlu/mmmu", "physics"])
def test_a_copy_of_the_question_is_wrong_where_it_was_to_be_changed(route, tmp_path):
    copied = Response("i", DRAWN, picture=picture("problem"))
    with serving(lambda _: said(verdict_json(True))) as server:
        (verdict,) = judge(server.url, tmp_path)([(item("i", route), copied)])
        asked = len(server.requests)
    # A situation may look the same afterwards: physics is left to the judge.
    assert (verdict.correct, asked) == ((True, 1) if route == "physics" else (False, 0))


def test_one_failure_in_ten_loses_no_verdict_and_a_second_run_asks_nothing(tmp_path):
    pairs = pairs_of(100)
    with serving(sometimes(is_even, every=10, slow=1.2)) as server:
        first = judge(server.url, tmp_path, timeout=1.0)
        verdicts = first(pairs)
        assert server.most <= 32
        assert len(server.requests) >= 222
        second = judge(server.url, tmp_path, concurrency=3, requests_per_minute=1e6, price_in=1.0)
        again = second(pairs)
    assert [verdict.correct for verdict in verdicts] == [int(one.id) % 2 == 0 for one, _ in pairs]
    assert [(v.item_id, v.direction) for v in verdicts] == [(one.id, r.direction) for one, r in pairs]
    assert again == verdicts
    assert first.ledger.answered == 200
    assert first.ledger.retried >= 22
    assert second.ledger == Ledger()


def test_what_changes_a_verdict_is_asked_anew_and_nothing_else(tmp_path):
    pairs = pairs_of(3)
    with serving(is_even) as server:

        def calls(pairs: list[tuple[Item, Response]], **settings: Any) -> int:
            before = len(server.requests)
            judge(server.url, tmp_path, **settings)(pairs)
            return len(server.requests) - before

        assert calls(pairs) == 6
        assert calls(pairs + pairs) == 0
        other = Image.new("RGB", (24, 24), (0, 0, 201))
        changed = [*pairs[:-1], (pairs[-1][0], replace(pairs[-1][1], picture=other))]
        assert calls(changed) == 1
        new_text = (pairs[0][0], replace(pairs[0][1], text="else 0"))
        assert calls([new_text, new_text, *pairs]) == 1  # equal questions are asked once
        for pace in (
            {"timeout": 9.0},
            {"concurrency": 1},
            {"price_in": 1.0, "price_out": 1.0},
            {"retries": 1},
        ):
            assert calls(pairs, **pace) == 0
        for matters in (
            {"model": "judge-2"},
            {"temperature": 0.5},
            {"seed": 1},
            {"max_tokens": 9},
            {"longest_side": 100},
            {"picture_format": "jpeg"},
            {"extra_body": {"x": 1}},
        ):
            assert calls(pairs, **matters) == 6, matters


def test_a_spoilt_file_of_the_cache_counts_as_none(tmp_path):
    pairs = pairs_of(4, (TOLD,))
    with serving(is_even) as server:
        expected = judge(server.url, tmp_path)(pairs)
        files = sorted(tmp_path.rglob("*.json"))
        assert len(files) == 4
        row = json.loads(files[0].read_text())
        assert row["answered_by"] == "fake-1"
        assert row["replies"] == [verdict_json(row["correct"])]
        files[0].write_text(files[0].read_text()[:20])
        files[1].write_text(json.dumps({**row, "correct": "maybe"}))
        files[2].write_text("")
        assert judge(server.url, tmp_path)(pairs) == expected
        assert len(server.requests) == 7


def _judge_in_another_process(url: str, cache: Path) -> None:
    judge(url, cache)(pairs_of(20))


def test_two_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    with serving(is_even) as server:
        workers = [
            context.Process(target=_judge_in_another_process, args=(server.url, tmp_path)) for _ in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert [worker.exitcode for worker in workers] == [0, 0]
        asked = len(server.requests)
        verdicts = judge(server.url, tmp_path)(pairs_of(20))
        assert len(server.requests) == asked
    assert [verdict.correct for verdict in verdicts] == [n % 2 == 0 for n in range(20) for _ in Direction]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"]


def test_the_cost_limit_stops_a_run_and_the_next_one_goes_on(tmp_path):
    pairs = pairs_of(30, (TOLD,))
    prices = {"price_in": 10.0, "price_out": 10.0, "max_tokens": 10}
    runs, asked = 0, 0

    def script(request: Request) -> Act:
        act = json.loads(is_even(request).body)
        return said(act["choices"][0]["message"]["content"], prompt=200)

    with serving(script) as server:
        while True:
            runs += 1
            limited = judge(server.url, tmp_path, max_cost=0.03, concurrency=4, **prices)
            try:
                verdicts = limited(pairs)
                break
            except EndpointStopped as stop:
                assert str(stop).startswith("max_cost: ")
                assert limited.ledger.cost <= 0.03
                assert len(server.requests) > asked
                asked = len(server.requests)
    assert runs >= 3
    assert len(server.requests) == 30  # nothing was asked twice
    assert [verdict.correct for verdict in verdicts] == [n % 2 == 0 for n in range(30)]


def test_a_reply_without_a_verdict_is_asked_again_and_then_not_scored(tmp_path):
    def script(request: Request) -> Act:
        turns = request.texts
        if "ANSWER 0" in turns[1] and len(turns) == 6:
            return said(verdict_json(True))
        return said("I think it is right.")

    with serving(script) as server:
        repaired, lost = judge(server.url, tmp_path, parse_retries=2)(pairs_of(2, (TOLD,)))
        lengths = sorted(len(request.texts) for request in server.requests)
        assert lengths == [2, 2, 4, 4, 6, 6]
        turns = server.requests[-1].body["messages"]
        assert [turn["role"] for turn in turns[1:]] == ["user", "assistant", "user", "assistant", "user"]
        assert '"score": 1 or 0' in turns[-1]["content"]
        assert judge(server.url, tmp_path)(pairs_of(2, (TOLD,)))[0] == repaired
    assert repaired.correct is True
    assert lost.correct is None
    assert lost.reason == "no verdict could be read from the judge's replies: 'I think it is right.'"


def test_one_failing_response_is_not_scored_and_the_others_are(tmp_path):
    def script(request: Request) -> Act:
        return refused(500, "oops") if "ANSWER 1" in request.texts[1] else is_even(request)

    with serving(script) as server:
        verdicts = judge(server.url, tmp_path, retries=1)(pairs_of(3, (TOLD,)))
    assert [verdict.correct for verdict in verdicts] == [True, None, True]
    assert verdicts[1].reason == "not judged: no answer in 2 attempts; the last: HTTP 500: oops"


@pytest.mark.parametrize(("protocol", "turns"), [("same", (1, 1)), ("authors", (2, 1))])
def test_protocols(protocol, turns, tmp_path):
    def script(request: Request) -> Act:
        return said(verdict_json(len(request.texts) > 2))

    with serving(script) as server:
        told, drawn = judge(server.url, tmp_path, protocol=protocol)(pairs_of(1))
        sent = sorted(len(request.texts) for request in server.requests)
        if protocol == "authors":
            assert server.requests[-1].texts[-1] == SECOND or server.requests[-2].texts[-1] == SECOND
    assert len(sent) == sum(turns)
    assert told.correct is (turns[0] == 2)  # the last word counts
    assert drawn.correct is False


AUTHORS = """system_prompt: |
  THEIRS
template: |
  P {{ problem }} R {{ reference_answer }} G {{ generated_text }}
"""


def clone(folder: Path, text: str, below: str = "utils/prompt_templates") -> Path:
    place = folder / below
    place.mkdir(parents=True, exist_ok=True)
    (place / "physics_text_eval.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("below", ["utils/prompt_templates", "."])
def test_the_authors_prompts_are_read_from_a_clone(below, tmp_path):
    args = "jinja_args:\n  - problem\n  - reference_answer\n  - generated_text\n"
    folder = clone(tmp_path / "clone", AUTHORS + args, below)
    with serving(lambda _: said(verdict_json(True))) as server:
        theirs = judge(server.url, tmp_path / "cache", prompt_dir=folder)
        (verdict,) = theirs([(item("i", "physics"), response("i", TOLD))])
        assert server.requests[0].texts == ["THEIRS\n", "P QUESTION i R REFERENCE G ANSWER"]
        assert verdict.correct
        ours = judge(server.url, tmp_path / "cache")
        assert theirs.settings()["templates"] != ours.settings()["templates"]
        before = theirs.settings()
        with pytest.raises(UserError, match="cannot read .*physics_image_eval.yaml"):
            theirs([(item("i", "physics"), response("i", DRAWN))])
    moved = clone(tmp_path / "elsewhere", AUTHORS + args)
    assert judge("http://x/v1", tmp_path, prompt_dir=moved).settings()["templates"] == before["templates"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("template: '{{ unknown }}'\n", "cannot be filled in .UndefinedError"),
        ("template: '{{ problem'\n", "cannot be filled in .TemplateSyntaxError"),
        ("template: '{{ problem.__class__.__mro__ }}'\n", "cannot be filled in .SecurityError"),
        ("template: x\njinja_args: [colour]\n", "wants colour; known here: problem"),
        ("template: x\njinja_args: colour\n", "jinja_args a list of names"),
        ("template: x\ntemplate: y\n", "template"),
        ("template: [x\n", "physics_text_eval.yaml"),
        ("system_prompt: x\n", "no text under 'template'"),
        ("- x\n", "no text under 'template'"),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_one_clear_message(text, words, tmp_path):
    folder = clone(tmp_path / "clone", text)
    with pytest.raises(UserError, match=words) as caught:
        judge("http://x/v1", tmp_path, prompt_dir=folder)([(item("i", "physics"), response("i", TOLD))])
    assert "prompt_dir: " in str(caught.value) or "physics_text_eval.yaml" in str(caught.value)


def test_answers_are_text_and_never_templates(tmp_path):
    sly = "{{ 7 * 7 }} {% for x in range(3) %}"
    asked = question_of(item("i"), response("i", TOLD, sly), prompt_dir=None, protocol="same")
    assert sly in asked.text


def test_the_estimate_is_what_a_run_then_takes(tmp_path):
    pairs = [*pairs_of(5), (item("e"), Response("e", TOLD, error="x"))]
    with serving(is_even) as server:
        free = judge(server.url, tmp_path, protocol="authors")
        before = free.estimate(pairs)
        assert (before.pairs, before.decided, before.cached, before.calls) == (11, 1, 0, 15)
        assert before.cost is None
        assert server.requests == []
        free(pairs)
        assert len(server.requests) == before.calls
        assert sum(len(request.pictures) for request in server.requests) == before.pictures
        least, most = before.prompt_tokens
        letters = sum(len(text) for request in server.requests for text in request.texts)
        assert least <= letters / 4 + 85 * before.pictures <= most
        after = judge(server.url, tmp_path, protocol="authors", price_in=1.0, price_out=2.0).estimate(pairs)
        assert (after.calls, after.cached, after.cost) == (0, 10, (0.0, 0.0))
    priced = judge("http://x/v1", tmp_path / "new", price_in=1.0, price_out=2.0).estimate(pairs)
    low, high = priced.cost
    assert low == pytest.approx((priced.prompt_tokens[0] + 40 * 10 * 2) / 1e6)
    assert high == pytest.approx((priced.prompt_tokens[1] + 1024 * 10 * 2) / 1e6)


def test_the_cache_lies_where_runs_are_kept_and_holds_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path))
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-77")
    with serving(is_even) as server:
        settings = {"base_url": server.url, "model": "m", "key_env": "JUDGE_KEY"}
        built = registry.build("judges", "llm", settings=settings)
        built(pairs_of(1))
        assert "sk-secret-77" in str(server.requests[0].headers)
    kept = list((tmp_path / "mlruns" / "cache" / "verdicts").rglob("*.json"))
    assert len(kept) == 2
    told = [*(path.read_text() for path in kept), json.dumps(built.settings()), built.model_dump_json()]
    assert not [text for text in told if "sk-secret-77" in text]


def test_settings_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(UserError) as caught:
        registry.build("judges", "llm", settings={"prompt_dir": str(tmp_path), "concurency": 3})
    words = str(caught.value)
    assert "judges.llm.model: missing" in words
    assert "judges.llm.prompt_dir: holds no physics_text_eval.yaml" in words
    assert "judges.llm.concurency: unknown key; did you mean 'concurrency'?" in words


# -- on this machine


class Local:
    """Stands in the table of models; `load` gives the scripted model of the moment."""

    umm: ScriptedUMM


@pytest.fixture
def local(monkeypatch, tmp_path):
    from pydantic import BaseModel, ConfigDict

    class Fake(BaseModel):
        model_config = ConfigDict(frozen=True, extra="forbid")
        size: int = 3

        def load(self) -> ScriptedUMM:
            return Local.umm

    real = registry.find
    monkeypatch.setattr(registry, "find", lambda kind, name: Fake if name == "fake" else real(kind, name))

    numbers = count()

    def build(tell: Any, **settings: Any) -> Any:
        Local.umm = ScriptedUMM(tell)
        kept = str(tmp_path / str(next(numbers)))
        return registry.build(
            "judges", "local", settings={"model": {"use": "fake"}, "cache": kept, **settings}
        )

    return build


def test_a_local_judge_gives_the_same_verdicts_in_any_order(local):
    asked: list[Prompt] = []
    seeds: dict[str, int] = {}

    def tell(prompt: Prompt, seed: int) -> str:
        asked.append(prompt)
        assert seeds.setdefault(prompt.digest, seed) == seed
        if "Your reply was:" not in prompt.text:
            return "hm"
        return verdict_json(seed % 2 == 0)

    pairs = pairs_of(8)
    built = local(tell)
    verdicts = built(pairs)
    assert {verdict.correct for verdict in verdicts} == {True, False}
    assert len(asked) == 32  # each is asked a second time, for its first reply held no verdict
    assert local(tell)(pairs[::-1]) == verdicts[::-1]
    alone = local(tell)
    assert [v for pair in pairs for v in alone([pair])] == verdicts
    assert len(asked) == 96
    assert shown_colours(asked[1].images) == ["problem", "reference", "answer"]
    assert asked[0].text.startswith("You grade a text")
    assert len(set(seeds.values())) == 32


def test_a_local_judge_keeps_its_verdicts_as_long_as_its_weights_are_the_same(local, tmp_path):
    asked: list[Prompt] = []

    def tell(prompt: Prompt, seed: int) -> str:
        asked.append(prompt)
        return "hm" if "ANSWER 1" in prompt.text else verdict_json(True)

    shared = {"cache": str(tmp_path / "shared"), "parse_retries": 0}
    pairs = pairs_of(3, (TOLD,))
    first = local(tell, **shared)
    verdicts = first([*pairs, *pairs])  # equal questions are asked once
    assert ([v.correct for v in verdicts], len(asked)) == ([True, None, True] * 2, 3)
    again = local(tell, **shared)
    assert again([*pairs, *pairs]) == verdicts
    assert again.settings() == first.settings()
    assert len(asked) == 4  # what gave no verdict is asked again
    other = local(tell, **shared)
    with torch.no_grad():
        Local.umm.weight.add_(1.0)
    assert other(pairs) == verdicts[:3]
    assert len(asked) == 7
    assert other.settings()["weights"] != first.settings()["weights"]


def test_a_local_judge_that_fails_fails_for_one(local):
    def tell(prompt: Prompt, seed: int) -> str:
        if "ANSWER 1" in prompt.text:
            raise RuntimeError("too long")
        return verdict_json(True)

    verdicts = local(tell)(pairs_of(3, (TOLD,)))
    assert [verdict.correct for verdict in verdicts] == [True, None, True]
    assert verdicts[1].reason == "the judge failed: RuntimeError: too long"


def test_a_local_judge_says_what_its_verdicts_depend_on(local):
    built = local(lambda prompt, seed: "no", parse_retries=0)
    assert built.model.settings == {"size": 3}
    assert built.settings()["model"] == Local.umm.settings()
    assert json.loads(json.dumps(built.settings())) == built.settings()
    (verdict,) = built(pairs_of(1, (TOLD,)))
    assert verdict.reason == "no verdict could be read from the judge's replies: 'no'"


def test_a_local_judge_may_be_a_config(local, tmp_path):
    (tmp_path / "grader.yaml").write_text("use: fake\nsize: 4\n")
    built = local(lambda prompt, seed: verdict_json(True), model={"config": str(tmp_path / "grader.yaml")})
    assert built.model.model_dump() == {"use": "fake", "size": 4}
    assert [verdict.correct for verdict in built(pairs_of(2))] == [True] * 4


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, "judges.local.model: use: should name one of"),
        ("janus", "judges.local.model: should be a mapping such as"),
        ({"config": "nothere"}, "file: 'nothere' was found neither"),
        ({"use": "jannus"}, "judges.local.model.use: models: 'jannus' is unknown; did you mean 'janus'"),
        ({"use": "janus", "dtyp": "x"}, "judges.local.model.dtyp: unknown key; did you mean 'dtype'"),
    ],
)
def test_a_local_judge_that_is_no_model_is_refused(model, words):
    with pytest.raises(UserError, match=words):
        registry.build("judges", "local", settings={"model": model})
