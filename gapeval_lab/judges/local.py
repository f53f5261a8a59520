"""A judge on this machine: any model that answers about pictures, asked what the judge behind an endpoint is.

The model is a plug-in of its own and is built by name; nothing leaves the machine. Verdicts are kept on
disk as those of the judge behind an endpoint are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gapeval_lab import registry
from gapeval_lab.endpoint_pictures import Message
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM, Weightless
from gapeval_lab.items import Direction, Item, Prompt, Response, Verdict
from gapeval_lab.judges.conversation import (
    UNREADABLE,
    Judged,
    Protocol,
    Question,
    conversation,
    questions_of,
    together,
)
from gapeval_lab.judges.gapeval_routes import route_of
from gapeval_lab.judges.prompt_files import PromptDir, digest_of_all
from gapeval_lab.judges.verdict_cache import VerdictCache
from gapeval_lab.nested import ModelNode

CHUNK = 96
"""Conversations that go on side by side; changes memory, not verdicts."""


class LocalJudge(BaseModel):
    """Asks a model plug-in on this machine.

    Attributes:
        model: a node as in a recipe, such as {use: janus, weights: ...} or {config: qwen2_5_vl_7b}.
        prompt_dir, protocol, parse_retries: as of the judge behind an endpoint.
        seed: of the answers.
        cache: where verdicts are kept; null: in the folder of runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelNode
    prompt_dir: PromptDir | None = None
    protocol: Protocol = "same"
    parse_retries: int = Field(default=2, ge=0, le=10)
    seed: int = Field(default=0, ge=0)
    cache: Path | None = None

    def __call__(self, pairs: Sequence[tuple[Item, Response]]) -> list[Verdict]:
        """One verdict per pair, in order, the same whatever the batch.

        Raises:
            UserError: the model cannot be loaded or does not answer in text, or a template does not fit.
        """
        verdicts: dict[int, Verdict] = {}
        groups: dict[int, Sequence[Question]] = {}
        said: dict[int, dict[int, Verdict]] = {}
        waiting: dict[str, list[tuple[int, int, Verdict, Question]]] = {}
        for place, (item, response) in enumerate(pairs):
            asked = questions_of(item, response, prompt_dir=self.prompt_dir, protocol=self.protocol)
            if isinstance(asked, Verdict):
                verdicts[place] = asked
                continue
            groups[place], said[place] = asked, {}
            blank = Verdict(item.id, response.direction, None)
            for number, question in enumerate(asked):
                key = self._key(question)
                row = None if key in waiting else self._kept.get(key)
                if row is None:
                    waiting.setdefault(key, []).append((place, number, blank, question))
                else:
                    said[place][number] = replace(blank, correct=row["correct"], reason=row["reason"])
        keys = list(waiting)
        for start in range(0, len(keys), CHUNK):
            part = keys[start : start + CHUNK]
            ends = self._judge([waiting[key][0][3] for key in part])
            for key, judged in zip(part, ends, strict=True):
                if isinstance(judged, Judged) and judged.found is not None:
                    self._kept.put(key, judged.row)
                for place, number, blank, _ in waiting[key]:
                    said[place][number] = _verdict(blank, judged)
        for place, questions in groups.items():
            verdicts[place] = together(questions, [said[place][number] for number in range(len(questions))])
        return [verdicts[place] for place in range(len(pairs))]

    def check(self, items: Sequence[Item]) -> None:
        """Refuse items that no template fits; the model is loaded when there is something to judge.

        Raises:
            UserError: an item's category is not known.
        """
        for item in items:
            route_of(item)

    def settings(self) -> dict[str, Any]:
        """What verdicts depend on, the model's weights among it: loads the model.

        Raises:
            UserError: the model cannot be loaded, or does not answer in text.
        """
        return {**self._what_matters, "templates": digest_of_all(self.prompt_dir)}

    @cached_property
    def _what_matters(self) -> dict[str, Any]:
        from gapeval_lab.delta import fingerprint

        umm = self._umm
        weights = umm.identity() if isinstance(umm, Weightless) else fingerprint(umm.backbone().root)
        own = self.model_dump(mode="json", exclude={"model", "prompt_dir", "cache"})
        return {"judge": "local", "version": 1, "model": umm.settings(), "weights": weights, **own}

    @cached_property
    def _kept(self) -> VerdictCache:
        return VerdictCache(self.cache)

    def _key(self, question: Question) -> str:
        parts = [self._what_matters, question.digest]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _umm(self) -> UMM:
        umm: UMM = registry.build("models", self.model.use, settings=self.model.settings).load()
        if Direction.UNDERSTANDING not in umm.directions:
            raise UserError(f"model: {umm.name} does not answer in text; a judge has to")
        return umm

    def _judge(self, questions: Sequence[Question]) -> list[Judged | str]:
        """How each conversation ended, or what the model failed with. All take their turns together."""
        ends: dict[int, Judged | str] = {}
        live: dict[int, Generator[list[Message], str, Judged]] = {}
        sent: dict[int, list[Message]] = {}
        for index, question in enumerate(questions):
            live[index] = conversation(question, parse_retries=self.parse_retries)
            sent[index] = next(live[index])
        while sent:
            order = list(sent)
            prompts = [_prompt(sent[index]) for index in order]
            seeds = [self._seed(questions[index], len(sent[index])) for index in order]
            sent = {}
            for index, reply in zip(order, self._answers(prompts, seeds), strict=True):
                if isinstance(reply, Exception):
                    ends[index] = f"the judge failed: {type(reply).__name__}: {reply}"
                    continue
                try:
                    sent[index] = live[index].send(reply)
                except StopIteration as end:
                    ends[index] = end.value
        return [ends[index] for index in range(len(questions))]

    def _answers(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str | Exception]:
        """Together; where that fails, one by one, so that an error stays with its prompt."""
        try:
            return list(self._umm.answer(prompts, seeds=seeds))
        except UserError:
            raise
        except Exception as error:  # any model's any failure
            if len(prompts) == 1:
                return [error]
        return [
            answer
            for prompt, seed in zip(prompts, seeds, strict=True)
            for answer in self._answers([prompt], [seed])
        ]

    def _seed(self, question: Question, turn: int) -> int:
        digest = hashlib.sha256(f"{self.seed}|{question.digest}|{turn}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


def _prompt(messages: Sequence[Message]) -> Prompt:
    """A conversation as one prompt: a model on this machine is asked in single turns."""
    pictures = tuple(picture for message in messages for picture in message.pictures)
    heads = {"assistant": "Your reply was:\n", "system": "", "user": ""}
    return Prompt("\n\n".join(heads[m.role] + m.text.strip() for m in messages), pictures)


def _verdict(blank: Verdict, judged: Judged | str) -> Verdict:
    if isinstance(judged, str):
        return Verdict(blank.item_id, blank.direction, None, judged)
    if judged.found is None:
        words = f"{UNREADABLE}: {judged.replies[-1].strip()[:200]!r}"
        return Verdict(blank.item_id, blank.direction, None, words)
    return Verdict(blank.item_id, blank.direction, judged.found.correct, judged.found.reason)
