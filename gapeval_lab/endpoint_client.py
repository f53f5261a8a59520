"""Calls an OpenAI-style endpoint, with retries, a pace and a purse. What is to be called is `endpoint_jobs`'.

The `openai` package is imported with the first caller, and its own retries are off: ours are counted, and
obey the pace. No error that leaves this module carries the key, or an object that holds it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from gapeval_lab.endpoint import (
    CallFailed,
    ChatEndpoint,
    CostReached,
    EndpointStopped,
    Ledger,
)
from gapeval_lab.endpoint_errors import Problem, Unreadable, problem_of
from gapeval_lab.endpoint_pace import Pace, jittered
from gapeval_lab.endpoint_pictures import Message, Tokens, data_url, encoded, estimate_tokens
from gapeval_lab.items import Picture

T = TypeVar("T")
log = logging.getLogger("gapeval_lab.endpoint")


@dataclass(frozen=True)
class Reply:
    """An answer in text; `model` is what the endpoint says answered."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int


@asynccontextmanager
async def lent_caller(endpoint: ChatEndpoint, ledger: Ledger) -> AsyncIterator[Caller]:
    """A `Caller` while the connections stand.

    Raises:
        UserError: there is no key, or the package is not installed.
    """
    key = endpoint.key()
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    # Without TLS no certificates are read, which takes longer than many a call; a redirect to TLS fails.
    plain = endpoint.base_url.startswith("http:")
    verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else True
    connections = DefaultAsyncHttpxClient(timeout=endpoint.timeout, verify=verify)
    async with AsyncOpenAI(
        api_key=key,
        base_url=endpoint.base_url,
        max_retries=0,
        timeout=endpoint.timeout,
        http_client=connections,
    ) as client:
        yield Caller(endpoint, client, ledger)


