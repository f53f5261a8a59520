"""Judging a benchmark's worth of answers at an endpoint that takes its time, one by one and as we do it.

    python scripts/bench_judge.py --items 646 --seconds 1

Starts a server on this machine that takes so long for every call and fails one in ten, each time in another
way (429 with and without Retry-After, 500, 503, cut connections, answers that cannot be read). "One by one"
is the same judge with one call at a time and a server without failures, measured on `--measured` calls and
extrapolated; ours judges all items with the failures. Then all items are judged once more. Prints the times,
their ratio, the calls and the lost items.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

from gapeval_lab.items import Direction, Item, Prompt, Response
from gapeval_lab.judges.llm import LlmJudge

Failure = tuple[int, bytes, dict[str, str]]

ANSWER = json.dumps(
    {
        "model": "slow",
        "choices": [{"message": {"role": "assistant", "content": '{"reason": "as is", "score": 1}'}}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320},
    }
).encode()

FAILURES: tuple[Failure, ...] = (
    (429, b"{}", {}),
    (429, b"{}", {"retry-after": "1"}),
    (500, b"{}", {}),
    (503, b"", {}),
    (200, b'{"choices": [', {}),
    (200, b"<html>", {}),
    (0, b"", {}),  # the connection is cut
)


@contextmanager
def endpoint(seconds: float, fail_every: int | None) -> Iterator[tuple[str, list[int]]]:
    """Its address, and the status of every answer that it gave."""
    numbers, given = count(1), list[int]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            number = next(numbers)
            time.sleep(seconds)
            status, body, headers = 200, ANSWER, dict[str, str]()
            if fail_every and number % fail_every == 0:
                status, body, headers = FAILURES[number // fail_every % len(FAILURES)]
            given.append(status if body == ANSWER or status != 200 else -1)
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads, block_on_close, request_queue_size = True, False, 256

    server = Listener(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", given
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pairs(number: int) -> list[tuple[Item, Response]]:
    items = [Item(f"i{n}", "c", "s", Prompt(f"question {n}"), Prompt("draw"), ("x",)) for n in range(number)]
    return [(item, Response(item.id, Direction.UNDERSTANDING, text=f"answer to {item.id}")) for item in items]


def timed(judge: LlmJudge, asked: list[tuple[Item, Response]]) -> tuple[float, int]:
    """Seconds, and how many were not scored."""
    began = time.monotonic()
    verdicts = judge(asked)
    return time.monotonic() - began, sum(verdict.correct is None for verdict in verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=646)
    parser.add_argument("--seconds", type=float, default=1.0, help="that the endpoint takes for a call")
    parser.add_argument("--concurrency", type=int, default=LlmJudge.model_fields["concurrency"].default)
    parser.add_argument("--measured", type=int, default=20, help="calls made one by one")
    parser.add_argument("--fail-every", type=int, default=10)
    chosen = parser.parse_args()
    asked = pairs(chosen.items)
    with tempfile.TemporaryDirectory() as folder:
        with endpoint(chosen.seconds, None) as (url, given):
            one = LlmJudge(base_url=url, key_env=None, model="m", cache=Path(folder, "one"), concurrency=1)
            timed(one, asked[-1:])  # imports the client
            seconds, _ = timed(one, asked[: chosen.measured])
        each = seconds / chosen.measured
        alone = each * chosen.items
        print(
            f"one by one: {chosen.measured} calls in {seconds:.1f} s, {each:.3f} s each; extrapolated to "
            f"{chosen.items} items: {alone:.0f} s"
        )
        with endpoint(chosen.seconds, chosen.fail_every) as (url, given):
            ours = LlmJudge(
                base_url=url,
                key_env=None,
                model="m",
                cache=Path(folder, "ours"),
                concurrency=chosen.concurrency,
            )
            seconds, lost = timed(ours, asked)
            calls = len(given)
            failed = sum(status != 200 for status in given)
            print(
                f"ours, {chosen.concurrency} at a time: {seconds:.1f} s, {calls} calls, {failed} of them "
                f"made to fail ({failed / calls:.0%}), {ours.ledger.retried} tried again, {lost} items lost"
            )
            print(f"ratio: {alone / seconds:.1f}")
            again, lost = timed(ours, asked)
            print(f"second run: {again:.2f} s, {len(given) - calls} calls, {lost} items lost")


if __name__ == "__main__":
    main()
