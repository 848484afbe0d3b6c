"""Stage: every implementation of every operation that runs on the device, against the reference.

One part an operation and implementation: a kernel that faults takes no other with it. Beside the shapes of
`xgblora-env --check` come odd ones: a single column, sizes around a tile's edge, more rows than a tile and one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial

import torch

from benchmarks.gpu.stages import NotHere, Part, Setting
from xgblora.ops.choice import available
from xgblora.ops.eager import operations
from xgblora.ops.self_check import (
    LINEAR_SHAPES,
    SIZES,
    SMALL_LINEAR_SHAPES,
    SMALL_SIZES,
    Tested,
    check_eager,
    comparisons,
)

# rows, K, N, groups
ODD_SHAPES = (
    *((1, 1, 1, 1), (1, 4097, 5, 1), (2, 33, 2049, 2), (15, 127, 65, 3), (16, 4096, 129, 2), (17, 129, 31, 1)),
    *((33, 1000, 1, 1), (129, 63, 257, 1), (1025, 511, 1023, 5)),
)
ODD_SIZES = (2, 3, 255, 256, 257, 4095)
# their eager code on a GPU is what they are compared with there: it would be compared with itself
BOUNDED = ("row_dots", "rank1_linear", "rank1_linear_backward")


def parts(setting: Setting) -> Iterable[Part]:
    """The reference itself, then each operation by each backend that it is written for, eager code last."""
    yield Part("eager against formulas", lambda: records(check_eager()), 1, 60)
    written = [
        (operation, backend, found)
        for operation in operations()
        for backend, found in available(operation, setting.device_type).items()
    ]
    for operation, backend, found in sorted(written, key=lambda one: one[1] == "eager"):
        # eager on a CPU is the reference: there is nothing to compare it with
        if backend != "eager" or (setting.device_type != "cpu" and operation not in BOUNDED):
            run = partial(compared, setting, operation, backend, found)
            yield Part(f"{operation}, {backend}", run, 1, 45)


def compared(setting: Setting, operation: str, backend: str, found: Callable | str) -> Iterator[dict]:
    """A record for each case of an implementation."""
    if isinstance(found, str):
        raise NotHere(found)
    yield from records(comparisons(_tested(setting, {operation: (backend, found)})))


def records(checks: Iterable) -> Iterator[dict]:
    """Checks as records."""
    for check in checks:
        yield {name: value for name, value in asdict(check).items() if value is not None}


def _tested(setting: Setting, functions: dict[str, tuple[str, Callable]]) -> Tested:
    device = torch.device(setting.device_type)
    if setting.tiny:
        return Tested(device, functions, SMALL_SIZES, SMALL_LINEAR_SHAPES[:1], (torch.float32,))
    return Tested(device, functions, (*SIZES, *ODD_SIZES), (*LINEAR_SHAPES, *ODD_SHAPES))
