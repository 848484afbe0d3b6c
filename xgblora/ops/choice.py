"""Which implementation runs an operation: chosen once, logged once with its reason, shown by `xgblora-env`.

Tensors run the first backend that is written for the operation on their device and that can be used here, and the eager
reference where none can. `XGBLORA_STRICT=1` makes it an error that the first one cannot.

`XGBLORA_BACKEND` overrides the choice:

- `eager`: the reference everywhere. It is what was asked for, so it is no fallback.
- the name of a backend, such as `triton`, `cuda`, `host`: that one wherever it has the operation, on the other device's
  tensors too (Triton runs CPU tensors through its interpreter; `cuda` takes none, and `host` no CUDA tensors). An
  operation that was never written for it runs what `auto` would choose, and the reason says so. `XGBLORA_STRICT=1` asks
  for no more than that: with `cuda` the merge must run the extension, and `rank1_linear`, which has no CUDA
  implementation, must run Triton.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from xgblora.errors import InputError
from xgblora.ops.backends.backend import Backend
from xgblora.ops.backends.registry import RESERVED, registry
from xgblora.ops.eager import eager

logger = logging.getLogger("xgblora")


@dataclass(frozen=True)
class Choice:
    """One operation on one device type: the implementation that runs, and why.

    Attributes:
        operation: its name.
        device_type: "cpu" or "cuda".
        backend: the one that runs it, "eager" for the reference.
        reason: why, in a sentence.
        function: the implementation.
    """

    operation: str
    device_type: str
    backend: str
    reason: str
    function: Callable


@cache
def choose(operation: str, device_type: str) -> Choice:
    """Choose the implementation of `operation` for tensors on `device_type` ("cpu" or "cuda").

    Raises:
        InputError: `XGBLORA_BACKEND` is not a backend, or `XGBLORA_STRICT=1` and the wanted one cannot be used.
    """
    candidates, reason = _candidates(operation, device_type, _wanted())
    obstacles = []
    for backend in candidates:
        found = backend.find(operation, device_type)
        if not isinstance(found, str):
            return _chosen(operation, device_type, backend.name, "; ".join([*obstacles, reason]), found)
        if os.environ.get("XGBLORA_STRICT", "0") == "1":
            raise InputError(f"XGBLORA_STRICT=1: {operation} on {device_type} cannot run {backend.title}: {found}")
        obstacles.append(f"{backend.title} cannot be used: {found}")
    return _chosen(operation, device_type, "eager", "; ".join(obstacles) or reason, eager(operation))


def available(operation: str, device_type: str) -> dict[str, Callable | str]:
    """The backends that `operation` is written for: the function of each, or in one line why it cannot be used."""
    written = {backend.name: backend for backend in registry().backends.values() if operation in backend.modules}
    found = {name: backend.find(operation, device_type) for name, backend in written.items()}
    return {"eager": eager(operation), **found}


def _wanted() -> str:
    """The value of `XGBLORA_BACKEND`.

    Raises:
        InputError: it is no backend, or that of an entry point that gives none.
    """
    wanted, found = os.environ.get("XGBLORA_BACKEND", "auto").lower(), registry()
    known = (*RESERVED, *found.backends)
    if wanted in known:
        return wanted
    refused = f"; {wanted} of {found.refused[wanted]}" if wanted in found.refused else ""
    raise InputError(f"XGBLORA_BACKEND={wanted}: must be one of {', '.join(known)}{refused}")


def _candidates(operation: str, device_type: str, wanted: str) -> tuple[list[Backend], str]:
    """What to try before eager code, in order, and why."""
    if wanted == "eager":
        return [], "XGBLORA_BACKEND=eager"
    written = [backend for backend in registry().backends.values() if operation in backend.modules]
    usual = [backend for backend in written if device_type in backend.device_types]
    named = [backend for backend in written if backend.name == wanted]
    if named:
        return [*named, *(backend for backend in usual if backend.name != wanted)], f"XGBLORA_BACKEND={wanted}"
    asked = "" if wanted == "auto" else f"XGBLORA_BACKEND={wanted}, which it is not written for; "
    tensors = "CPU tensors" if device_type == "cpu" else "CUDA tensors"
    title = usual[0].title if usual else "the eager reference"
    return usual, f"{asked}{tensors} run {title}"


def _chosen(operation: str, device_type: str, backend: str, reason: str, function: Callable) -> Choice:
    level = logging.WARNING if device_type == "cuda" and backend == "eager" else logging.DEBUG
    logger.log(level, "%s on %s: %s (%s)", operation, device_type, backend, reason)
    return Choice(operation, device_type, backend, reason, function)
