"""Several judges as one: every one of them judges everything, and a rule makes one verdict of theirs.

A judge that does not score abstains. By rule:
    majority    what more of those who voted say; a tie is not scored;
    unanimous   what all say; not scored where they differ or one abstains;
    first       what the first in the list who does not abstain says.
Where all abstain nothing is scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from gapeval_lab import registry
from gapeval_lab.interfaces import Checked, Judge
from gapeval_lab.items import Item, Response, Verdict
from gapeval_lab.nested import JudgeNode

Rule = Literal["majority", "unanimous", "first"]
WORDS = {True: "right", False: "wrong", None: "abstains"}


class Panel(BaseModel):
    """A panel of judges.

    Attributes:
        judges: two or more, each a node as `judge` is in a recipe; order matters to the rule "first".
        rule: how their verdicts become one, see above.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    judges: tuple[JudgeNode, ...]
    rule: Rule = "majority"

    @field_validator("judges")
    @classmethod
    def _several(cls, judges: tuple[JudgeNode, ...]) -> tuple[JudgeNode, ...]:
        # Not a length of the field: pydantic does not count entries that are wrong themselves.
        if len(judges) < 2:
            raise ValueError(f"a panel has two judges or more, got {len(judges)}; add one")
        return judges

    @cached_property
    def members(self) -> dict[str, Judge]:
        """Name -> judge, in order; of two of one kind the second is called `name#2`."""
        found: dict[str, Judge] = {}
        for node in self.judges:
            same = sum(name.split("#")[0] == node.use for name in found)
            name = f"{node.use}#{same + 1}" if same else node.use
            found[name] = registry.build("judges", node.use, settings=node.settings)
        return found

    def __call__(self, pairs: Sequence[tuple[Item, Response]]) -> list[Verdict]:
        """One verdict per pair; its reason tells how each judge voted."""
        return self.decide(self.votes(pairs))

    def check(self, items: Sequence[Item]) -> None:
        """Every member's own check."""
        for judge in self.members.values():
            if isinstance(judge, Checked):
                judge.check(items)

    def votes(self, pairs: Sequence[tuple[Item, Response]]) -> dict[str, list[Verdict]]:
        """What each judge says about each pair."""
        return {name: list(judge(pairs)) for name, judge in self.members.items()}

    def decide(self, votes: Mapping[str, Sequence[Verdict]]) -> list[Verdict]:
        """The panel's verdicts, made of those that `votes` gave."""
        return [self._one(dict(zip(votes, cast, strict=True))) for cast in zip(*votes.values(), strict=True)]

    def estimate(self, pairs: Sequence[tuple[Item, Response]]) -> dict[str, Any]:
        """What judging would cost, of those members that can tell: name -> their own estimate."""
        return {
            name: judge.estimate(pairs) for name, judge in self.members.items() if hasattr(judge, "estimate")
        }

    def settings(self) -> dict[str, Any]:
        """What verdicts depend on: the rule, and all that the members' depend on."""
        members = [[name, judge.settings()] for name, judge in self.members.items()]
        return {"judge": "panel", "version": 1, "rule": self.rule, "members": members}

    def _one(self, cast: Mapping[str, Verdict]) -> Verdict:
        first = next(iter(cast.values()))
        said = [verdict.correct for verdict in cast.values()]
        reason = "; ".join(
            f"{name} {WORDS[one.correct]}" + (f" ({one.reason})" if one.reason else "")
            for name, one in cast.items()
        )
        return Verdict(first.item_id, first.direction, combined(said, self.rule), reason)


def combined(said: Sequence[bool | None], rule: Rule) -> bool | None:
    """One verdict out of several; None abstains."""
    voted = [one for one in said if one is not None]
    if not voted:
        return None
    if rule == "first":
        return voted[0]
    if rule == "unanimous":
        return voted[0] if len(voted) == len(said) and len(set(voted)) == 1 else None
    right = sum(voted)
    return None if 2 * right == len(voted) else 2 * right > len(voted)
