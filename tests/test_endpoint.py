"""The client against a real server: order, pace, retries, limits, and a key that shows nowhere."""

import asyncio
import logging
import threading
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random
from typing import Any

import pytest
from endpoint_server import GARBAGE, Act, Request, as_json, refused, said, serving, sometimes
from PIL import Image
from pydantic import ValidationError

from gapeval_lab.endpoint import CallFailed, ChatEndpoint, CostReached, EndpointStopped, Ledger
from gapeval_lab.endpoint_client import Caller
from gapeval_lab.endpoint_jobs import run_jobs
from gapeval_lab.endpoint_pace import Pace, asked_to_wait, jittered, run_blocking
from gapeval_lab.endpoint_pictures import Message, encoded, estimate_tokens
from gapeval_lab.errors import UserError
from gapeval_lab.items import PictureFile

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


def endpoint(url: str, **more: Any) -> ChatEndpoint:
    quick = {"key_env": "TEST_KEY", "backoff": 0.002, "timeout": 5.0, "longest_wait": 1.0}
    return ChatEndpoint(**{"base_url": url, **quick, **more})


def asking(*texts: str):
    def job(text: str):
        async def ask(caller: Caller) -> str:
            return (await caller.chat([Message("user", text)], model="m", seed=1)).text

        return ask

    return [job(text) for text in texts]


def echo(request: Request) -> Act:
    return said(f"re: {request.texts[-1]}")


def test_answers_come_in_order_and_never_more_at_a_time_than_allowed():
    chance, together = Random(0), threading.Barrier(7)

    def script(request: Request) -> Act:
        if int(request.texts[-1]) < 7:  # nobody of the first seven is answered before all of them are there
            together.wait(timeout=30)
        return said(request.texts[-1], delay=chance.random() * 0.02)

    texts = [str(number) for number in range(60)]
    ledger = Ledger()
    with serving(script) as server:
        chosen = endpoint(server.url, concurrency=7, price_in=10.0, price_out=100.0)
        assert run_jobs(chosen, asking(*texts), ledger=ledger) == texts
        assert server.most == 7
    assert (ledger.answered, ledger.retried, ledger.prompt_tokens) == (60, 0, 6000)
    assert ledger.cost == pytest.approx(60 * (100 * 10 + 10 * 100) / 1e6)
    sent = server.requests[0]
    assert sent.path == "/v1/chat/completions"
    assert {k.lower(): v for k, v in sent.headers.items()}["authorization"] == f"Bearer {KEY}"
    assert {k: sent.body[k] for k in ("model", "temperature", "max_tokens", "seed")} == {
        "model": "m",
        "temperature": 0.0,
        "max_tokens": 1024,
        "seed": 1,
    }


def test_fields_that_an_endpoint_refuses_can_be_left_out_and_others_added():
    with serving(echo) as server:
        chosen = endpoint(
            server.url,
            temperature=None,
            max_tokens_field="max_completion_tokens",
            extra_body={"reasoning_effort": "low"},
        )
        run_jobs(chosen, asking("x"), ledger=Ledger())
        body = server.requests[0].body
    assert "temperature" not in body
    assert "max_tokens" not in body
    assert body["max_completion_tokens"] == 1024
    assert body["reasoning_effort"] == "low"


def test_it_runs_inside_a_running_loop_too():
    async def inside(url: str) -> list[Any]:
        return run_jobs(endpoint(url), asking("a", "b"), ledger=Ledger())

    with serving(echo) as server:
        assert asyncio.run(inside(server.url)) == ["re: a", "re: b"]


def test_an_error_inside_a_running_loop_reaches_the_caller():
    async def fails() -> None:
        raise KeyError("x")

    async def outer() -> None:
        run_blocking(fails)

    with pytest.raises(KeyError):
        asyncio.run(outer())


