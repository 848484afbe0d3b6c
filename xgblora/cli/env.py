"""`xgblora-env`: the platform, the versions, the memory, and which implementation runs each operation and why."""

import os
import sys
from argparse import ArgumentParser
from pathlib import Path

import torch

from xgblora import ops
from xgblora.cli.exit import exits_with_one_line
from xgblora.environment import versions
from xgblora.errors import InputError
from xgblora.ops.backends.registry import registry
from xgblora.ops.self_check import Check, check_backends, check_eager
from xgblora.spelling import memory_size

DEVICE_TYPES = ("cpu", "cuda")


@exits_with_one_line
def main(arguments: list[str] | None = None) -> None:
    """Print everything that a bug report needs; `arguments` defaults to those of the command line."""
    parser = ArgumentParser("xgblora-env", description=__doc__.split(": ", 1)[1])
    parser.add_argument(
        "--check", action="store_true", help="compare every implementation that runs here with the reference"
    )
    parser.error = refuse
    checking = parser.parse_args(arguments).check
    print("\n".join(report()))
    if checking:
        lines, passed = checked()
        print("\n".join(["", *lines]))
        if not passed:
            sys.exit(1)


def refuse(message: str):
    """What argparse calls when a flag is wrong."""
    raise InputError(message)


def report() -> list[str]:
    """The lines that `xgblora-env` prints.

    Raises:
        InputError: an environment variable of xgblora is wrong.
    """
    lines = [f"{name} {version or 'not installed'}" for name, version in versions().items()]
    lines += ["", memory(), *devices(), "", *backends()]
    for device_type in DEVICE_TYPES if torch.cuda.is_available() else DEVICE_TYPES[:1]:
        for operation in ops.operations():
            choice = ops.choose(operation, device_type)
            lines.append(f"{operation} on {device_type}: {choice.backend} ({choice.reason})")
    lines += ["", *(f"{name}={value}" for name, value in environment_variables())]
    return lines


def backends() -> list[str]:
    """All backends by name, those that another package failed to add, and what was built."""
    found = registry()
    names = [f"{name} ({found.origins[name]})" if name in found.origins else name for name in found.backends]
    return [
        f"backends: {', '.join(names)}",
        *(f"backend {name} of {why}" for name, why in found.refused.items()),
        *filter(None, (backend.described() for backend in found.backends.values())),
    ]


def checked() -> tuple[list[str], bool]:
    """A line for each operation and implementation on this machine, also for what could not be checked; if all passed.

    The Triton interpreter counts as an implementation where TRITON_INTERPRET=1.
    """
    results, unchecked = _grouped(check_eager(), "cpu"), []
    for device_type in DEVICE_TYPES:
        if device_type == "cuda" and not torch.cuda.is_available():
            untested = "there is no CUDA device; what runs there is untested on this machine"
            unchecked.append(f"on cuda: not checked, {untested}")
            continue
        for found in check_backends(torch.device(device_type)):
            results += _grouped(found.checks, device_type)
            unchecked += found.unchecked
    lines = [f"check {name}: {_verdict(checks)}" for name, checks in results]
    passed = all(one.passed for _, checks in results for one in checks)
    return [*lines, *(f"check {line}" for line in unchecked)], passed


def _grouped(checks: list[Check], device_type: str) -> list[tuple[str, list[Check]]]:
    groups: dict[str, list[Check]] = {}
    for one in checks:
        groups.setdefault(f"{one.operation}, {one.backend} on {device_type}", []).append(one)
    return list(groups.items())


def _verdict(checks: list[Check]) -> str:
    """ "ok (27 cases, 0 of 100003 values differ)", or the first case that failed."""
    failed = [one for one in checks if not one.passed]
    if failed:
        return f"FAILED in {len(failed)} of {len(checks)} cases, first {failed[0].case}: {failed[0].detail}"
    return f"ok ({len(checks)} case{'s' if len(checks) > 1 else ''}, the last: {checks[-1].detail})"


def memory(meminfo: Path = Path("/proc/meminfo")) -> str:
    """The line for the machine's memory; what the platform does not tell is "unknown"."""
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        total, available = (_kibibytes(fields.get(name)) for name in ("MemTotal", "MemAvailable"))
    else:
        total, available = _physical_memory(), None
    return f"memory: {_gibibytes(total)}, {_gibibytes(available)} available"


def _kibibytes(field: str | None) -> int | None:
    return int(field.split()[0]) * 1024 if field else None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        # Windows has no sysconf, and not every system has these names
        return None


def _gibibytes(size: int | None) -> str:
    return "unknown" if size is None else memory_size(size, "GiB")


def devices() -> list[str]:
    """One line for the CPU and one for each GPU."""
    lines = [f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        lines.append(
            f"cuda:{index}: {facts.name}, {_gibibytes(total)}, {_gibibytes(free)} free, sm_{facts.major}{facts.minor}, "
            f"CUDA {torch.version.cuda}"
        )
    return lines if torch.cuda.is_available() else [*lines, "cuda: no device"]


def environment_variables() -> list[tuple[str, str]]:
    """The variables that change how xgblora runs, with their values."""
    of_backends = [name for backend in registry().backends.values() for name in backend.variables]
    names = ("XGBLORA_BACKEND", "XGBLORA_STRICT", *of_backends, "OMP_NUM_THREADS")
    return [(name, os.environ.get(name, "(not set)")) for name in names]
