"""The judge behind an endpoint: a vision language model that is shown a response and what would be right.

Verdicts are kept on disk under a hash of everything that went in, so that nothing is asked twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from gapeval_lab.endpoint import CallFailed, ChatEndpoint, CostReached, Ledger
from gapeval_lab.endpoint_client import Caller
from gapeval_lab.endpoint_jobs import Job, run_jobs
from gapeval_lab.endpoint_pictures import estimate_tokens
from gapeval_lab.items import Item, Response, Verdict
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

SHORT_REPLY = 40
"""Tokens of a short verdict: the lower end of an estimate."""


@dataclass(frozen=True)
class Estimate:
    """What judging would take; nothing is asked for it.

    Attributes:
        pairs: responses.
        decided: of them, those that no judge has to see, such as errors.
        cached: questions about the others whose verdict is on disk.
        calls: what is left; repairs of unreadable replies and retries come on top.
        pictures: that are sent.
        prompt_tokens: from, to; roughly, since no tokenizer is asked.
        cost: from, to; the upper end takes every reply to be as long as it may. None without prices.
    """

    pairs: int
    decided: int
    cached: int
    calls: int
    pictures: int
    prompt_tokens: tuple[int, int]
    cost: tuple[float, float] | None


class LlmJudge(ChatEndpoint):
    """Asks a model behind an OpenAI-style endpoint, many responses at a time.

    Attributes:
        model: the judge, as the endpoint calls it.
        prompt_dir: a clone of GapEval's repository, to use the authors' prompts; null: ours.
        protocol: "same" asks about texts and pictures alike, once; "authors" asks about texts a second
            time, as published.
        parse_retries: further turns for a judge whose reply holds no verdict; then it is not scored.
        seed: sent with every call; endpoints need not honour it. null: none.
        cache: where verdicts are kept; null: in the folder of runs.
    """

    model: str = Field(min_length=1)
    prompt_dir: PromptDir | None = None
    protocol: Protocol = "same"
    parse_retries: int = Field(default=2, ge=0, le=10)
    seed: int | None = Field(default=0, ge=0, lt=2**31)
    cache: Path | None = None

    def __call__(self, pairs: Sequence[tuple[Item, Response]]) -> list[Verdict]:
        """One verdict per pair, in order. What was judged before is not asked again.

        Raises:
            UserError: the endpoint cannot be used, the cost limit is reached, or a template does not fit.
        """
        sorted_out = self._sort_out(pairs)
        waiting = sorted_out.waiting
        questions = [group[0] for group in waiting.values()]
        jobs = [self._job(question.question, key) for key, question in zip(waiting, questions, strict=True)]
        results = run_jobs(self, jobs, ledger=self.ledger)
        for group, result in zip(waiting.values(), results, strict=True):
            if isinstance(result, CostReached):
                raise result
            for asked in group:
                sorted_out.said[asked.place][asked.number] = asked.verdict(result)
        verdicts = sorted_out.verdicts | {
            place: together(questions, [sorted_out.said[place][number] for number in range(len(questions))])
            for place, questions in sorted_out.asked.items()
        }
        return [verdicts[place] for place in range(len(pairs))]

    def check(self, items: Sequence[Item]) -> None:
        """Refuse to begin without the key, or with items that no template fits.

        Raises:
            UserError: the environment variable holds no key, or an item's category is not known.
        """
        self.key()
        for item in items:
            route_of(item)

    def settings(self) -> dict[str, Any]:
        """What verdicts depend on: not the pace, the prices or where things lie."""
        return {
            "judge": "llm",
            "version": 1,
            **self._what_matters,
            "templates": digest_of_all(self.prompt_dir),
        }

    def estimate(self, pairs: Sequence[tuple[Item, Response]]) -> Estimate:
        """What judging these would take.

        Raises:
            UserError: a template does not fit.
        """
        sorted_out = self._sort_out(pairs)
        questions = [group[0].question for group in sorted_out.waiting.values()]
        least = most = calls = pictures = 0
        for question in questions:
            tokens = estimate_tokens(question.opening, longest_side=self.longest_side)
            turns = 2 if question.second else 1
            calls += turns
            least += tokens.least * turns
            most += tokens.most * turns + (self.max_tokens if question.second else 0)
            pictures += len(question.pictures) * turns
        cost = None
        if self.priced:
            cost = (self.cost(least, SHORT_REPLY * calls), self.cost(most, self.max_tokens * calls))
        return Estimate(
            pairs=len(pairs),
            decided=sorted_out.decided,
            cached=sorted_out.cached,
            calls=calls,
            pictures=pictures,
            prompt_tokens=(least, most),
            cost=cost,
        )

    @cached_property
    def ledger(self) -> Ledger:
        """What this judge has asked and spent so far."""
        return Ledger()

    @cached_property
    def _kept(self) -> VerdictCache:
        return VerdictCache(self.cache)

    @property
    def _what_matters(self) -> dict[str, Any]:
        return self.what_matters(exclude={"cache", "prompt_dir"})

    def _key(self, question: Question) -> str:
        parts = [self._what_matters, question.digest]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _sort_out(self, pairs: Sequence[tuple[Item, Response]]) -> _SortedOut:
        """Verdicts that stand already, and what is to be asked: equal questions once."""
        found = _SortedOut({}, {}, {}, {})
        for place, (item, response) in enumerate(pairs):
            asked = questions_of(item, response, prompt_dir=self.prompt_dir, protocol=self.protocol)
            if isinstance(asked, Verdict):
                found.verdicts[place] = asked
                found.decided += 1
                continue
            found.asked[place], found.said[place] = asked, {}
            for number, question in enumerate(asked):
                key = self._key(question)
                pending = _Pending(place, number, item.id, response, question)
                if key in found.waiting:
                    found.waiting[key].append(pending)
                    continue
                row = self._kept.get(key)
                if row is None:
                    found.waiting[key] = [pending]
                else:
                    found.cached += 1
                    found.said[place][number] = pending.verdict(row)
        return found

    def _job(self, question: Question, key: str) -> Job[Mapping[str, Any]]:
        async def job(caller: Caller) -> Mapping[str, Any]:
            turns = conversation(question, parse_retries=self.parse_retries)
            messages = next(turns)
            while True:
                reply = await caller.chat(messages, model=self.model, seed=self.seed)
                try:
                    messages = turns.send(reply.text)
                except StopIteration as end:
                    judged: Judged = end.value
                    break
            if judged.found is None:  # not kept: a later run asks again
                return {"correct": None, "reason": f"{UNREADABLE}: {judged.replies[-1].strip()[:200]!r}"}
            row = {**judged.row, "answered_by": reply.model}
            await asyncio.to_thread(self._kept.put, key, row)
            return row

        return job


@dataclass(frozen=True)
class _Pending:
    """A question that waits for its verdict: its pair's place in the list, and its own number there."""

    place: int
    number: int
    item_id: str
    response: Response
    question: Question

    def verdict(self, result: Mapping[str, Any] | CallFailed) -> Verdict:
        direction = self.response.direction
        if isinstance(result, CallFailed):
            return Verdict(self.item_id, direction, None, f"not judged: {result}")
        return Verdict(self.item_id, direction, result["correct"], result["reason"])


@dataclass
class _SortedOut:
    """Pairs by their place, sorted out before anything is asked.

    Attributes:
        verdicts: of pairs about which there is nothing to ask.
        asked: the questions about each of the others; said: verdicts on them so far, by number.
        waiting: key -> equal questions that are yet to be asked, once.
    """

    verdicts: dict[int, Verdict]
    asked: dict[int, Sequence[Question]]
    said: dict[int, dict[int, Verdict]]
    waiting: dict[str, list[_Pending]]
    decided: int = 0
    cached: int = 0
