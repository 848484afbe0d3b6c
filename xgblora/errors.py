"""The one error a person is shown, bad input in one line; and the checks of numbers that several rooms make."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from xgblora.spelling import one_line


class InputError(ValueError):
    """A flag, argument or file is wrong. The message is one line: its name, its value, and what would be right.

    Commands print the message alone and exit with status 2; from Python it is a `ValueError`.
    """


@contextmanager
def in_one_line(*kinds: type[Exception], about: str = "") -> Iterator[None]:
    """Turn an error of these kinds, by which another library refuses a setting, into an InputError.

    Args:
        kinds: ImportError for a package that is not installed, ValueError for values that the library checks itself.
        about: what the line begins with, "flag=value: ", where the library does not name them.
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(about + one_line(error)) from error


def check_positive(name: str, value: float) -> None:
    """Raise InputError, by the `name` of the flag or argument, unless `value` is positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}={value}: must be a positive finite number")


def check_not_negative(name: str, value: float) -> None:
    """Raise InputError, by the `name` of the flag or argument, unless `value` is finite and 0 or more."""
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name}={value}: must be a finite number, 0 or more")
