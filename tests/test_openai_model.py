"""A model behind an endpoint, against a real server: answers, drawings, edits, and prompts that fail."""

import base64
import hashlib
import io
import json
import shutil
import time
from email.parser import BytesParser
from typing import Any

import numpy as np
import pytest
from contract_umm import UMMContract, noise_picture
from endpoint_server import Act, Request, as_json, refused, said, serving
from PIL import Image

from gapeval_lab import registry
from gapeval_lab.bench import weights_of
from gapeval_lab.endpoint import CostReached
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import ResponseStore, evaluate, respond
from gapeval_lab.interfaces import Weightless
from gapeval_lab.items import Direction, Item, Prompt, image_digest, png_bytes
from gapeval_lab.models.openai_chat import OpenAIChat
from gapeval_lab.models.openai_loaded import LoadedOpenAI, PromptNotAnswered
from gapeval_lab.models.pair_model import LoadedPair
from gapeval_lab.testing import ScriptedJudge

TOLD, DRAWN = Direction.UNDERSTANDING, Direction.GENERATION


def form(request: Request) -> dict[str, list[bytes]]:
    """The fields of a multipart request."""
    kind = next(v for k, v in request.headers.items() if k.lower() == "content-type")
    parsed = BytesParser().parsebytes(f"content-type: {kind}\r\n\r\n".encode() + request.raw)
    fields: dict[str, list[bytes]] = {}
    for part in parsed.get_payload():
        name = part.get_param("name", header="content-disposition")
        fields.setdefault(name, []).append(part.get_payload(decode=True))
    return fields


def drawing(seed: bytes) -> Act:
    number = int.from_bytes(hashlib.sha256(seed).digest()[:4], "big")
    values = np.random.default_rng(number).integers(0, 256, (8, 8, 4), dtype=np.uint8)  # with transparency
    return as_json(
        {"created": 0, "data": [{"b64_json": base64.b64encode(png_bytes(Image.fromarray(values))).decode()}]}
    )


def obliging(request: Request) -> Act:
    """Answers and drawings that depend on everything that was sent."""
    if request.path.endswith("/chat/completions"):
        parts = json.dumps([request.body["messages"], request.body.get("seed")])
        return said(hashlib.sha256(parts.encode()).hexdigest()[:12])
    if request.path.endswith("/images/generations"):
        return drawing(json.dumps(request.body, sort_keys=True).encode())
    fields = form(request)
    return drawing(repr(sorted(fields.items())).encode())


def model(url: str, **more: Any) -> LoadedOpenAI:
    both = {"chat_model": "teller", "image_model": "drawer", "send_image_seed": True}
    quick = {"key_env": None, "backoff": 0.002, "timeout": 5.0}
    return OpenAIChat(**{"base_url": url, **both, **quick, **more}).load()


class TestContract(UMMContract):
    @pytest.fixture
    def umm(self):
        with serving(obliging) as server:
            yield model(server.url)


def test_what_is_sent():
    with serving(obliging) as server:
        umm = model(server.url, system="Be short.", temperature=0.3, image_quality="low")
        umm.answer([Prompt("what?", (noise_picture(1),))], seeds=[2**40 + 5])
        umm.draw([Prompt("a cat")], seeds=[2**40 + 6])
        umm.draw([Prompt("a dog", (noise_picture(1), noise_picture(2)))], seeds=[7])
        chat, drawn, edited = server.requests
    assert chat.texts == ["Be short.", "what?"]
    assert image_digest(chat.pictures[0].convert("RGB")) == image_digest(noise_picture(1))
    assert (chat.body["model"], chat.body["seed"], chat.body["temperature"]) == ("teller", 5, 0.3)
    assert drawn.path == "/v1/images/generations"
    assert drawn.body == {
        "model": "drawer",
        "prompt": "a cat",
        "n": 1,
        "size": "1024x1024",
        "quality": "low",
        "response_format": "b64_json",
        "seed": 6,
    }
    assert edited.path == "/v1/images/edits"
    fields = form(edited)
    assert (fields["prompt"], fields["model"], fields["seed"]) == ([b"a dog"], [b"drawer"], [b"7"])
    sent = [Image.open(io.BytesIO(data)) for data in fields["image[]"]]
    assert [image_digest(image) for image in sent] == [image_digest(noise_picture(n)) for n in (1, 2)]


def test_fields_can_be_left_out():
    with serving(obliging) as server:
        umm = model(server.url, send_seed=False, send_image_seed=False, ask_base64=False, image_size=None)
        umm.answer([Prompt("x")], seeds=[1])
        umm.draw([Prompt("x")], seeds=[1])
        assert "seed" not in server.requests[0].body
        assert server.requests[1].body == {"model": "drawer", "prompt": "x", "n": 1}


