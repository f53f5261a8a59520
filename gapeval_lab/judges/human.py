"""The judge that people are: labels from a file, by the majority of those who labelled an answer.

A label counts only for the very answer it was given to. What nobody labelled, and what as many called
right as wrong, is not scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gapeval_lab.items import Item, Response, Verdict
from gapeval_lab.labels import Label, answer_hash, label_csv, read_labels


class Human(BaseModel):
    """Imported labels.

    Attributes:
        file: a CSV file that `gapeval-lab labels import` wrote, or one with the same columns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(min_length=1)

    @cached_property
    def _labels(self) -> list[Label]:
        """Every label, read once: what is said and what is told of it in `settings` are the same.

        Raises:
            UserError: the file is not there, or has rows that are wrong.
        """
        return read_labels([Path(self.file).expanduser()])

    @cached_property
    def _said(self) -> dict[tuple[str, str, str], dict[str, bool]]:
        """(item, direction, answer) -> who -> whether it is right."""
        found: dict[tuple[str, str, str], dict[str, bool]] = {}
        for label in self._labels:
            found.setdefault((label.item, label.direction, label.answer), {})[label.who] = label.correct
        return found

    @cached_property
    def _asked(self) -> set[tuple[str, str]]:
        """The items and directions with any label."""
        return {(name, direction) for name, direction, _ in self._said}

    def __call__(self, pairs: Sequence[tuple[Item, Response]]) -> list[Verdict]:
        """One verdict per pair."""
        return [
            _majority(Verdict(item.id, response.direction, None), self._about(item, response))
            for item, response in pairs
        ]

    def votes(self, pairs: Sequence[tuple[Item, Response]]) -> dict[str, list[Verdict]]:
        """What each person said about each pair, None where nothing; people by name."""
        people = sorted({who for said in self._said.values() for who in said})
        about = [self._about(item, response) for item, response in pairs]
        return {
            who: [
                Verdict(
                    item.id, response.direction, said.get(who), f"labelled by {who}" if who in said else ""
                )
                for (item, response), said in zip(pairs, about, strict=True)
            ]
            for who in people
        }

    def decide(self, votes: Mapping[str, Sequence[Verdict]]) -> list[Verdict]:
        """The majority of each answer's labels."""
        return [
            _majority(cast[0], {who: one.correct for who, one in zip(votes, cast, strict=True)})
            for cast in zip(*votes.values(), strict=True)
        ]

    def settings(self) -> dict[str, Any]:
        """The labels' content."""
        text = label_csv(self._labels)
        return {"judge": "human", "version": 1, "labels": hashlib.sha256(text.encode()).hexdigest()}

    def _about(self, item: Item, response: Response) -> dict[str, bool]:
        # Pictures are read and hashed only where there is a label to compare with.
        if (item.id, response.direction) not in self._asked or response.error is not None:
            return {}
        answer = answer_hash(item, response)
        return {} if answer is None else self._said.get((item.id, response.direction, answer), {})


def _majority(blank: Verdict, said: Mapping[str, bool | None]) -> Verdict:
    """Of those who said something; None where they are as many on both sides, or nobody."""
    voted = {who: one for who, one in said.items() if one is not None}
    right = sum(voted.values())
    if not voted:
        return Verdict(blank.item_id, blank.direction, None, "nobody labelled this answer")
    words = f"right for {right} of {len(voted)}: {', '.join(sorted(voted))}"
    correct = None if 2 * right == len(voted) else 2 * right > len(voted)
    return Verdict(blank.item_id, blank.direction, correct, words)
