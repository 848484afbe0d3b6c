"""The columns of a row of data; whatever is wrong with one is said in one line that names the row."""

import difflib
from collections.abc import Iterable, Mapping

from xgblora.errors import InputError


def value_of(row: Mapping, column: str, origin: str) -> object:
    """The value of `column`.

    Raises:
        InputError: there is no such column; the message names the columns there are.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"{origin}: {_kind(row)} stands where an object with {column} is needed")
    if column in row:
        return row[column]
    raise InputError(f"{origin}: there is no column {column}{did_you_mean(column, row)} (columns: {', '.join(row)})")


def text_of(row: Mapping, column: str, origin: str) -> str:
    """The text or number in `column`, as text.

    Raises:
        InputError: there is no such column, or something else in it.
    """
    value = value_of(row, column, origin)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return spelling(value)
    raise InputError(f"{origin}: {column} is {_kind(value)} where text is needed")


def texts_of(row: Mapping, column: str, origin: str) -> list[str]:
    """The list of texts in `column`.

    Raises:
        InputError: there is no such column, or something else in it.
    """
    values = value_of(row, column, origin)
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return values
    raise InputError(f"{origin}: {column} is {_kind(values)} where a list of texts is needed")


def objects_of(row: Mapping, column: str, origin: str) -> list[dict]:
    """The list of objects in `column`.

    Raises:
        InputError: there is no such column, or something else in it.
    """
    values = value_of(row, column, origin)
    if isinstance(values, list) and all(isinstance(value, dict) for value in values):
        return values
    raise InputError(f"{origin}: {column} is {_kind(values)} where a list of objects is needed")


def spelling(value: object) -> str:
    """A label as text, the same for each format of the data: 1.0 is "1", True and "True" are "true"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return text.lower() if text in ("True", "False") else text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?", or nothing if no known name is like `name`."""
    spellings = {str(other).lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), spellings, n=1)
    return f"; did you mean {spellings[close[0]]}?" if close else ""


def listed(words: list[str]) -> str:
    """ "a, b or c"."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _kind(value: object) -> str:
    if value is None:
        return "empty"
    return {"list": "a list", "dict": "an object", "str": "a text", "bool": "true or false"}.get(
        type(value).__name__, "a number"
    )
