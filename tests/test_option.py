"""The judge of option letters: what is a letter, and what is prose."""

import pytest

from gapeval_lab import registry
from gapeval_lab.interfaces import Judge
from gapeval_lab.items import Direction, Item, Prompt, Response
from gapeval_lab.judges.option import OptionLetter, option_letter, right_letter

CHOICES = ("red", "dark green", "blue", "a small cross")

READ = {
    "B": "B",
    "b": "B",
    " B.\n": "B",
    "(b)": "B",
    "[B]": "B",
    "**B**": "B",
    "B)": "B",
    "B: dark green": "B",
    "B. dark green": "B",
    "b) dark green": "B",
    "B dark green": "B",
    "Option B": "B",
    "Answer: B.": "B",
    "answer: b": "B",
    "**Answer:** B": "B",
    "**Answer: (B)**": "B",
    "Answer - B": "B",
    "The answer is B) because of its size": "B",
    "The correct answer is option B.": "B",
    "The correct option is: B": "B",
    "The answer is \\boxed{B}": "B",
    "\\boxed{B}": "B",
    "$\\boxed{\\text{B}}$": "B",
    "I would choose B, since A is too dark.": "B",
    "A is tempting, but B is correct.": "B",
    "The answer is not A but B.": "B",
    "First I thought the answer is A. On reflection the answer is C.": "C",
    "Looking at the picture, it must be (D).": "D",
    "Looking at the picture, it must be D": "D",
    "Because a square has four sides, B fits.": "B",
    "A": "A",
    "a": "A",
    "A.": "A",
    "A. red": "A",
    "A red": "A",
    "(A) red": "A",
    "Answer: A": "A",
    "The answer is A": "A",
    "The answer is A because it is red": "A",
    "the answer is a.": "A",
    "A is correct": "A",
    "dark green": "B",
    "Dark green.": "B",
    "A small cross": "D",
    "E": "E",  # no option, and so wrong
    "The answer is E": "E",
    "A picture of a house.": None,
    "a red thing on a table": None,
    "Answer: A picture of a house": None,
    "The answer is a house": None,
    "I think it is a house": None,
    "I see a dog": None,
    "A or B": None,
    "B or C": None,
    "a and b": None,
    "The answer is B or C": None,
    "Answer: A/B": None,
    "The answer is B, and not C": "B",
    "B and nothing else": "B",
    "T-shirts of a B-side": None,
    "Either B or C": None,
    "Both (A) and (C) fit": None,
    "It isn't clear.": None,
    "Don't know": None,
    "": None,
    "Bananas and Dates": None,
    "X-ray of a C3PO": None,
}


@pytest.mark.parametrize("text", READ)
def test_what_an_answer_says(text: str) -> None:
    assert option_letter(text, CHOICES) == READ[text]


def item(accepted: str = "B", choices: tuple[str, ...] = CHOICES) -> Item:
    return Item("i", "c", "s", Prompt("tell"), Prompt("draw"), (accepted,), choices=choices)


def verdict(given: Item, text: str | None, **more: object) -> tuple[bool | None, str]:
    response = Response("i", Direction.UNDERSTANDING, text=text, **more)  # type: ignore[arg-type]
    (one,) = OptionLetter()([(given, response)])
    return one.correct, one.reason


@pytest.mark.parametrize("accepted", ["B", "(B)", "B. dark green", "dark green", "b"])
def test_verdicts(accepted: str) -> None:
    asked = item(accepted)
    assert right_letter(asked) == "B"
    assert verdict(asked, "It is (B).") == (True, "read as: B, right is B")
    assert verdict(asked, "Answer: C")[0] is False
    assert verdict(asked, "no idea") == (False, "read as: (no option), right is B")


def test_what_is_not_scored() -> None:
    assert verdict(item(), None)[0] is None
    assert verdict(item(), None, error="E: x") == (None, "no response: E: x")
    assert verdict(item(choices=()), "B")[0] is None
    assert verdict(item("something else"), "B")[0] is None
    (drawn,) = OptionLetter()([(item(), Response("i", Direction.GENERATION, text="B"))])
    assert drawn.correct is None and "no pictures" in drawn.reason


def test_it_is_a_judge() -> None:
    judge = registry.build("judges", "option_letter", settings={})
    assert isinstance(judge, Judge) and judge.settings() == {"judge": "option_letter", "version": 1}
    assert judge([]) == []
