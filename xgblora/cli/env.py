"""`xgblora-env`: the platform, the versions, and which implementation runs each operation and why."""

import os

import torch

from xgblora import ops
from xgblora.cli.exit import exits_with_one_line
from xgblora.environment import versions

VARIABLES = ("XGBLORA_BACKEND", "XGBLORA_STRICT", "TRITON_INTERPRET", "OMP_NUM_THREADS")


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
    lines += ["", *devices(), ""]
    device_types = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device_type in device_types:
        for operation in ops.operations():
            choice = ops.choose(operation, device_type)
            lines.append(f"{operation} on {device_type}: {choice.backend} ({choice.reason})")
    lines += ["", *(f"{name}={value}" for name, value in environment_variables())]
    return lines


def devices() -> list[str]:
    """One line for the CPU and one for each GPU."""
    lines = [f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        lines.append(
            f"cuda:{index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, sm_{facts.major}{facts.minor}, "
            f"CUDA {torch.version.cuda}"
        )
    return lines if torch.cuda.is_available() else [*lines, "cuda: no device"]


def environment_variables() -> list[tuple[str, str]]:
    """The variables that change how xgblora runs, with their values."""
    return [(name, os.environ.get(name, "(not set)")) for name in VARIABLES]
