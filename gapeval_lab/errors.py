"""The one error that is the user's to mend: shown without a traceback, exit code 2.

Everything else that goes wrong is ours and keeps its traceback.
"""


class UserError(Exception):
    """A mistake in what the user gave (a file, a field, a value, a place to write).

    The message names the field, the value and the fix, in that order, in one or a few short lines.
    """


class SafetyError(Exception):
    """A promise of the laboratory was broken (weights not restored, say): the run stops at once."""
