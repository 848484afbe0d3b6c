"""Sweeps: `flag=value,value,...` becomes the settings that every method is tried with."""

import itertools
import math

from xgblora.comparison.methods import SET_BY_THE_COMPARISON, SPELLINGS, Method
from xgblora.errors import InputError

Setting = dict[str, float]


def read_sweep(words: list[str], numeric: dict[str, type]) -> dict[str, list[float]]:
    """The values of each flag in words such as `learning_rate=1e-4,3e-4`.

    Args:
        words: one a flag; several flags make a grid.
        numeric: the flags that take a number, and of which kind, int or float.

    Raises:
        InputError: a flag cannot be swept, or a value is wrong or given twice.
    """
    swept: dict[str, list[float]] = {}
    for word in words:
        flag, _, listed = word.partition("=")
        flag = flag.lstrip("-").replace("-", "_")
        flag = SPELLINGS.get(flag, flag)
        if flag in SET_BY_THE_COMPARISON:
            raise InputError(f"sweep={word}: {flag} is set by the comparison; {SET_BY_THE_COMPARISON[flag]}")
        if flag not in numeric:
            raise InputError(f"sweep={word}: {flag or 'nothing'} is no flag of xgblora-train that takes a number")
        if flag in swept:
            raise InputError(f"sweep={word}: {flag} is swept twice")
        texts = [text.strip() for text in listed.split(",")]
        if not all(texts):
            raise InputError(f"sweep={word}: a value is missing; give {flag}=VALUE,VALUE,...")
        values = [_number(word, text, numeric[flag]) for text in texts]
        twice = [text for text, value in zip(texts, values, strict=True) if values.count(value) > 1]
        if twice:
            raise InputError(f"sweep={word}: {twice[0]} is given twice")
        swept[flag] = values
    return swept


def settings_of(method: Method, swept: dict[str, list[float]]) -> list[Setting]:
    """The grid for `method`: without the flags that make no difference to it, or that it has a value of its own for."""
    flags = [flag for flag in swept if method.takes(flag) and flag not in method.flags]
    return [dict(zip(flags, values, strict=True)) for values in itertools.product(*(swept[flag] for flag in flags))]


def named(setting: Setting) -> str:
    """ "learning_rate=0.0003, zo_eps=0.001"; empty for no setting."""
    return ", ".join(f"{flag}={value!r}" for flag, value in setting.items())


def _number(word: str, text: str, kind: type) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"sweep={word}: {text} is no {'whole ' if kind is int else ''}number")
    return value
