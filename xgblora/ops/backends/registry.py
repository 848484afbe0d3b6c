"""All backends: those of this package, then those that other packages add by an entry point of `xgblora.backends`.

Where several are written for an operation and a device, the first that can run is taken, so what another package adds
runs by itself only what no backend of ours does; `XGBLORA_BACKEND` asks for it by name. An entry point that cannot be
used is said once in the log and by `xgblora-env`, and takes nothing else down.
"""

import logging
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from xgblora.errors import InputError, in_one_line
from xgblora.ops.backends import cuda, host, triton
from xgblora.ops.backends.backend import Backend
from xgblora.ops.eager import operations

logger = logging.getLogger("xgblora")

GROUP = "xgblora.backends"
# where two run an operation on a device, the better one first
BUILT_IN = (cuda.BACKEND, triton.BACKEND, host.BACKEND)
# values of `XGBLORA_BACKEND` that no backend may be called by
RESERVED = ("auto", "eager")


@dataclass(frozen=True)
class Registry:
    """What this process finds.

    Attributes:
        backends: by name, best first.
        origins: by the name of a backend of another package, that package and its version.
        refused: by entry point, why it gives no backend, in one line.
    """

    backends: dict[str, Backend] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


@cache
def registry() -> Registry:
    """All backends; entry points are read once a process."""
    found = Registry({backend.name: backend for backend in BUILT_IN})
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            with in_one_line(Exception):
                backend = _checked(entry.load(), found)
        except InputError as error:
            found.refused[entry.name] = f"{_origin(entry)}: {error}"
            logger.warning("backend %s of %s", entry.name, found.refused[entry.name])
        else:
            found.backends[backend.name], found.origins[backend.name] = backend, _origin(entry)
    return found


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}"


def _checked(backend: Backend, found: Registry) -> Backend:
    """What an entry point leads to, where it can be taken in.

    Raises:
        InputError: it is no backend, its name cannot be asked for, or it runs what is no operation.
    """
    if not isinstance(backend, Backend):
        raise InputError(f"leads to a {type(backend).__name__}, must be an xgblora.ops.backends.Backend")
    if not isinstance(backend.name, str):
        raise InputError(f"name={backend.name!r}: must be a string")
    if backend.name != backend.name.lower() or backend.name in (*RESERVED, *found.backends):
        taken = ", ".join((*RESERVED, *found.backends))
        raise InputError(f"name={backend.name}: must be in lower case and none of {taken}")
    others = sorted(set(backend.device_types) - {"cpu", "cuda"})
    if others or not backend.device_types:
        raise InputError(f"device_types={tuple(backend.device_types)}: must be of cpu, cuda")
    unknown = sorted(set(backend.modules) - set(operations()))
    if unknown:
        raise InputError(f"modules of {', '.join(unknown)}: must be of {', '.join(operations())}")
    return backend
