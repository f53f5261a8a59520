"""A UMM behind an OpenAI-style endpoint: answers by chat completions, drawings by the images endpoint."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from gapeval_lab.endpoint import CallFailed, CostReached, EndpointStopped, Ledger
from gapeval_lab.endpoint_client import Caller, Job, run_jobs
from gapeval_lab.endpoint_pictures import Message
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Backbone
from gapeval_lab.items import Direction, Example, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from gapeval_lab.models.openai_chat import OpenAIChat

T = TypeVar("T")

SEEDS = 2**31
"""Endpoints take seeds of 32 bits at least; a prompt's 63 bits are folded into 31."""

Asked = tuple[Direction, str, int]


class PromptNotAnswered(RuntimeError):
    """One prompt of a list got no answer."""


class LoadedOpenAI:
    """See `OpenAIChat`.

    A list in which one prompt fails raises. What the others gave is kept until they are asked again, one
    by one or together, and then handed out, so that a failure costs no second call for its neighbours.
    Where the endpoint stops, or the limit of cost is reached, the error itself holds what is finished.
    """

    def __init__(self, chosen: OpenAIChat) -> None:
        """`chosen` are the settings."""
        self._chosen = chosen
        parts = [model for model in (chosen.chat_model, chosen.image_model) if model is not None]
        self.name = chosen.name or "+".join(dict.fromkeys(parts))
        has = {Direction.UNDERSTANDING: chosen.chat_model, Direction.GENERATION: chosen.image_model}
        self.directions = frozenset(direction for direction, model in has.items() if model is not None)
        self.ledger = Ledger()
        self._kept: dict[Asked, Any] = {}

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        """One text per prompt.

        Raises:
            PromptNotAnswered: one of them failed.
            UserError: the endpoint cannot be used, the limit of cost is reached, or there is no chat model.
        """
        model = self._chosen.chat_model
        if model is None:
            raise UserError(f"chat_model: {self.name} answers nothing; name a model that does")
        chosen = self._chosen

        def job(prompt: Prompt, seed: int) -> Job[str]:
            async def asked(caller: Caller) -> str:
                system = [] if chosen.system is None else [Message("system", chosen.system)]
                messages = [*system, Message("user", prompt.text, prompt.pictures)]
                sent = seed % SEEDS if chosen.send_seed else None
                return (await caller.chat(messages, model=model, seed=sent)).text

            return asked

        return self._asked(Direction.UNDERSTANDING, prompts, seeds, job)

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Image.Image]:
        """One RGB picture per prompt; a prompt's pictures are edited.

        Raises:
            PromptNotAnswered: one of them failed.
            UserError: the endpoint cannot be used, the limit of cost is reached, or there is no image model.
        """
        chosen = self._chosen
        model = chosen.image_model
        if model is None:
            raise UserError(f"image_model: {self.name} draws nothing; name a model that does")

        def job(prompt: Prompt, seed: int) -> Job[Image.Image]:
            fields: dict[str, Any] = {"model": model, "n": 1}
            if chosen.image_size is not None:
                fields["size"] = chosen.image_size
            if chosen.image_quality is not None:
                fields["quality"] = chosen.image_quality
            if chosen.ask_base64:
                fields["response_format"] = "b64_json"
            if chosen.send_image_seed:
                fields["extra_body"] = {"seed": seed % SEEDS}

            async def asked(caller: Caller) -> Image.Image:
                price = chosen.price_picture or 0.0
                data = await caller.picture(
                    prompt.text, prompt.pictures, price=price, about=model, fields=fields
                )
                try:
                    with Image.open(io.BytesIO(data)) as image:
                        return image.convert("RGB")
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                    # Leaves the `except` first: a call that failed has no context.
                    words = f"a drawing that is no picture ({type(error).__name__})"
                raise CallFailed(words, refused=True)

            return asked

        return self._asked(Direction.GENERATION, prompts, seeds, job)

    def _asked(
        self,
        direction: Direction,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        job: Callable[[Prompt, int], Job[T]],
    ) -> list[T]:
        """What was kept, and what is asked now; all of it or an error."""
        keys: list[Asked] = [
            (direction, prompt.digest, seed) for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        missing = {
            key: job(prompt, seed)
            for key, prompt, seed in zip(keys, prompts, seeds, strict=True)
            if key not in self._kept
        }
        try:
            results = run_jobs(self._chosen, list(missing.values()), ledger=self.ledger)
        except EndpointStopped as stopped:
            names = list(missing)
            self._kept.update((names[n], done) for n, done in stopped.finished.items())
            self._hand_out(stopped, keys)
            raise
        self._kept.update(zip(missing, results, strict=True))
        given = [self._kept[key] for key in keys]
        for result in given:
            if isinstance(result, CostReached):
                self._hand_out(result, keys)
                raise result
        failed = [result for result in given if isinstance(result, CallFailed)]
        if not failed or len(keys) == 1:
            self._forget(keys)
        if failed:
            raise PromptNotAnswered(f"{len(failed)} of {len(keys)} prompts; the first: {failed[0]}")
        return given

    def _hand_out(self, stopped: EndpointStopped, keys: Sequence[Asked]) -> None:
        """Put into the error what is finished of this list."""
        stopped.finished = {
            n: self._kept[key]
            for n, key in enumerate(keys)
            if key in self._kept and not isinstance(self._kept[key], CallFailed | CostReached)
        }
        self._forget(keys)

    def _forget(self, keys: Sequence[Asked]) -> None:
        for key in keys:
            self._kept.pop(key, None)

    def loss(self, examples: Sequence[Example], direction: Direction) -> Tensor:
        """Not to be had.

        Raises:
            UserError: always.
        """
        raise UserError(f"model: {self.name} is behind an endpoint, which tells no likelihoods; take another")

    def backbone(self) -> Backbone:
        """Not to be had.

        Raises:
            UserError: always.
        """
        raise UserError(f"model: the weights of {self.name} are behind an endpoint; take another model")

    def settings(self) -> dict[str, Any]:
        """What answers depend on: not the pace, the key or the prices."""
        return {"model": "openai", **self._chosen.what_matters(exclude={"name", "price_picture"})}

    def identity(self) -> str:
        """What stands for the weights' fingerprint: where it is, which models, and how they are asked."""
        text = json.dumps(self.settings(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
