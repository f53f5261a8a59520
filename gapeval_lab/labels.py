"""Labels that people gave: the file, what a label is bound to, and every check of its rows.

A row is one person's word on one answer. It holds for the content it was given to: `answer` is a hash of
the item, the direction and the text or the pixels, so that a label is never used for another answer.
Knows no judges and no runs.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gapeval_lab.errors import UserError
from gapeval_lab.items import Direction, Item, Response, image_digest

COLUMNS = ("item", "direction", "answer", "correct", "who", "when")
YES, NO, SKIPPED = ("yes", "y", "true", "1"), ("no", "n", "false", "0"), ("", "skip", "s")
MOST_SHOWN = 50  # mistakes that one message lists


@dataclass(frozen=True)
class Label:
    """One person's word on one answer; `answer` is from `answer_hash`, `when` is ISO 8601."""

    item: str
    direction: Direction
    answer: str
    correct: bool
    who: str
    when: str


def answer_hash(item: Item, response: Response) -> str | None:
    """What a label is bound to: item, direction and content; None where there is no content."""
    image = response.image
    if image is not None:
        content = f"picture:{image_digest(image.convert('RGB'))}"
    elif response.text is not None:
        content = f"text:{response.text}"
    else:
        return None
    whole = f"{item.digest}\x00{response.direction}\x00{content}"
    return hashlib.sha256(whole.encode()).hexdigest()[:24]


def read_labels(files: Sequence[Path], *, known: Mapping[str, Collection[str]] | None = None) -> list[Label]:
    """The labels of one or more files; rows without a word (empty or "skip") are left out.

    Args:
        files: CSV with at least `COLUMNS`; further columns are left alone.
        known: "item|direction" -> the answers that may be labelled; None takes all.

    Raises:
        UserError: a file cannot be read, or rows are wrong; every wrong row is named.
    """
    found: dict[tuple[str, str, str, str], tuple[Label, str]] = {}
    problems: list[str] = []
    for file in files:
        for number, row in _rows(file):
            place = f"{file} line {number}"
            label, wrong = _label(row, known)
            problems += [f"{place}: {words}" for words in wrong]
            if label is None:
                continue
            key = (label.item, label.direction, label.answer, label.who)
            if key in found and found[key][0].correct != label.correct:
                problems.append(
                    f"{place}: {label.who} said the opposite about this answer ({found[key][1]}); keep one"
                )
            found.setdefault(key, (label, place))
    if problems:
        more = [f"and {len(problems) - MOST_SHOWN} more"] if len(problems) > MOST_SHOWN else []
        raise UserError("\n  ".join([f"labels: {len(problems)} to mend", *problems[:MOST_SHOWN], *more]))
    return [label for label, _ in found.values()]


def labels_lost(file: Path, labels: Iterable[Label]) -> list[str]:
    """Whose labels of a file, which need not exist, would be gone were it written anew with these.

    A label that says the opposite of an earlier one takes its place.
    """
    if not file.exists():
        return []
    kept = {(one.item, one.direction, one.answer, one.who) for one in labels}
    before = read_labels([file])
    return sorted({one.who for one in before if (one.item, one.direction, one.answer, one.who) not in kept})


def label_csv(labels: Iterable[Label]) -> str:
    """The labels as a file's text, sorted, so that the same labels give the same bytes."""
    rows = sorted(
        (one.item, str(one.direction), one.answer, "yes" if one.correct else "no", one.who, one.when)
        for one in labels
    )
    return table_csv(COLUMNS, rows)


def table_csv(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """CSV text."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells of each row."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"labels: cannot read {file} ({reason}); give a CSV file of labels") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(
            f"labels: {file} lacks the columns {', '.join(missing)}; its first line should hold "
            f"{','.join(COLUMNS)}"
        )
    try:
        return [
            (reader.line_num, {name: (row.get(name) or "").strip() for name in COLUMNS}) for row in reader
        ]
    except csv.Error as error:
        raise UserError(
            f"labels: {file} line {reader.line_num} and after cannot be read ({error}); look for a quotation "
            "mark that is not closed"
        ) from None


def _label(
    row: Mapping[str, str], known: Mapping[str, Collection[str]] | None
) -> tuple[Label | None, list[str]]:
    """A row's label and what is wrong with it; neither for a row that says nothing."""
    said = row["correct"].lower()
    if said in SKIPPED:
        return None, []
    wrong = []
    if said not in (*YES, *NO):
        wrong.append(f"correct: '{row['correct']}' is neither yes nor no; leave it empty to skip")
    if row["direction"] not in list(Direction):
        wrong.append(f"direction: '{row['direction']}' is none of {', '.join(Direction)}")
    elif known is not None:
        answers = known.get(f"{row['item']}|{row['direction']}")
        if answers is None:
            wrong.append(f"item: '{row['item']}' has no answer in this direction in the run")
        elif row["answer"] not in answers:
            wrong.append(f"answer: '{row['answer']}' is none of the run's answers to '{row['item']}'")
    if not row["who"]:
        wrong.append("who: empty; say who labelled")
    try:
        datetime.fromisoformat(row["when"])
    except ValueError:
        wrong.append(f"when: '{row['when']}' is no date; write it as 2026-01-31T12:00:00Z")
    if wrong:
        return None, wrong
    label = Label(
        row["item"], Direction(row["direction"]), row["answer"], said in YES, row["who"], row["when"]
    )
    return label, []