def test_directions_are_those_of_the_models_that_are_named():
    teller = OpenAIChat(key_env=None, chat_model="t").load()
    drawer = OpenAIChat(key_env=None, image_model="d").load()
    assert (teller.name, teller.directions) == ("t", {TOLD})
    assert (drawer.name, drawer.directions) == ("d", {DRAWN})
    with pytest.raises(UserError, match="image_model: t draws nothing"):
        teller.draw([Prompt("x")], seeds=[0])
    with pytest.raises(UserError, match="chat_model: d answers nothing"):
        drawer.answer([Prompt("x")], seeds=[0])
    with pytest.raises(UserError, match="models.openai: needs chat_model, image_model, or both"):
        registry.build("models", "openai", settings={})


def test_its_weights_are_out_of_reach_and_its_identity_stands_for_them(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    umm = model("http://host/v1")
    assert isinstance(umm, Weightless)
    assert weights_of(umm) == umm.identity()
    for refused_call in (umm.backbone, lambda: umm.loss([], TOLD)):
        with pytest.raises(UserError, match="behind an endpoint"):
            refused_call()
    same = model("http://host/v1/", key_env="MY_KEY", concurrency=3, price_in=1.0, name="other", timeout=9.0)
    assert same.identity() == umm.identity()
    others = [
        model("http://other/v1"),
        *(model("http://host/v1", **change) for change in ({"chat_model": "x"}, {"image_size": "512x512"})),
        *(model("http://host/v1", **change) for change in ({"system": "x"}, {"temperature": 1.0})),
    ]
    assert len({umm.identity(), *(other.identity() for other in others)}) == 6
    assert "sk-secret" not in json.dumps(same.settings())


def items(number: int) -> list[Item]:
    return [Item(str(n), "c", "s", Prompt(f"q{n}"), Prompt(f"draw{n}"), ("x",), {}) for n in range(number)]


def test_a_failing_prompt_is_its_own_and_costs_the_others_nothing(tmp_path):
    def script(request: Request) -> Act:
        text = request.body.get("prompt") or request.texts[-1]
        return refused(500, "oops") if text in ("q7", "draw7") else obliging(request)

    judge = ScriptedJudge(lambda item, response: None if response.error else True)
    with serving(script) as server:
        umm = model(server.url, retries=2)
        done = evaluate(umm, items(20), judge=judge, seed=0, store=ResponseStore(tmp_path))
        assert len(server.requests) == 2 * (19 + 3)
    failed = {key for key, response in done.responses.items() if response.error is not None}
    assert failed == {("7", TOLD), ("7", DRAWN)}
    assert done.responses["7", TOLD].error == (
        "CallFailed: no answer in 3 attempts; the last: HTTP 500: oops"
    )
    with serving(obliging) as server:  # what was kept is not asked again
        other = model(server.url)
        whole = evaluate(other, items(20), judge=judge, seed=0, store=ResponseStore(tmp_path))
        assert len(server.requests) == 2
    assert not [response for response in whole.responses.values() if response.error]


PRICES = {"price_in": 1000.0, "price_out": 1000.0, "price_picture": 0.3, "max_tokens": 10}


def test_the_cost_limit_hands_out_what_is_finished():
    with serving(obliging) as server:
        umm = model(server.url, max_cost=1.0, concurrency=2, **PRICES)
        prompts, finished = [Prompt(f"p{n}") for n in range(9)], {}
        with pytest.raises(CostReached, match="max_cost: 0.9 of 1 is spent"):
            umm.arriving(DRAWN)(prompts, seeds=range(9), arrived=finished.update)
        assert len(server.requests) == 3
        assert umm.ledger.cost == pytest.approx(0.9)
        assert sorted(finished) == [0, 1, 2]
        fresh = model(server.url).draw(prompts[:3], seeds=range(3))
        assert [image_digest(finished[n]) for n in range(3)] == [image_digest(image) for image in fresh]


@pytest.mark.parametrize("paired", [False, True])
def test_answers_are_on_disk_before_the_last_one_comes(tmp_path, paired):
    """A kill loses what is under way, and nothing that was paid for before, whatever the chunk."""
    seen: list[int] = []

    def script(request: Request) -> Act:
        if request.texts[-1] != "q8":
            return obliging(request)
        deadline = time.monotonic() + 5.0  # the others must be readable while this one is being answered
        while len(seen) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
            lines = [line for file in tmp_path.glob("*.jsonl") for line in file.read_text().splitlines()]
            seen[:] = [len(line) for line in lines]
        return obliging(request)

    with serving(script) as server:
        umm = model(server.url, image_model=None, concurrency=3, timeout=9.0)
        whole = LoadedPair(umm, umm) if paired else umm
        given = respond(whole, items(9), [TOLD], seed=0, store=ResponseStore(tmp_path))
    assert len(seen) == 8 and len(given) == 9 and not any(one.error for one in given.values())


def test_a_store_that_cannot_be_written_ends_the_run_at_once(tmp_path):
    store = ResponseStore(tmp_path / "store")
    with serving(obliging) as server:
        umm = model(server.url, image_model=None, concurrency=2)
        shutil.rmtree(tmp_path / "store")
        with pytest.raises(UserError, match="store: cannot write"):
            respond(umm, items(90), [TOLD], seed=0, store=store)
        assert len(server.requests) < 90


def test_a_picture_that_is_too_large_is_an_error_of_its_item(tmp_path):
    def script(request: Request) -> Act:
        return refused(413, "too large") if request.texts[-1] == "q3" else obliging(request)

    judge = ScriptedJudge(lambda item, response: None if response.error else True)
    with serving(script) as server:
        umm = model(server.url, image_model=None)
        done = evaluate(umm, items(20), judge=judge, seed=0, store=ResponseStore(tmp_path))
        assert len(server.requests) == 20, "it is not asked a second time"
    failed = {key: response.error for key, response in done.responses.items() if response.error}
    assert failed == {
        (
            "3",
            TOLD,
        ): "CallFailed: HTTP 413: too large; send smaller pictures (longest_side, picture_format: jpeg)"
    }


def test_a_run_that_the_cost_limit_ends_goes_on_where_it_was(tmp_path):
    judge = ScriptedJudge(lambda item, response: True)
    with serving(obliging) as server:
        umm = model(server.url, max_cost=1.0, concurrency=2, chat_model=None, **PRICES)
        with pytest.raises(UserError, match="run again to go on"):
            evaluate(umm, items(9), judge=judge, seed=0, store=ResponseStore(tmp_path))
        assert len(server.requests) == 3
        umm = model(server.url, chat_model=None)
        done = evaluate(umm, items(9), judge=judge, seed=0, store=ResponseStore(tmp_path))
        assert len(server.requests) == 9
        assert not [response for response in done.responses.values() if response.error]


def test_a_run_that_the_endpoint_ends_keeps_what_is_finished(tmp_path):
    judge = ScriptedJudge(lambda item, response: True)

    def script(request: Request) -> Act:
        return refused(401, "no more") if request.number == 6 else obliging(request)

    with serving(script) as server:
        umm = model(server.url, concurrency=1, image_model=None)
        with pytest.raises(UserError, match="HTTP 401: no more"):
            evaluate(umm, items(9), judge=judge, seed=0, store=ResponseStore(tmp_path))
        evaluate(umm, items(9), judge=judge, seed=0, store=ResponseStore(tmp_path))
        assert len(server.requests) == 7 + 3


def test_an_endpoint_that_refuses_ends_the_run():
    words = r"base_url: .* refused a call \(HTTP 401: no\)"
    with serving(lambda _: refused(401, "no")) as server, pytest.raises(UserError, match=words):
        model(server.url).answer([Prompt("x"), Prompt("y")], seeds=[0, 1])


@pytest.mark.parametrize(
    "odd",
    [
        as_json({"created": 0, "data": [{"url": "http://x/y.png"}]}),
        as_json({"created": 0, "data": []}),
        as_json({"created": 0, "data": [{"b64_json": "%%%"}]}),
        as_json({"created": 0, "data": [{"b64_json": base64.b64encode(b"no picture").decode()}]}),
    ],
)
def test_a_drawing_that_is_none_is_an_error_of_its_prompt(odd):
    with serving(lambda _: odd) as server, pytest.raises(PromptNotAnswered):
        model(server.url, retries=1).draw([Prompt("x")], seeds=[0])


def test_a_missing_key_is_told_when_the_model_is_loaded(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="key_env: the environment variable NO_SUCH_KEY is not set"):
        OpenAIChat(chat_model="t", key_env="NO_SUCH_KEY").load()


def test_settings_are_light_to_import():
    import subprocess
    import sys

    program = (
        "import sys\nimport gapeval_lab.models.openai_chat\n"
        "import gapeval_lab.judges.llm, gapeval_lab.judges.local\n"
        "heavy = {'torch', 'transformers', 'openai', 'jinja2', 'mlflow', 'numpy'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
