"""What a reward's process does: load the functions, then answer one question after the other."""

import contextlib
import math
import numbers
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from xgblora.errors import InputError
from xgblora.rewards.functions import Reward
from xgblora.spelling import one_line


def serve(connection: Connection, rewards: Sequence[Reward]) -> None:
    """Answer with (value, None) or (None, what is wrong) until the other end is closed.

    The first answer says whether the functions could be loaded. A question is (number of the reward, prompt,
    completion, row).
    """
    if hasattr(os, "setsid"):
        # a group of its own: what a reward starts ends with it, and Ctrl-C is for the run alone
        os.setsid()
    try:
        functions = [reward.load() for reward in rewards]
    except InputError as error:
        connection.send((None, str(error)))
        return
    connection.send((0.0, None))
    # the run has ended, or was killed
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, *question = connection.recv()
            connection.send(_answer(functions[number], question))


def _answer(function: Callable, question: list) -> tuple[float | None, str | None]:
    try:
        value = function(*question)
        # a number of numpy or torch
        value = value.item() if hasattr(value, "item") else value
        # what is no number, or one that no float holds, may raise as well
        return _number(value)
    except Exception as error:
        return None, f"raised {one_line(error, kind=True, limit=200)}"


def _number(value: object) -> tuple[float | None, str | None]:
    if not isinstance(value, numbers.Real):
        return None, f"returned {repr(value)[:60]}, no number"
    value = float(value)
    return (value, None) if math.isfinite(value) else (None, f"returned {value}")
