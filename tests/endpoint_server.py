"""A real HTTP server for tests of endpoints: it answers as it is told, and remembers what it was asked."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Act:
    """What to do with one request. `cut` closes the connection in the middle of the answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    trickle: float = 0.0  # seconds between the bytes of the answer


@dataclass(frozen=True)
class Request:
    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes
    at: float

    @property
    def texts(self) -> list[str]:
        """The text of every turn."""
        return [
            turn["content"] if isinstance(turn["content"], str) else turn["content"][0]["text"]
            for turn in self.body["messages"]
        ]

    @property
    def pictures(self) -> list[Image.Image]:
        """What is attached, all turns together, in order."""
        parts = [p for t in self.body["messages"] if isinstance(t["content"], list) for p in t["content"]]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


Script = Callable[[Request], Act]


def said(
    text: str | None, *, prompt: int = 100, completion: int = 10, usage: bool = True, **more: Any
) -> Act:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    answer: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "fake-1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }
    if usage:
        answer["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
    return as_json(answer, **more)


def as_json(answer: Any, **more: Any) -> Act:
    return Act(
        body=json.dumps(answer).encode(),
        headers={"content-type": "application/json", **more.pop("headers", {})},
        **more,
    )


def refused(status: int, message: str, code: str | None = None, **headers: str) -> Act:
    body = {"error": {"message": message, "type": "x", "code": code, "param": None}}
    return as_json(body, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})


GARBAGE = (
    Act(body=b"<html>busy</html>", headers={"content-type": "text/html"}),
    Act(body=b'{"choices": [', headers={"content-type": "application/json"}),
    as_json({"error": {"message": "upstream"}}),
    as_json({"choices": None}),
    as_json([1, 2]),
    Act(body=b"\xff\xfe{", headers={"content-type": "application/json"}),
)


class Server:
    """Runs in a thread; `script` decides, `requests` and `most` (at a time) are what it saw."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                server.handle(self, raw)

            def log_message(self, *_: Any) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads, block_on_close, request_queue_size = True, False, 256

            def handle_error(self, *_: Any) -> None:
                pass  # clients hang up on slow answers

        self._http = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def handle(self, handler: BaseHTTPRequestHandler, raw: bytes) -> None:
        is_json = handler.headers.get("content-type", "").startswith("application/json")
        body = json.loads(raw) if is_json else {}
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            request = Request(
                len(self.requests), handler.path, dict(handler.headers), body, raw, time.monotonic()
            )
            self.requests.append(request)
        counted = True

        def leave() -> None:
            nonlocal counted
            if counted:
                counted = False
                with self._lock:
                    self._now -= 1

        try:
            act = self.script(request)
            if act.delay:
                time.sleep(act.delay)
            leave()  # before the answer is out: the client may ask again at once
            self._send(handler, act)
        finally:
            leave()

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, act: Act) -> None:
        handler.send_response(act.status)
        for name, value in act.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(act.body) + act.cut))
        handler.end_headers()
        if act.trickle:
            for place in range(len(act.body)):
                handler.wfile.write(act.body[place : place + 1])
                time.sleep(act.trickle)
        else:
            handler.wfile.write(act.body)
        if act.cut:
            handler.close_connection = True
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5.0)


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    server = Server(script)
    try:
        yield server
    finally:
        server.close()


def sometimes(answer: Script, *, every: int, slow: float) -> Script:
    """`answer`, but every so-manyth request goes wrong, each time in another way."""
    ways = (
        refused(429, "slow down"),
        refused(429, "slow down", retry_after="0.01"),
        refused(500, "oops"),
        Act(cut=True, body=b'{"choi', headers={"content-type": "application/json"}),
        *GARBAGE,
        refused(503, "overloaded"),
        Act(delay=slow),
    )

    def script(request: Request) -> Act:
        number = request.number
        return ways[number // every % len(ways)] if number % every == every - 1 else answer(request)

    return script
