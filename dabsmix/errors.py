"""The one exception that the command line prints as a single line."""

__all__ = ["UserError"]


class UserError(ValueError):
    """Something that the user can mend: the message states the value, the place and the remedy.

    The command line prints it on standard error and exits with status 2. Every other exception is a fault of ours
    and keeps its traceback.
    """
