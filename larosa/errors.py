"""The base of every error that larosa raises for a reason a user can act on."""


class LarosaError(Exception):
    """Says what was wrong, what was expected and what to do; `run.py` prints it without a traceback."""


class ArgumentError(LarosaError, ValueError):
    """An argument of the Python interface is not what is expected."""
