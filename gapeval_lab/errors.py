"""The one error that is the user's to mend: shown without a traceback, exit code 2.

Everything else that goes wrong is ours and keeps its traceback.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class UserError(Exception):
    """A mistake in what the user gave (a file, a field, a value, a place to write).

    The message names the field, the value and the fix, in that order, in one or a few short lines.
    """


class PromptsFailed(RuntimeError):
    """A model could not answer: too many of its prompts failed. One message, exit code 1."""


class SafetyError(Exception):
    """A promise of the laboratory was broken (weights not restored, say): the run stops at once."""


class EndedMidway(UserError):
    """A list of prompts, or of jobs, that ends before its end.

    Attributes:
        finished: index -> what was given by then; it is the caller's to keep.
    """

    finished: Mapping[int, Any] = MappingProxyType({})
