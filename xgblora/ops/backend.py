"""Which implementation runs an operation: chosen once, logged once with its reason, shown by `xgblora-env`.

Tensors run the first implementation that `_CHAINS` has for their device and that can be used here, and the eager
reference where none can. `XGBLORA_STRICT=1` makes it an error that the first one cannot.

`XGBLORA_BACKEND` overrides the choice:

- `eager`: the reference everywhere. It is what was asked for, so it is no fallback.
- `triton`, `cuda`, `host`: that implementation wherever an operation has one, on the other device's tensors too (Triton
  runs CPU tensors through its interpreter; `cuda` takes none, and `host` no CUDA tensors). An operation that was never
  written for it runs what `auto` would choose, and the reason says so. `XGBLORA_STRICT=1` asks for no more than that:
  with `cuda` the merge must run the extension, and `rank1_linear`, which has no CUDA implementation, must run Triton.
"""

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from xgblora.environment import installed
from xgblora.errors import InputError
from xgblora.ops import extension, host_extension

logger = logging.getLogger("xgblora")

BACKENDS = ("auto", "eager", "triton", "cuda", "host")
_TITLES = {"triton": "Triton", "cuda": "the CUDA extension", "host": "the host extension"}
# the device type that each is written for
_DEVICE_TYPES = {"triton": "cuda", "cuda": "cuda", "host": "cpu"}

# for each operation the backends that it is written for, best first, and the module of each
_CHAINS = {
    "row_dots": {"triton": "xgblora.kernels.row_dot"},
    "rank1_linear": {"triton": "xgblora.kernels.rank1_linear"},
    "rank1_linear_backward": {"triton": "xgblora.kernels.rank1_linear"},
    "perturb": {"triton": "xgblora.kernels.perturb", "host": "xgblora.ops.perturb_host"},
    "update_": {"triton": "xgblora.kernels.update", "host": "xgblora.ops.update_host"},
    "merge_rank1_": {
        "cuda": "xgblora.ops.merge_rank1_cuda",
        "triton": "xgblora.kernels.merge_rank1",
        "host": "xgblora.ops.merge_rank1_host",
    },
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
    chain, reason = _candidates(operation, device_type, wanted)
    obstacles = []
    for backend, module in chain.items():
        function, obstacle = _implementation(operation, device_type, backend, module)
        if function is not None:
            return _chosen(operation, device_type, backend, "; ".join([*obstacles, reason]), function)
        if os.environ.get("XGBLORA_STRICT", "0") == "1":
            raise InputError(
                f"XGBLORA_STRICT=1: {operation} on {device_type} cannot run {_TITLES[backend]}: {obstacle}"
            )
        obstacles.append(f"{_TITLES[backend]} cannot be used: {obstacle}")
    return _chosen(operation, device_type, "eager", "; ".join(obstacles) or reason, _eager[operation])


def available(operation: str, device_type: str) -> dict[str, Callable | str]:
    """The backends that `operation` is written for: the function of each, or in one line why it cannot be used."""
    found: dict[str, Callable | str] = {"eager": eager(operation)}
    for backend, module in _CHAINS.get(operation, {}).items():
        function, obstacle = _implementation(operation, device_type, backend, module)
        found[backend] = obstacle if function is None else function
    return found


def _candidates(operation: str, device_type: str, wanted: str) -> tuple[dict[str, str], str]:
    """What to try before eager code, in order, and why."""
    if wanted == "eager":
        return {}, "XGBLORA_BACKEND=eager"
    chain = _CHAINS.get(operation, {})
    usual = {backend: module for backend, module in chain.items() if _DEVICE_TYPES[backend] == device_type}
    if wanted in chain:
        return {wanted: chain[wanted], **usual}, f"XGBLORA_BACKEND={wanted}"
    asked = "" if wanted == "auto" else f"XGBLORA_BACKEND={wanted}, which it is not written for; "
    tensors = "CPU tensors" if device_type == "cpu" else "CUDA tensors"
    title = _TITLES[next(iter(usual))] if usual else "the eager reference"
    return usual, f"{asked}{tensors} run {title}"


def _chosen(operation: str, device_type: str, backend: str, reason: str, function: Callable) -> Choice:
    level = logging.WARNING if device_type == "cuda" and backend == "eager" else logging.DEBUG
    logger.log(level, "%s on %s: %s (%s)", operation, device_type, backend, reason)
    return Choice(operation, device_type, backend, reason, function)


def _implementation(operation: str, device_type: str, backend: str, module: str) -> tuple[Callable | None, str]:
    """The function of `operation` in `module`, or None and why it cannot be used here."""
    obstacle = _OBSTACLES[backend](device_type)
    if obstacle:
        return None, obstacle
    try:
        return getattr(importlib.import_module(module), operation), ""
    except ImportError as error:
        return None, str(error)


def _obstacle_to_triton(device_type: str) -> str:
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET", "0") != "1":
        return "CPU tensors need TRITON_INTERPRET=1"
    if device_type == "cpu" and (0, 0) < _release_of("triton") < (3, 7) and _release_of("numpy") >= (2, 4):
        return "the interpreter of Triton before 3.7 does not run with NumPy 2.4; install another of the two"
    return ""


def _release_of(package: str) -> tuple[int, int]:
    """(3, 6) of version 3.6.1; (0, 0) of what is not installed, which says so itself when it is imported."""
    major, minor = (installed(package) or "0.0").split(".")[:2]
    return int(major), int(minor)


def _obstacle_to_cuda(device_type: str) -> str:
    return "it takes no CPU tensors" if device_type == "cpu" else extension.obstacle()


def _obstacle_to_host(device_type: str) -> str:
    return host_extension.obstacle() if device_type == "cpu" else "it takes CPU tensors only"


_OBSTACLES = {"triton": _obstacle_to_triton, "cuda": _obstacle_to_cuda, "host": _obstacle_to_host}
