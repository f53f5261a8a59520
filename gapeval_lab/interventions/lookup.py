"""Where a fact's subject stands in a prompt, counted in tokens.

Works on the prompt as the model really gets it: the rendered text with its template, and the
character span of each token. Never tokenises a piece of it again, since tokens may merge across
the subject's borders. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Encoded

FactToken = Literal["subject_last", "subject_first", "last"]
"""Last or first token of the subject, or the last token of the prompt (before any target)."""


def token_positions(
    encoded: Encoded, subjects: Sequence[str], *, token: FactToken, facts: Sequence[str]
) -> list[int]:
    """The column of the wanted token in each row, padding counted.

    The subject is looked for in the question only, never in the target. Of several occurrences the
    last one counts, whole words before parts of words ("Zor" in "Is Zor zorry?" is the name). A
    token belongs to the subject if it shares a character with it.

    Args:
        encoded: the prompts.
        subjects: the words to find, one per row.
        token: which token.
        facts: a fact id per row, for messages.

    Raises:
        UserError: a subject does not stand in its prompt.
    """
    positions = []
    for row, (subject, fact) in enumerate(zip(subjects, facts, strict=True)):
        text, spans = encoded.texts[row], encoded.offsets[row]
        labels = (encoded.labels[row] != -100).nonzero().flatten().tolist()
        if token == "last":
            positions.append((labels[0] if labels else len(spans)) - 1)
            continue
        # A special token that ends the target has an empty span.
        starts = [spans[column][0] for column in labels if spans[column][1] > spans[column][0]]
        start, end = last_occurrence(text, subject.strip(), min(starts, default=len(text)))
        inside = [
            column
            for column, (left, right) in enumerate(spans)
            if left < end and right > start and column not in labels
        ]
        if start < 0 or not inside:
            raise UserError(
                f"facts: fact '{fact}': subject '{subject}' does not stand in its prompt '{text}'; "
                "write it there letter for letter, or use fact_token=last"
            )
        positions.append(inside[-1] if token == "subject_last" else inside[0])
    return positions


def last_occurrence(text: str, subject: str, before: int) -> tuple[int, int]:
    """(start, end) of the last occurrence that ends at or before a character, or (-1, -1)."""
    if not subject:
        return -1, -1
    words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text[:before]))
    if words:
        return words[-1].span()
    start = text.rfind(subject, 0, before)
    return (start, start + len(subject)) if start >= 0 else (-1, -1)
