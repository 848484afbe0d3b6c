"""`xgblora-env`: the platform, the versions, the memory, and which implementation runs each operation and why."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import torch

from xgblora import ops
from xgblora.cli.exit import exits_with_one_line
from xgblora.environment import versions
from xgblora.errors import InputError
from xgblora.ops.backend import available
from xgblora.ops.extension import extension
from xgblora.ops.host_extension import host_extension
from xgblora.ops.self_check import SMALL_LINEAR_SHAPES, SMALL_SIZES, Check, Tested, check, check_eager

VARIABLES = (
    "XGBLORA_BACKEND",
    "XGBLORA_STRICT",
    "XGBLORA_BUILD_CUDA",
    "XGBLORA_BUILD_HOST",
    "XGBLORA_CUDA_ARCHS",
    "TRITON_INTERPRET",
    "OMP_NUM_THREADS",
)


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
    lines += [
        "",
        memory(),
        *devices(),
        "",
        f"extension: {extension().state}",
        f"host extension: {host_extension().state}",
    ]
    device_types = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device_type in device_types:
        for operation in ops.operations():
            choice = ops.choose(operation, device_type)
            lines.append(f"{operation} on {device_type}: {choice.backend} ({choice.reason})")
    lines += ["", *(f"{name}={value}" for name, value in environment_variables())]
    return lines


def checked() -> tuple[list[str], bool]:
    """A line for each operation and implementation on this machine, also for what could not be checked; if all passed.

    The Triton interpreter counts as an implementation where TRITON_INTERPRET=1.
    """
    lines, passed = [], True
    for name, result in _grouped(check_eager(), "cpu"):
        lines.append(f"check {name}: {_verdict(result)}")
        passed = passed and all(one.passed for one in result)
    for device_type in ("cpu", "cuda"):
        if device_type == "cuda" and not torch.cuda.is_available():
            lines.append(
                "check on cuda: not checked, there is no CUDA device; what runs there is untested on this machine"
            )
            continue
        backends = ("host", "triton", "cuda") if device_type == "cpu" else ("eager", "triton", "cuda")
        for backend in backends:
            found = {operation: available(operation, device_type).get(backend) for operation in ops.operations()}
            functions = {name: (backend, one) for name, one in found.items() if isinstance(one, Callable)}
            for name, result in _grouped(check(_tested(device_type, functions)), device_type):
                lines.append(f"check {name}: {_verdict(result)}")
                passed = passed and all(one.passed for one in result)
            if functions and backend == "triton" and device_type == "cpu":
                lines.append(f"check rank1_linear, {backend} on cpu, bfloat16: not checked, the interpreter cannot")
            for obstacle in sorted({one for one in found.values() if isinstance(one, str)}):
                lines.append(f"check {backend} on {device_type}: not checked, {obstacle}")
    return lines, passed


def _tested(device_type: str, functions: dict) -> Tested:
    if device_type == "cpu":
        # in bf16 the interpreter of Triton 3.9 multiplies bit patterns
        dtypes = (torch.float32, torch.float16)
        return Tested(torch.device("cpu"), functions, SMALL_SIZES, SMALL_LINEAR_SHAPES, dtypes)
    return Tested(torch.device(device_type), functions)


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
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"


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
    return [(name, os.environ.get(name, "(not set)")) for name in VARIABLES]