class Caller:
    """What a job calls; lives as long as one `run_jobs`."""

    def __init__(self, endpoint: ChatEndpoint, client: Any, ledger: Ledger) -> None:
        """`client` is an `openai.AsyncOpenAI`."""
        self._endpoint, self._client, self._ledger = endpoint, client, ledger
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._pace = Pace(endpoint.requests_per_minute)
        self._chance = random.Random()  # of waits alone; nothing that is measured depends on it
        self._reserved = 0.0
        self._settled = asyncio.Condition()

    async def chat(self, messages: Sequence[Message], *, model: str, seed: int | None) -> Reply:
        """One chat completion.

        Raises:
            CallFailed: no usable answer in all attempts, or a refusal of this one.
            EndpointStopped: see `run_jobs`; CostReached among them.
        """
        endpoint = self._endpoint
        estimate = estimate_tokens(messages, longest_side=endpoint.longest_side)
        body = {
            "model": model,
            "messages": await self._wire(messages),
            endpoint.max_tokens_field: endpoint.max_tokens,
            "extra_body": endpoint.extra_body,
        }
        if endpoint.temperature is not None:
            body["temperature"] = endpoint.temperature
        if seed is not None:
            body["seed"] = seed

        def read(answer: Any) -> Reply:
            reply = _read_chat(answer, estimate)
            ledger = self._ledger
            ledger.prompt_tokens += reply.prompt_tokens
            ledger.beyond = max(ledger.beyond, reply.prompt_tokens / estimate.most)
            ledger.completion_tokens += reply.completion_tokens
            ledger.estimated += getattr(answer, "usage", None) is None
            ledger.cost += endpoint.cost(reply.prompt_tokens, reply.completion_tokens)
            return reply

        return await self._attempts(
            lambda: self._client.chat.completions.create(**body),
            read,
            worst=lambda: endpoint.cost(estimate.most * self._ledger.beyond, endpoint.max_tokens),
            lost=endpoint.cost(estimate.least, 0),
            about=model,
        )

    async def _wire(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The conversation as it is sent; pictures are encoded in a thread."""
        endpoint = self._endpoint
        if not any(message.pictures for message in messages):
            return _wire(endpoint, messages)
        return await _aside(lambda: _wire(endpoint, messages))

    async def picture(
        self, prompt: str, pictures: Sequence[Picture], *, price: float, about: str, fields: dict[str, Any]
    ) -> bytes:
        """One drawing, or one edit where pictures are given: the bytes of an image file.

        Args:
            prompt: what to draw.
            pictures: what to edit.
            price: of one drawing.
            about: the model's name, for messages.
            fields: further fields of the request, the model among them.

        Raises:
            CallFailed, EndpointStopped: as `chat`.
        """

        def files() -> list[tuple[str, bytes, str]]:
            side = self._endpoint.longest_side
            return [
                (f"{n}.png", encoded(picture, format="png", longest_side=side), "image/png")
                for n, picture in enumerate(pictures)
            ]

        images = self._client.images
        body: dict[str, Any] = {"prompt": prompt, **fields}
        if pictures:
            sent = await _aside(files)
            body["image"] = sent if len(sent) > 1 else sent[0]

        def read(answer: Any) -> bytes:
            data = _read_picture(answer)
            self._ledger.cost += price
            return data

        return await self._attempts(
            lambda: (images.edit if pictures else images.generate)(**body),
            read,
            worst=lambda: price,
            lost=price,
            about=about,
        )

    async def _attempts(
        self,
        send: Callable[[], Awaitable[Any]],
        read: Callable[[Any], T],
        *,
        worst: Callable[[], float],
        lost: float,
        about: str,
    ) -> T:
        """Send until an answer can be read. `worst` is kept aside for it; `lost` is what a lost one costs."""
        endpoint, retry = self._endpoint, 0
        while True:
            problem: Problem
            async with self._slots:
                aside = await self._reserve(worst)
                try:
                    await self._pace.turn()
                    async with asyncio.timeout(endpoint.timeout):
                        answer = await send()
                    result = read(answer)
                except Exception as error:  # every kind is told apart by `problem_of`; unknown ones are ours
                    found = problem_of(error, endpoint, about)
                    if found is None:
                        raise
                    problem = found
                    self._ledger.cost += lost if problem.billed else 0.0
                else:
                    self._ledger.answered += 1
                    return result
                finally:
                    await self._release(aside)
            # Outside the `except`: what is raised here has no context, which would hold the request.
            if problem.stops is not None:
                raise problem.stops
            if not problem.again:
                raise CallFailed(problem.words, refused=True)
            retry += 1
            if retry > endpoint.retries:
                raise CallFailed(f"no answer in {retry} attempts; the last: {problem.words}")
            self._ledger.retried += 1
            await self._wait(retry, problem)

    async def _wait(self, retry: int, problem: Problem) -> None:
        endpoint = self._endpoint
        seconds = jittered(
            retry, backoff=endpoint.backoff, longest=endpoint.longest_wait, chance=self._chance
        )
        if problem.wait is not None:
            if problem.wait > endpoint.longest_wait:
                raise EndpointStopped(
                    f"longest_wait: {endpoint.base_url} asks to wait for {problem.wait:.0f} s, and "
                    f"{endpoint.longest_wait:g} s are allowed; run again later (what is finished is kept), "
                    "or raise longest_wait"
                )
            self._pace.told_to_wait(problem.wait)
            seconds += problem.wait
        log.info("retry %d of %d in %.2f s: %s", retry, endpoint.retries, seconds, problem.words)
        await asyncio.sleep(seconds)

    async def _reserve(self, worst: Callable[[], float]) -> float:
        """Wait until the next call fits, whatever those under way come to cost; what is set aside for it."""
        limit = self._endpoint.max_cost
        if limit is None:
            return 0.0
        async with self._settled:
            while self._ledger.cost + self._reserved + (amount := worst()) > limit:
                if self._reserved <= 0.0:
                    raise CostReached(
                        f"max_cost: {self._ledger.cost:.6g} of {limit:g} is spent, and the next call may "
                        f"cost {amount:.6g}; run again to go on (what is finished is kept), or raise max_cost"
                    )
                await self._settled.wait()
            self._reserved += amount
        return amount

    async def _release(self, amount: float) -> None:
        if self._endpoint.max_cost is None:
            return
        async with self._settled:
            self._reserved = max(0.0, self._reserved - amount)
            if self._reserved < 1e-12:
                self._reserved = 0.0
            self._settled.notify_all()


async def _aside(work: Callable[[], T]) -> T:
    """Encode pictures in a thread, so that others' answers need not wait."""
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        words = f"a picture cannot be read ({type(error).__name__}: {error})"
    raise CallFailed(words, refused=True)


def _wire(endpoint: ChatEndpoint, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation as it is sent: text first, then pictures in their order."""
    sent: list[dict[str, Any]] = []
    for message in messages:
        content: Any = message.text
        if message.pictures:
            urls = [
                data_url(picture, format=endpoint.picture_format, longest_side=endpoint.longest_side)
                for picture in message.pictures
            ]
            content = [
                {"type": "text", "text": message.text},
                *({"type": "image_url", "image_url": {"url": url}} for url in urls),
            ]
        sent.append({"role": message.role, "content": content})
    return sent


def _read_chat(answer: Any, estimate: Tokens) -> Reply:
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise Unreadable(_excerpt(answer))
    message = getattr(choices[0], "message", None)
    text = getattr(message, "content", None)
    refusal = getattr(message, "refusal", None)
    if not isinstance(text, str):
        if getattr(choices[0], "finish_reason", None) == "content_filter" or isinstance(refusal, str):
            raise CallFailed(f"refused: {refusal or 'content filter'}", refused=True)
        raise Unreadable(_excerpt(answer))
    usage = getattr(answer, "usage", None)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    defaults = (estimate.most, -(-len(text) // 3))
    prompt, completion = (
        count if isinstance(count, int) and count >= 0 else default
        for count, default in zip(counts, defaults, strict=True)
    )
    return Reply(text, str(getattr(answer, "model", "") or ""), prompt, completion)


def _read_picture(answer: Any) -> bytes:
    data = getattr(answer, "data", None)
    if not isinstance(data, list) or not data:
        raise Unreadable(_excerpt(answer))
    text = getattr(data[0], "b64_json", None)
    if not isinstance(text, str):
        raise Unreadable("no b64_json in the answer" if getattr(data[0], "url", None) else _excerpt(answer))
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Unreadable("b64_json that is no base64") from None


def _excerpt(answer: Any) -> str:
    """An answer of another form than expected, in words."""
    if not isinstance(answer, str):
        dumped = answer.model_dump(mode="json") if hasattr(answer, "model_dump") else answer
        answer = json.dumps(dumped, default=repr)
    return f"an answer of another form: {answer}"
