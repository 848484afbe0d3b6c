"""Which implementation runs an operation: chosen once, logged once with its reason, shown by `xgblora-env`.

CPU tensors run the eager reference. CUDA tensors run Triton and fall back to eager where Triton cannot be used.
`XGBLORA_BACKEND=auto|eager|triton` overrides the choice; `XGBLORA_STRICT=1` makes a fallback an error.
"""

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from xgblora.errors import InputError

logger = logging.getLogger("xgblora")

BACKENDS = ("auto", "eager", "triton")
_TRITON_MODULES = {
    "rank1_linear": "rank1_linear",
    "rank1_linear_backward": "rank1_linear",
    "perturb": "perturb",
    "update_": "update",
}


@dataclass(frozen=True)
class Choice:
    """One operation on one device type: the implementation that runs, and why."""

    operation: str
    device_type: str
    backend: str
    reason: str
    function: Callable


_eager: dict[str, Callable] = {}


def register_eager(operation: str, function: Callable) -> None:
    """Declare `function` as the eager reference of `operation`."""
    _eager[operation] = function


def eager(operation: str) -> Callable:
    """The eager reference of `operation`."""
    return _eager[operation]


def operations() -> tuple[str, ...]:
    """Names of all registered operations."""
    return tuple(_eager)


@cache
def choose(operation: str, device_type: str) -> Choice:
    """Choose the implementation of `operation` for tensors on `device_type` ("cpu" or "cuda").

    Raises:
        InputError: `XGBLORA_BACKEND` is not a backend, or `XGBLORA_STRICT=1` and the wanted one cannot be used.
    """
    wanted = os.environ.get("XGBLORA_BACKEND", "auto").lower()
    if wanted not in BACKENDS:
        raise InputError(f"XGBLORA_BACKEND={wanted}: must be one of {', '.join(BACKENDS)}")
    if wanted == "eager":
        return _chosen(operation, device_type, "eager", "XGBLORA_BACKEND=eager", _eager[operation])
    if device_type == "cpu" and wanted == "auto":
        return _chosen(operation, device_type, "eager", "CPU tensors run the eager reference", _eager[operation])
    if operation not in _TRITON_MODULES:
        return _chosen(operation, device_type, "eager", "has no other implementation yet", _eager[operation])
    kernel, obstacle = _triton_kernel(operation, device_type)
    if kernel is not None:
        reason = f"XGBLORA_BACKEND={wanted}" if wanted != "auto" else "CUDA tensors run Triton"
        return _chosen(operation, device_type, "triton", reason, kernel)
    if os.environ.get("XGBLORA_STRICT", "0") == "1":
        raise InputError(f"XGBLORA_STRICT=1: {operation} on {device_type} cannot run Triton: {obstacle}")
    return _chosen(operation, device_type, "eager", f"Triton cannot be used: {obstacle}", _eager[operation])


def _chosen(operation: str, device_type: str, backend: str, reason: str, function: Callable) -> Choice:
    level = logging.WARNING if device_type == "cuda" and backend == "eager" else logging.DEBUG
    logger.log(level, "%s on %s: %s (%s)", operation, device_type, backend, reason)
    return Choice(operation, device_type, backend, reason, function)


def _triton_kernel(operation: str, device_type: str) -> tuple[Callable | None, str]:
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET", "0") != "1":
        return None, "CPU tensors need TRITON_INTERPRET=1"
    try:
        module = importlib.import_module(f"xgblora.kernels.{_TRITON_MODULES[operation]}")
    except ImportError as error:
        return None, str(error)
    return getattr(module, operation), ""
