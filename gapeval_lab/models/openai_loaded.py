"""A UMM behind an OpenAI-style endpoint: answers by chat completions, drawings by the images endpoint."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from gapeval_lab.endpoint import CallFailed, CostReached, Ledger
from gapeval_lab.endpoint_client import Caller
from gapeval_lab.endpoint_jobs import Arrived, Job, run_jobs
from gapeval_lab.endpoint_pictures import Message
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Asking, Backbone
from gapeval_lab.items import Direction, Example, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from gapeval_lab.models.openai_chat import OpenAIChat

T = TypeVar("T")

SEEDS = 2**31
"""Endpoints take seeds of 32 bits at least; a prompt's 63 bits are folded into 31."""


class PromptNotAnswered(RuntimeError):
    """One prompt of a list got no answer."""


class LoadedOpenAI:
    """See `OpenAIChat`.

    `answer` and `draw` are for those who want all or nothing: one prompt that fails makes them raise, and
    what the others gave is lost. `arriving` hands out each answer when it comes.
    """

    def __init__(self, chosen: OpenAIChat) -> None:
        """`chosen` are the settings."""
        self._chosen = chosen
        parts = [model for model in (chosen.chat_model, chosen.image_model) if model is not None]
        self.name = chosen.name or "+".join(dict.fromkeys(parts))
        has = {Direction.UNDERSTANDING: chosen.chat_model, Direction.GENERATION: chosen.image_model}
        self.directions = frozenset(direction for direction, model in has.items() if model is not None)
        self.ledger = Ledger()

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        """One text per prompt.

        Raises:
            PromptNotAnswered: one of them failed.
            UserError: the endpoint cannot be used, the limit of cost is reached, or there is no chat model.
        """
        return _whole(self._asked(self._answering, prompts, seeds=seeds))

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Image.Image]:
        """One RGB picture per prompt; a prompt's pictures are edited.

        Raises:
            PromptNotAnswered: one of them failed.
            UserError: the endpoint cannot be used, the limit of cost is reached, or there is no image model.
        """
        return _whole(self._asked(self._drawing, prompts, seeds=seeds))

    def arriving(self, direction: Direction) -> Asking:
        """Asks as `answer` and `draw` do; a prompt that fails is told like the others, by its error."""
        job = self._answering if direction is Direction.UNDERSTANDING else self._drawing
        return partial(self._asked, job)

    def _asked(
        self,
        job: Callable[[Prompt, int], Job[T]],
        prompts: Sequence[Prompt],
        *,
        seeds: Sequence[int],
        arrived: Arrived[T] | None = None,
    ) -> list[T | CallFailed]:
        jobs = [job(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        given: list[T | CallFailed] = []
        for result in run_jobs(self._chosen, jobs, ledger=self.ledger, arrived=arrived):
            if isinstance(result, CostReached):
                raise result
            given.append(result)
        return given

    def _answering(self, prompt: Prompt, seed: int) -> Job[str]:
        chosen, model = self._chosen, self._chosen.chat_model
        if model is None:
            raise UserError(f"chat_model: {self.name} answers nothing; name a model that does")

        async def asked(caller: Caller) -> str:
            system = [] if chosen.system is None else [Message("system", chosen.system)]
            messages = [*system, Message("user", prompt.text, prompt.pictures)]
            sent = seed % SEEDS if chosen.send_seed else None
            return (await caller.chat(messages, model=model, seed=sent)).text

        return asked

    def _drawing(self, prompt: Prompt, seed: int) -> Job[Image.Image]:
        chosen, model = self._chosen, self._chosen.image_model
        if model is None:
            raise UserError(f"image_model: {self.name} draws nothing; name a model that does")
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
            data = await caller.picture(prompt.text, prompt.pictures, price=price, about=model, fields=fields)
            try:
                with Image.open(io.BytesIO(data)) as image:
                    return image.convert("RGB")
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                # Leaves the `except` first: a call that failed has no context.
                words = f"a drawing that is no picture ({type(error).__name__})"
            raise CallFailed(words, refused=True)

        return asked

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


def _whole(given: Sequence[T | CallFailed]) -> list[T]:
    """The answers, of which none may be missing."""
    failed = [one for one in given if isinstance(one, CallFailed)]
    if failed:
        raise PromptNotAnswered(f"{len(failed)} of {len(given)} prompts; the first: {failed[0]}")
    return [one for one in given if not isinstance(one, CallFailed)]
