"""What went wrong with a call, in our words, and what to do about it: again, not this one, or stop.

The key is taken out of everything that the endpoint said.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from gapeval_lab.endpoint import CallFailed, Endpoint, EndpointStopped
from gapeval_lab.endpoint_pace import asked_to_wait

BUSY = frozenset({408, 409, 425, 429})
"""Answers beside 5xx after which the same call is worth another attempt."""

REFUSED = ("content_policy", "content_filter", "moderation", "safety", "context_length")
"""In the code of a 400: this prompt is refused, and others are not."""

TOO_LONG = "maximum context length"
"""In the words of a 400 without such a code, of servers that give none: likewise."""

SMALLER = "send smaller pictures (longest_side, picture_format: jpeg)"
"""What mends a 413."""

LONGEST = 200
"""Characters of a message about an attempt."""

SPENT = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of a 429 that no waiting mends."""


class Unreadable(Exception):
    """An answer came, and is not what was asked for."""


@dataclass(frozen=True)
class Problem:
    """Why an attempt failed.

    Attributes:
        words: for people; without the key.
        again: another attempt may succeed.
        wait: seconds that the endpoint asked for.
        billed: an answer may have been made and lost.
        stops: the error that ends the run.
    """

    words: str
    again: bool = True
    wait: float | None = None
    billed: bool = False
    stops: EndpointStopped | None = None


def problem_of(error: Exception, endpoint: Endpoint, model: str) -> Problem | None:
    """What an exception of an attempt means; None for one that is a defect of ours."""
    import openai

    match error:
        case TimeoutError() | openai.APITimeoutError():
            return Problem(f"no whole answer within {endpoint.timeout:g} s", billed=True)
        case openai.APIStatusError():
            return _status(error, endpoint, model)
        case openai.APIConnectionError():
            cause = type(error.__cause__).__name__ if error.__cause__ else "connection lost"
            return Problem(
                f"connection failed ({cause})", billed=cause not in ("ConnectError", "ConnectTimeout")
            )
        case Unreadable():
            return Problem(short(str(error), endpoint), billed=True)
        case json.JSONDecodeError() | UnicodeDecodeError() | openai.APIResponseValidationError():
            return Problem("an answer that is no JSON", billed=True)
        case CallFailed():
            return Problem(short(str(error), endpoint), again=False, billed=True)
    return None


def _status(error: Any, endpoint: Endpoint, model: str) -> Problem:
    """An HTTP error: 4xx are told apart, everything else is worth another attempt."""
    status, code = int(error.status_code), str(error.code or "").lower()
    kind = f"{code} {str(error.type or '').lower()}"
    words = short(f"HTTP {status}: {_said(error)}", endpoint)
    if status == 400 and (any(word in kind for word in REFUSED) or TOO_LONG in _said(error)):
        return Problem(words, again=False)
    if status == 429 and any(word in kind for word in SPENT):
        return Problem(words, stops=_stop(words, endpoint, "there is no credit left: top up the account"))
    if status in BUSY or status >= 500 or status < 400:
        wait = asked_to_wait(error.response.headers.get("retry-after"))
        return Problem(words, wait=wait)
    if status == 413:  # this one's pictures; others may be smaller
        return Problem(f"{words}; {SMALLER}", again=False)
    key = "the key" if endpoint.key_env is None else f"the key in the environment variable {endpoint.key_env}"
    fix = {
        400: f"see whether '{model}' takes what is sent (temperature, max_tokens_field, seed, pictures)",
        401: f"check {key}" if endpoint.key_env else "name the variable that holds the key in key_env",
        403: f"see whether {key} may use '{model}' there",
        404: f"check base_url (it often ends in /v1) and the model's name '{model}'",
    }.get(status, "check base_url and the settings that are sent")
    return Problem(words, stops=_stop(words, endpoint, fix))


def _stop(words: str, endpoint: Endpoint, fix: str) -> EndpointStopped:
    return EndpointStopped(f"base_url: {endpoint.base_url} refused a call ({words}); {fix}")


def _said(error: Any) -> str:
    """The endpoint's own words."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    told = body.get("message") if isinstance(body, dict) else body
    return told if isinstance(told, str) and told.strip() else "no further words"


def short(text: str, endpoint: Endpoint) -> str:
    """The text on one line, without the key, and then shortened: a cut key could not be found."""
    key = "" if endpoint.key_env is None else os.environ.get(endpoint.key_env, "").strip()
    line = " ".join(text.split())
    return (line.replace(key, "***") if key else line)[:LONGEST]
