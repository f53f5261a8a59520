"""Judge of multiple choices: reads the option's letter out of an answer. No model, no noise.

Any item with `choices` will do; its first accepted answer is the right option's letter or text. What an
answer says is its last plain statement ("the answer is B"), or else its leading letter, or else the only
letter in it. The article "A" is no letter. Pictures are not scored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from pydantic import BaseModel, ConfigDict

from gapeval_lab.items import Direction, Item, Response, Verdict

_LETTER = r"[\"'*_`$\\{\[(]*(?:text|boxed|mathbf)?[\"'*_`{\[(]*(?P<letter>[A-Za-z])(?![A-Za-z0-9'’]|-\w)"
_STATED = re.compile(
    r"\b(?:answers?|choices?|options?)\b[\s*_\"']*(?:\b(?:is|was|would\s+be|should\s+be|must\s+be)\b|[:=]|-)"
    r"[\s*_:\"']*(?:(?:the|option|choice|letter|answer)\b[\s:*_]*)*" + _LETTER,
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"\b(?:i|we)(?:'d|'ll|\s+would|\s+will|\s+must)?\s+(?:choose|pick|select|go\s+with)\s+"
    r"(?:(?:the|option|choice|letter|answer)\b\s*)*" + _LETTER,
    re.IGNORECASE,
)
_CORRECT = re.compile(
    r"(?:\boption\s+|\bchoice\s+|(?<![A-Za-z]))\(?(?P<letter>[A-Z])\)?\s+is\s+(?:the\s+)?"
    r"(?:correct|right|best|answer)\b"
)
_LEADING = re.compile(r"^\s*(?:(?:option|choice|answer)\s+)?" + _LETTER, re.IGNORECASE)
_BRACKETED = re.compile(r"[(\[](?P<letter>[A-Za-z])[)\]]")
_ALONE = re.compile(r"(?<![A-Za-z0-9'’.])(?P<letter>[A-Z])(?![A-Za-z0-9'’]|-\w)")
_HEDGED = re.compile(
    r"[)\]}*\"']*\s*(?:/|&|\band\b|\bor\b)\s*(?:option\s+)?[(\[*\"']*[A-Za-z](?![A-Za-z0-9'’])"
)
_DENIED = re.compile(
    r"\b(?:not|isn't|rather\s+than|neither|nor)\s+(?:option\s+)?\(?[A-Za-z]\b\)?", re.IGNORECASE
)


def option_letter(text: str, choices: Sequence[str]) -> str | None:
    """The option that an answer names, as "A", "B", ...; None where it names none, or several.

    Args:
        text: the answer.
        choices: the texts of the options, in order; an answer that is one of them names it, too.
    """
    text = _DENIED.sub(" ", text.strip())
    for pattern in (_STATED, _CHOSEN, _CORRECT):
        stated = [match for match in pattern.finditer(text) if _is_letter(match, text, choices)]
        if stated:
            return None if _HEDGED.match(text, stated[-1].end()) else stated[-1]["letter"].upper()
    leading = _LEADING.match(text)
    if leading and _HEDGED.match(text, leading.end()):
        return None
    if leading and _stands_apart(leading, text) and _is_letter(leading, text, choices):
        return leading["letter"].upper()
    said = _plain(text)
    same = [ascii_uppercase[n] for n, choice in enumerate(choices) if _plain(choice) == said and said]
    if same:
        return same[0] if len(same) == 1 else None
    bracketed = {match["letter"].upper() for match in _BRACKETED.finditer(text)}
    alone = {match["letter"] for match in _ALONE.finditer(text) if _is_letter(match, text, choices)}
    known = set(ascii_uppercase[: len(choices)])
    letters = bracketed & known or alone & known
    return letters.pop() if len(letters) == 1 else None


def right_letter(item: Item) -> str | None:
    """The letter of an item's right option; None where its accepted answer is no option."""
    return option_letter(item.reference_text, item.choices)


class OptionLetter(BaseModel):
    """Has no settings: a letter is right or wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __call__(self, pairs: Sequence[tuple[Item, Response]]) -> list[Verdict]:
        """One verdict per pair, in order."""
        return [self._one(item, response) for item, response in pairs]

    def settings(self) -> dict[str, Any]:
        """What verdicts depend on."""
        return {"judge": "option_letter", "version": 1}

    def _one(self, item: Item, response: Response) -> Verdict:
        def verdict(correct: bool | None, reason: str) -> Verdict:
            return Verdict(item.id, response.direction, correct, reason)

        if response.error is not None:
            return verdict(None, f"no response: {response.error}")
        if response.direction is not Direction.UNDERSTANDING:
            return verdict(None, "this judge looks at no pictures")
        if response.text is None:
            return verdict(None, "no text")
        if not item.choices:
            return verdict(None, "the item offers no choices")
        right = right_letter(item)
        if right is None:
            return verdict(None, f"the right answer {item.reference_text[:40]!r} is none of the options")
        given = option_letter(response.text, item.choices)
        return verdict(given == right, f"read as: {given or '(no option)'}, right is {right}")


def _stands_apart(match: re.Match[str], text: str) -> bool:
    """Whether a leading letter is marked as one: alone, or before a mark; "b looks ..." is prose."""
    after = text[match.end() :]
    return (
        not after.strip()
        or bool(re.match(r"\s*[.):,;\]}*\"'\n]|\s*-\s|\n", after))
        or match["letter"].isupper()
    )


def _is_letter(match: re.Match[str], text: str, choices: Sequence[str]) -> bool:
    """Whether a letter stands for an option: "a" and "A" before a word, and "I", may be words of prose."""
    letter, after = match["letter"], text[match.end() :]
    if letter.upper() not in ("A", "I") and (letter.isupper() or not re.match(r"\s+[a-z]", after)):
        return True
    if re.match(r"\s*(?:$|[.):,;\]}*\"\n-])", after) or _HEDGED.match(after):
        return True
    own = ascii_uppercase.index(letter.upper())
    named = _plain(choices[own]) if own < len(choices) else ""
    if letter.isupper() and named and _plain(after).startswith(named):  # "A red", where option A is "red"
        return True
    return letter == "A" and bool(re.match(r"\s+(?:is|was|because|since|as|seems|would)\b", after))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
