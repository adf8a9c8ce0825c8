"""The one exception that the command line prints as a single line, and the guess that goes with an unknown name."""

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "did_you_mean"]


class UserError(ValueError):
    """Something that the user can fix: the message states the value, the place and the remedy.

    The command line prints it on standard error and exits with status 2. Every other exception is a bug in dabsmix
    and keeps its traceback.
    """


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A parenthesis with the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
