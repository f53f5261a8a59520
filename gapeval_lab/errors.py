"""What a run may end with, beside defects of our own, which keep their traceback.

A `UserError` is the user's to mend: shown without a traceback, exit code 2.
"""


class UserError(Exception):
    """A mistake in what the user gave (a file, a field, a value, a place to write).

    The message names the field, the value and the fix, in that order, in one or a few short lines.
    """


class RunFailed(RuntimeError):
    """A run cannot go on, and its words say why; what was finished is kept. One message, exit code 1."""


class PromptsFailed(RunFailed):
    """A model could not answer: too many of its prompts failed."""


class SafetyError(Exception):
    """A promise of the laboratory was broken (weights not restored, say): the run stops at once."""
