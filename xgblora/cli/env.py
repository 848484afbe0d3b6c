"""`xgblora-env`: the platform, the versions, the memory, and which implementation runs each operation and why."""

import os
from pathlib import Path

import torch

from xgblora import ops
from xgblora.cli.exit import exits_with_one_line
from xgblora.environment import versions
from xgblora.ops.extension import extension

VARIABLES = (
    "XGBLORA_BACKEND",
    "XGBLORA_STRICT",
    "XGBLORA_BUILD_CUDA",
    "XGBLORA_CUDA_ARCHS",
    "TRITON_INTERPRET",
    "OMP_NUM_THREADS",
)


@exits_with_one_line
def main() -> None:
    """Print everything that a bug report needs."""
    print("\n".join(report()))


def report() -> list[str]:
    """The lines that `xgblora-env` prints.

    Raises:
        InputError: an environment variable of xgblora is wrong.
    """
    lines = [f"{name} {version or 'not installed'}" for name, version in versions().items()]
    lines += ["", memory(), *devices(), "", f"extension: {extension().state}"]
    device_types = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device_type in device_types:
        for operation in ops.operations():
            choice = ops.choose(operation, device_type)
            lines.append(f"{operation} on {device_type}: {choice.backend} ({choice.reason})")
    lines += ["", *(f"{name}={value}" for name, value in environment_variables())]
    return lines


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
