"""What is fine on this machine, and what is not, each in a line with its fix.

Every check is by itself: one that fails is a line, too. Changes nothing, and asks nobody but the store
that the user has set.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Line:
    """One finding.

    Attributes:
        name: what was looked at.
        status: a note is worth knowing; a problem will stop or spoil a run.
        text: what was found.
        fix: what to do about it; "" where nothing is to be done.
    """

    name: str
    status: Status
    text: str
    fix: str = ""


Check = Callable[[], Iterator[Line]]


@dataclass(frozen=True)
class Section:
    """Lines about one thing."""

    title: str
    lines: tuple[Line, ...]


def examine(*, quick: bool = False) -> list[Section]:
    """All checks, in order.

    Args:
        quick: leave out the self-test, which loads a model.
    """
    from gapeval_lab import doctor_machine, doctor_parts

    sections: list[tuple[str, Sequence[Check]]] = [
        ("Versions", (doctor_machine.python, doctor_machine.packages)),
        ("Machine", (doctor_machine.processor, doctor_machine.accelerators)),
        ("Store", (doctor_machine.home_folder, doctor_machine.store)),
        ("Engines", (doctor_parts.easyedit, doctor_parts.optional)),
        ("Keys", (doctor_parts.api_keys,)),
        ("Shipped model", (doctor_parts.weights, *(() if quick else (doctor_parts.self_test,)))),
    ]
    return [
        Section(title, tuple(line for check in checks for line in guarded(check)))
        for title, checks in sections
    ]


def guarded(check: Check) -> Iterator[Line]:
    """A check's lines; what it dies of is the last of them."""
    try:
        yield from check()
    except Exception as error:  # a diagnosis of a broken installation must not break on it
        lines = str(error).strip().splitlines()
        told = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        name = check.__name__.replace("_", " ")
        yield Line(
            name, "problem", f"the check failed ({told})", "install the package again: pip install -e ."
        )


def healthy(sections: Sequence[Section]) -> bool:
    """Whether there is no problem."""
    return all(line.status != "problem" for section in sections for line in section.lines)
