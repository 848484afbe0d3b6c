"""Faults that are injected into a run in this process: what fails, and before which of its calls."""

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

STEPS = "xgblora.zo.zero_order.ZeroOrder.update"
LOSSES = "xgblora.objectives.texts.CandidateObjective.__call__"
# before which calls a fault may come
CALLS = (
    STEPS,
    LOSSES,
    "xgblora.scoring.collator.Collator.__call__",
    "xgblora.records.run_files.RunFilesCallback.on_log",
    "xgblora.boosting.booster.Booster.merge",
    "xgblora.boosting.booster.Booster._write",
    "xgblora.records.checkpoint.save",
    "xgblora.atomic_file.sync_file",
    "xgblora.atomic_file._sync_folder",
    "os.replace",
)
WRITING = tuple(name for name in CALLS if "atomic" in name or name in ("os.replace", "xgblora.records.checkpoint.save"))
COMPUTING = tuple(name for name in CALLS if name not in WRITING)


class Mistake(Exception):
    """What somebody's objective, callback or data loader raises."""


@dataclass(frozen=True)
class Fault:
    """A fault of a kind, before a call of a function; `moment`, from 0 to 1, says which of all its calls in a run."""

    kind: str
    function: str
    moment: float

    def __str__(self) -> str:
        return f"{self.kind} at {self.moment:.0%} of {'.'.join(self.function.split('.')[-2:])}"


def drawn(count: int, seed: int = 0) -> list[Fault]:
    """So many faults, the kinds in turn, the moments at random."""
    chance = random.Random(seed)
    kinds = list(KINDS)
    faults = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        function = chance.choice(KINDS[kind][1])
        faults.append(Fault(kind, function, chance.random()))
    return faults


def counted(patch: pytest.MonkeyPatch, functions: tuple[str, ...] = CALLS) -> dict[str, int]:
    """How often each of `functions` is called from now on, as long as `patch` lasts."""
    calls = dict.fromkeys(functions, 0)

    def counting(function: str, real: Callable) -> Callable:
        def call(*arguments: Any, **keywords: Any) -> Any:
            calls[function] += 1
            return real(*arguments, **keywords)

        return call

    for function in functions:
        target, name = _place(function)
        patch.setattr(target, name, counting(function, getattr(target, name)))
    return calls


def inject(fault: Fault, total: int, folder: Path, patch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Put `fault` into a run that writes to `folder`, and would call the function `total` times.

    Returns:
        What says afterwards whether it came to it.
    """
    target, name = _place(fault.function)
    real, calls, act = getattr(target, name), [0], KINDS[fault.kind][0]
    fatal = 1 + int(fault.moment * total)

    def call(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == fatal:
            given = act(folder)
            if given is not None:
                return given(real, arguments, keywords)
        return real(*arguments, **keywords)

    patch.setattr(target, name, call)
    return lambda: calls[0] >= fatal


def _place(function: str) -> tuple[Any, str]:
    *owner, name = function.split(".")
    return _object(owner), name


def _object(path: list[str]) -> Any:
    for length in range(len(path), 0, -1):
        try:
            found = __import__(".".join(path[:length]), fromlist=["x"])
        except ModuleNotFoundError:
            continue
        for name in path[length:]:
            found = getattr(found, name)
        return found
    raise ValueError(path)


def _raising(error: BaseException) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        raise error

    return act


def _vanish(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _losses_of(value: float) -> Callable[[Path], Callable]:
    return lambda folder: lambda real, arguments, keywords: real(*arguments, **keywords) * value


def _out_of_memory(folder: Path) -> Callable:
    def fail_if_stacked(real, arguments, keywords):
        # (objective, model, batch): both signs in one forward
        if arguments[2].get("copies", 1) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, **keywords)

    return fail_if_stacked


def _signal(number: int) -> Callable[[Path], None]:
    return lambda folder: os.kill(os.getpid(), number)


# what happens, and before which calls
KINDS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "exception": (_raising(Mistake("a mistake of somebody's own")), COMPUTING),
    "disk full": (_raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")), WRITING),
    "read-only": (_raising(OSError(errno.EROFS, os.strerror(errno.EROFS), "file")), WRITING),
    "interrupt": (_signal(signal.SIGINT), tuple(CALLS)),
    "terminate": (_signal(signal.SIGTERM), tuple(CALLS)),
    "folder vanishes": (_vanish, COMPUTING),
    "loss is NaN": (_losses_of(float("nan")), (LOSSES,)),
    "loss is infinite": (_losses_of(float("inf")), (LOSSES,)),
    "out of memory": (_out_of_memory, (LOSSES,)),
}
# they end nothing
SURVIVED = ("loss is NaN", "loss is infinite", "out of memory")
