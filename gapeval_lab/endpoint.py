"""An OpenAI-style endpoint as settings: where it is, how fast it may be asked, what it costs.

Knows no HTTP, no models and no judges; `endpoint_jobs` does the asking. Light to import. The key comes
from the environment when it is needed, and is kept nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gapeval_lab.errors import UserError

MILLION = 1_000_000


class EndpointStopped(UserError):
    """The endpoint cannot be used any further: the run ends; what is finished was told already."""


class CostReached(EndpointStopped):
    """The next call might cost more than `max_cost` allows."""


class CallFailed(RuntimeError):
    """One call got no usable answer, in all its attempts; the others go on.

    Attributes:
        refused: the endpoint answered that it will not, as content filters do.
    """

    def __init__(self, words: str, *, refused: bool = False) -> None:
        """`words` say what happened, without the key."""
        super().__init__(words)
        self.refused = refused


@dataclass
class Ledger:
    """What was asked so far and what it cost.

    Attributes:
        answered: attempts that gave a usable answer.
        retried: attempts that were made again.
        prompt_tokens, completion_tokens: as the endpoint reports them; estimated where it does not.
        estimated: answers whose tokens were not reported.
        beyond: how far reported prompts exceeded our upper estimate, as a factor; later estimates of the
            cost of a call are multiplied by it.
        cost: in the currency of the prices. An attempt whose answer was lost on the way may be billed:
            it counts with its estimated prompt.
    """

    answered: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    beyond: float = 1.0
    cost: float = 0.0


class Endpoint(BaseModel):
    """How an OpenAI-style endpoint is reached and paced.

    Attributes:
        base_url: up to and with "/v1" where there is one; without user, password or query.
        key_env: the environment variable that holds the key; null for an endpoint that needs none.
        concurrency: calls under way at a time, at most.
        requests_per_minute: calls started per minute, at most; null: no limit.
        timeout: seconds that one call may take, its whole answer included.
        retries: further attempts after busy answers (408, 409, 429, 5xx), timeouts, cut connections and
            answers that cannot be read.
        backoff: seconds; the n-th retry waits a random time of up to `backoff` x 2^(n - 1).
        longest_wait: seconds; no wait is longer, and an endpoint that asks for more ends the run.
        price_in, price_out: of a million prompt and completion tokens.
        max_cost: the run ends before it costs more, counting from when the plug-in was built. A call is
            made only if it fits: its prompt as we estimate it, and an answer as long as it may be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str = "https://api.openai.com/v1"
    key_env: str | None = "OPENAI_API_KEY"
    concurrency: int = Field(default=64, ge=1, le=1024)
    requests_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    timeout: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    retries: int = Field(default=6, ge=0, le=100)
    backoff: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    longest_wait: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    price_in: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    price_out: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    # The two checks below never repeat what they refuse: it may hold a secret.
    @field_validator("base_url")
    @classmethod
    def _is_plain_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts, host = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("should be an address such as http://localhost:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(
                "should hold no user, password, query or fragment; put the key into the environment "
                "variable that key_env names"
            )
        return value.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _is_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", value):
            raise ValueError("should be the NAME of an environment variable, such as OPENAI_API_KEY")
        return value

    @model_validator(mode="after")
    def _has_prices(self) -> Self:
        if self.max_cost is not None and not self.priced:
            raise ValueError(f"max_cost needs {self.price_fields}; give them as the endpoint charges")
        return self

    @property
    def price_fields(self) -> str:
        """The settings that say what a call costs."""
        return "price_in and price_out"

    @property
    def priced(self) -> bool:
        """Whether the cost of a call can be told."""
        return self.price_in is not None and self.price_out is not None

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost; 0 without prices."""
        return (
            prompt_tokens * (self.price_in or 0.0) + completion_tokens * (self.price_out or 0.0)
        ) / MILLION

    def key(self) -> str:
        """The key, read anew; never keep or show it.

        Raises:
            UserError: the variable is not set, or holds something that cannot be sent.
        """
        if self.key_env is None:
            return "none"
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise UserError(
                f"key_env: the environment variable {self.key_env} is not set; export the key there, or set "
                "key_env to null for an endpoint that needs none"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UserError(
                f"key_env: the environment variable {self.key_env} holds no usable key (spaces, line breaks "
                "or letters beyond ASCII); export the key alone"
            )
        return key

    def what_matters(self, *, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The settings that answers may depend on: not the pace, the key, the prices or those excluded."""
        return self.model_dump(mode="json", exclude={*PACE, *exclude})


PACE = set(Endpoint.model_fields) - {"base_url"}
"""Settings that change how fast and how dearly answers come, and not what they are."""


class ChatEndpoint(Endpoint):
    """How chat completions are asked for, pictures included.

    Attributes:
        temperature: null sends none, for models that refuse it.
        max_tokens: of one answer.
        max_tokens_field: what the endpoint calls it; the newer name for reasoning models.
        extra_body: further fields of the request, as the endpoint wants them.
        picture_format: how pictures are sent; jpeg is smaller and loses detail.
        longest_side: pixels; larger pictures are scaled down before they are sent.
    """

    temperature: float | None = Field(default=0.0, ge=0, le=2)
    max_tokens: int = Field(default=1024, ge=1)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: dict[str, Any] = Field(default_factory=dict)
    picture_format: Literal["png", "jpeg"] = "png"
    longest_side: int = Field(default=2048, ge=16)

    @field_validator("extra_body")
    @classmethod
    def _leaves_ours_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = {
            "model",
            "messages",
            "temperature",
            "seed",
            "max_tokens",
            "max_completion_tokens",
            "stream",
            "n",
        }
        if taken := sorted(ours & value.keys()):
            raise ValueError(f"should not hold {', '.join(taken)}; there are settings for what can be chosen")
        return value
