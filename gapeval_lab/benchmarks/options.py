"""The options of a multiple choice, found in the text of its question."""

from __future__ import annotations

import re

_MARK = re.compile(r"(?:(?<=\s)|^)\(?([A-Z])[.):](?=\s|$)\s*")


def options_in(text: str) -> tuple[str, ...]:
    """The texts of options that are marked "A. ...", "(A) ..." or "A: ...", in order; else nothing.

    Marks count only in sequence from A on, at least two of them; of several sequences the last one.
    """
    marks = list(_MARK.finditer(text))
    for start in range(len(marks) - 1, -1, -1):
        if marks[start][1] != "A":
            continue
        run = [marks[start]]
        for mark in marks[start + 1 :]:
            if mark[1] == chr(ord("A") + len(run)):
                run.append(mark)
        if len(run) > 1:
            ends = [mark.start() for mark in run[1:]] + [len(text)]
            last = text[run[-1].end() :].split("\n")[0]
            options = [text[mark.end() : end].strip() for mark, end in zip(run, ends, strict=True)]
            return (*options[:-1], last.strip())
    return ()