@pytest.mark.parametrize(
    "failure",
    [
        refused(429, "slow down"),
        refused(429, "slow down", retry_after="0.01"),
        refused(408, "late"),
        refused(500, "oops"),
        refused(529, "overloaded"),
        Act(cut=True, body=b"{", headers={"content-type": "application/json"}),
        Act(delay=0.25),
        Act(body=b" " * 100, trickle=0.005, headers={"content-type": "application/json"}),
        said(None),
        *GARBAGE,
    ],
    ids=lambda act: f"{act.status}-{act.body[:12]!r}-{act.delay}",
)
def test_what_may_pass_is_tried_again(failure):
    def script(request: Request) -> Act:
        return failure if request.number < 2 else echo(request)

    ledger = Ledger()
    with serving(script) as server:
        assert run_jobs(endpoint(server.url, timeout=0.1), asking("x"), ledger=ledger) == ["re: x"]
        assert len(server.requests) == 3
    assert (ledger.answered, ledger.retried) == (1, 2)


def test_one_failure_in_ten_loses_nothing():
    texts = [str(number) for number in range(200)]
    ledger = Ledger()
    with serving(sometimes(echo, every=10, slow=1.2)) as server:
        results = run_jobs(endpoint(server.url, timeout=1.0), asking(*texts), ledger=ledger)
    assert results == [f"re: {text}" for text in texts]
    assert ledger.answered == 200
    assert ledger.retried >= 22


@pytest.mark.parametrize("told", [1, 2])
def test_a_wait_that_is_asked_for_is_kept_and_by_all_if_two_are_asked(told):
    def script(request: Request) -> Act:
        if request.number < told:
            return refused(429, "slow", retry_after="0.4")
        return said("x", delay=0.02)

    with serving(script) as server:
        run_jobs(endpoint(server.url, concurrency=3), asking(*"abcdefghi"), ledger=Ledger())
        began = max(request.at for request in server.requests[:told])
        waited = [request.at - began for request in server.requests[3:]]
    at_once = sum(wait < 0.35 for wait in waited)
    if told == 1:
        assert at_once >= 4  # the others go on
        assert max(waited) >= 0.4
    else:
        assert at_once == 0 or (at_once == 1 and min(waited) < 0.1)  # one may have been at the door already
        assert sum(wait >= 0.39 for wait in waited) >= 7


def test_an_endpoint_that_asks_for_too_long_a_wait_ends_the_run():
    with serving(lambda _: refused(429, "slow", retry_after="3600")) as server:
        with pytest.raises(EndpointStopped, match="longest_wait: .* asks to wait for 3600 s"):
            run_jobs(endpoint(server.url), asking("a"), ledger=Ledger())
        assert len(server.requests) == 1


def test_retry_after_is_read_in_all_its_forms():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert asked_to_wait("7") == 7.0
    assert asked_to_wait("-3") == 0.0
    assert asked_to_wait(format_datetime(now + timedelta(seconds=9), usegmt=True), now=now) == 9.0
    assert asked_to_wait(format_datetime(now - timedelta(seconds=9), usegmt=True), now=now) == 0.0
    assert [asked_to_wait(odd) for odd in (None, "", "soon", "nan")] == [None] * 4


def test_waits_double_up_to_the_longest_with_full_jitter():
    chance = Random(0)
    for retry, top in ((1, 1.0), (2, 2.0), (3, 4.0), (9, 5.0), (1000, 5.0)):
        waits = [jittered(retry, backoff=1.0, longest=5.0, chance=chance) for _ in range(500)]
        assert 0.0 <= min(waits) < 0.05 * top
        assert 0.95 * top < max(waits) <= top


def test_calls_start_no_faster_than_allowed():
    async def turns() -> float:
        pace = Pace(3000.0)  # 50 a second, and as many at once
        began = time.monotonic()
        await asyncio.gather(*(pace.turn() for _ in range(65)))
        return time.monotonic() - began

    assert 0.29 <= asyncio.run(turns()) < 1.0


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        (400, "takes what is sent"),
        (401, "check the key in the environment variable TEST_KEY"),
        (403, "may use 'm' there"),
        (404, "check base_url"),
        (422, "check base_url and the settings"),
    ],
)
def test_what_will_not_pass_ends_the_run_at_once(status, fix):
    with serving(lambda _: refused(status, f"no, {KEY} is no good")) as server:
        with pytest.raises(EndpointStopped) as caught:
            run_jobs(endpoint(server.url, concurrency=2), asking(*"abcdefgh"), ledger=Ledger())
        assert len(server.requests) <= 2
        words = str(caught.value)
        assert words.startswith(f"base_url: {server.url} refused a call (HTTP {status}: no, *** is no good)")
    assert fix in words
    assert "\n" not in words


