"""Faults for a rehearsal: what goes wrong on a borrowed machine, made to happen where it can be watched.

A fault is named by `--fault`; without one nothing here does anything. Killing the suite is left to the rehearsal.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Iterator

from benchmarks.gpu.stages import Part

NONE, FAILING_CHECK, HANG, CRASH = "none", "failing-check", "hang", "crash"
NO_EXTENSION, NO_DATASETS = "no-extension", "no-datasets"
FAULTS = (NONE, FAILING_CHECK, HANG, CRASH, NO_EXTENSION, NO_DATASETS)
HANG_BOUND = 1.0
# names of modules, for processes that a stage starts
VARIABLE = "GPU_SUITE_MISSING"
_MISSING = {NO_EXTENSION: ("xgblora._C", "xgblora._host"), NO_DATASETS: ("datasets",)}


class Missing:
    """An import hook: modules that this process does not find, and does not find when it asks before it imports."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name in names else find(name, *rest)

    def find_spec(self, name: str, path=None, target=None) -> None:
        """What Python asks for each import."""
        if name in self.names:
            raise ModuleNotFoundError(f"{name} is missing in this rehearsal", name=name)


def inject(fault: str, stage: str) -> None:
    """Prepare this process for `fault`."""
    if fault in _MISSING:
        os.environ[VARIABLE] = " ".join(_MISSING[fault])
        hide_missing()
    elif fault == FAILING_CHECK and stage == "checks":
        _spoil_perturb()


def hide_missing() -> None:
    """Let this process miss what the rehearsal says is missing."""
    if VARIABLE in os.environ:
        sys.meta_path.insert(0, Missing(tuple(os.environ[VARIABLE].split())))


def extra_parts(fault: str, stage: str) -> list[Part]:
    """Parts that go wrong, before those of the stage."""
    if fault == HANG:
        return [Part("hangs", _hang, 0.0, HANG_BOUND)]
    if fault == CRASH:
        return [Part("crashes", _crash, 0.0, 30.0)]
    return []


def _hang() -> Iterator[dict]:
    print("waiting for what never comes")
    yield {"note": "this part hangs"}
    time.sleep(3600)


def _crash() -> Iterator[dict]:
    print("about to end without a word")
    yield {"note": "this part takes its process with it"}
    os.abort()


def _spoil_perturb() -> None:
    """Let the reference of `perturb` be wrong in one value, so that every other implementation differs from it."""
    from dataclasses import replace

    from xgblora.ops import self_check

    exact = self_check.REFERENCE.on("perturb")

    def wrong(master, live, *rest):
        exact(master, live, *rest)
        live[-1, -1] += 0.5

    functions = {**self_check.REFERENCE.functions, "perturb": ("eager", wrong)}
    self_check.REFERENCE = replace(self_check.REFERENCE, functions=functions)
