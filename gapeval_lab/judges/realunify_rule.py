"""RealUnify's own rule, for judges that are language models: letters are read, pictures are questioned.

An item of that benchmark says in `target` how it is scored. An answer (GEU) is right by its option's letter,
which takes no judge; a picture (UEG) is right if every yes/no question about it gets the right answer. The
judge is not told which answer that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gapeval_lab.items import Direction, Item, Response, Verdict
from gapeval_lab.judges.gapeval_routes import Form
from gapeval_lab.judges.option import OptionLetter

YES_NO = Form("yes_no_image", "", {"question": "question"}, ("answer",), keys=("answer",))
"""How a question about a picture is put before a judge."""


@dataclass(frozen=True)
class YesNo:
    """A question about a picture, and its right answer: "yes" or "no"."""

    question: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.question} (should be {self.wanted})"


def follows(item: Item) -> bool:
    """Whether an item is judged by this rule."""
    return isinstance(item.target.get("realunify"), Mapping)


def asked_about(item: Item, response: Response) -> list[YesNo] | Verdict:
    """What a picture is to be asked, or the verdict where there is nothing to ask."""

    def unscored(reason: str) -> Verdict:
        return Verdict(item.id, response.direction, None, reason)

    target: Mapping[str, Any] = item.target["realunify"]
    if response.direction is Direction.UNDERSTANDING:
        if target.get("rule") != "option_letter":
            return unscored("this item is scored by its picture alone")
        (verdict,) = OptionLetter()([(item, response)])
        return verdict
    questions: Sequence[Mapping[str, str]] = target.get("questions", ())
    if not questions:
        return unscored("this item is scored by its answer alone")
    if response.error is not None:
        return unscored(f"no response: {response.error}")
    if response.picture is None:
        return unscored("no picture")
    return [YesNo(str(one["question"]), str(one["answer"])) for one in questions]