def test_no_credit_is_not_waited_for():
    with serving(lambda _: refused(429, "quota", "insufficient_quota")) as server:
        with pytest.raises(EndpointStopped, match="top up"):
            run_jobs(endpoint(server.url), asking("a"), ledger=Ledger())
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        refused(400, "unsafe", "content_policy_violation"),
        refused(400, "too long", "context_length_exceeded"),
        refused(400, "This model's maximum context length is 4096 tokens, and 5000 were asked for."),
        as_json(
            {"choices": [{"finish_reason": "stop", "message": {"content": None, "refusal": "I will not"}}]}
        ),
    ],
)
def test_a_filter_refuses_one_prompt_and_the_others_go_on(refusal):
    def script(request: Request) -> Act:
        return refusal if request.texts[-1] == "b" else echo(request)

    with serving(script) as server:
        first, second, third = run_jobs(endpoint(server.url), asking(*"abc"), ledger=Ledger())
        assert len(server.requests) == 3
    assert (first, third) == ("re: a", "re: c")
    assert isinstance(second, CallFailed)
    assert second.refused


def test_a_call_that_never_succeeds_fails_alone():
    def script(request: Request) -> Act:
        return refused(500, "oops") if request.texts[-1] == "b" else echo(request)

    with serving(script) as server:
        results = run_jobs(endpoint(server.url, retries=3), asking(*"abc"), ledger=Ledger())
        assert len(server.requests) == 6
    assert isinstance(results[1], CallFailed)
    assert str(results[1]) == "no answer in 4 attempts; the last: HTTP 500: oops"


def test_an_endpoint_that_is_gone_ends_the_run():
    with serving(echo) as server:
        url = server.url
    began = time.monotonic()
    with pytest.raises(EndpointStopped, match="10 jobs in a row.*see whether it runs"):
        run_jobs(endpoint(url, retries=2, concurrency=4), asking(*map(str, range(500))), ledger=Ledger())
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("prompt", [9, 30])  # as estimated, and three times as much
def test_the_cost_stays_below_its_limit_and_finished_work_is_kept(prompt):
    price = (prompt + 100) / 1000

    def script(request: Request) -> Act:
        return said(request.texts[-1], prompt=prompt, completion=10, delay=0.005)

    texts = [str(number) for number in range(60)]
    ledger = Ledger()
    with serving(script) as server:
        chosen = endpoint(
            server.url, concurrency=8, max_cost=2.0, price_in=1000.0, price_out=10000.0, max_tokens=10
        )
        results = run_jobs(chosen, asking(*texts), ledger=ledger)
        billed = price * len(server.requests)
    assert billed == pytest.approx(ledger.cost)
    assert 2.0 - price < billed <= 2.0  # goes on as long as one more call fits
    done = [number for number, result in enumerate(results) if isinstance(result, str)]
    assert [results[number] for number in done] == [texts[number] for number in done]
    assert len(done) == len(server.requests)
    assert sum(isinstance(result, CostReached) for result in results) == 60 - len(done)
    assert str(results[-1]).startswith(
        f"max_cost: {billed:.6g} of 2 is spent, and the next call may cost 0.1"
    )


def test_tokens_that_are_not_reported_are_estimated():
    ledger = Ledger()
    with serving(lambda _: said("four", usage=False)) as server:
        run_jobs(endpoint(server.url, price_in=1.0, price_out=1.0), asking("x" * 30), ledger=ledger)
    assert (ledger.prompt_tokens, ledger.completion_tokens, ledger.estimated) == (18, 2, 1)


def test_the_key_shows_nowhere(caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    scripts = [
        lambda _: refused(401, f"bad key {KEY}"),
        lambda _: refused(500, f"bad key {KEY}"),
        lambda _: Act(body=f"<p>{KEY}".encode(), headers={"content-type": "text/html"}),
        *(lambda _, n=n: refused(500, f"{'.' * n} bad key {KEY}") for n in (150, 160, 170, 180)),
        *(
            lambda _, n=n: Act(body=f"{'.' * n} {KEY}".encode(), headers={"content-type": "text/html"})
            for n in (80, 90, 100, 110, 150, 160)
        ),
        lambda _: Act(cut=True, body=KEY.encode(), headers={"content-type": "application/json"}),
    ]
    for script in scripts:
        with serving(script) as server:
            chosen = endpoint(server.url, retries=1)
            shown += [repr(chosen), chosen.model_dump_json(), str(chosen.what_matters())]
            try:
                results = run_jobs(chosen, asking("x"), ledger=Ledger())
            except UserError as error:
                results = [error]
        for error in results:
            assert isinstance(error, Exception)
            assert error.__context__ is None
            shown += [repr(error), *traceback.format_exception(error)]
    shown += [record.getMessage() for record in caplog.records]
    assert len(shown) > 20
    assert not [text for text in shown if KEY in text or KEY[3:15] in text]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_url": f"http://me:{KEY}@host/v1"}, "should hold no user, password"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "should hold no user, password"),
        ({"base_url": f"{KEY}"}, "should be an address"),
        ({"base_url": f"http://host:{KEY}"}, "should be an address"),
        ({"key_env": KEY}, "NAME of an environment variable"),
        ({"max_cost": 1.0}, "max_cost needs price_in and price_out"),
        ({"extra_body": {"seed": 1}}, "should not hold seed"),
    ],
)
def test_settings_that_do_not_fit_are_refused_without_being_repeated(settings, words):
    with pytest.raises(ValidationError) as caught:
        ChatEndpoint(**settings)
    told = [entry["msg"] for entry in caught.value.errors()]
    assert words in told[0]
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_one_clear_message(value, monkeypatch):
    if value is None:
        monkeypatch.delenv("TEST_KEY")
    else:
        monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(UserError, match="key_env: the environment variable TEST_KEY") as caught:
        run_jobs(endpoint("http://127.0.0.1:9/v1"), asking("x"), ledger=Ledger())
    assert not value or not value.strip() or value not in str(caught.value)


def test_an_endpoint_without_keys_is_asked_without_one(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(echo) as server:
        run_jobs(endpoint(server.url, key_env=None), asking("x"), ledger=Ledger())
        assert KEY not in str(server.requests[0].headers)


def test_a_picture_that_pillow_will_not_read_fails_alone(tmp_path, monkeypatch):
    file = tmp_path / "x.png"
    Image.new("RGB", (40, 40)).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)

    async def job(caller: Caller) -> str:
        return (await caller.chat([Message("user", "x", (PictureFile(file),))], model="m", seed=None)).text

    with serving(echo) as server:
        failed, other = run_jobs(endpoint(server.url), [job, *asking("b")], ledger=Ledger())
        assert len(server.requests) == 1
    assert isinstance(failed, CallFailed) and "a picture cannot be read" in str(failed)
    assert other == "re: b"


def test_pictures_are_scaled_down_and_estimated(tmp_path):
    import io

    image = Image.effect_noise((300, 100), 80.0).convert("RGB")
    same = Image.open(io.BytesIO(encoded(image, format="png", longest_side=300)))
    assert same.tobytes() == image.tobytes()
    small = Image.open(io.BytesIO(encoded(image, format="jpeg", longest_side=150)))
    assert (small.format, small.size) == ("JPEG", (150, 50))
    image.save(tmp_path / "x.png")
    for picture in (image, PictureFile(tmp_path / "x.png")):
        tokens = estimate_tokens([Message("user", "x" * 12, (picture,))], longest_side=2048)
        assert (tokens.least, tokens.most) == (3 + 85, 4 + 85 + 170 + 8)
    large = estimate_tokens([Message("user", "", (Image.new("RGB", (4096, 4096)),))], longest_side=2048)
    assert large.most == 85 + 4 * 170 + 8
