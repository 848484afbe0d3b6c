"""The versions that a run depends on, and the memory that it took."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import xgblora

PACKAGES = ("torch", "triton", "transformers", "datasets", "accelerate", "safetensors", "numpy", "peft")


def versions() -> dict[str, str | None]:
    """Version of xgblora, Python, the platform and each package; None where one is not installed."""
    found = {"xgblora": xgblora.__version__, "python": platform.python_version(), "platform": platform.platform()}
    return {**found, **{package: installed(package) for package in PACKAGES}}


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of the allocators of all GPUs on a GPU, else the largest resident set of this process; None: unknown."""
    if device.type == "cuda":
        # a model may lie on several; this process has taken nothing of the others
        return sum(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes if platform.system() == "Darwin" else 1024 * kibibytes


def free_memory() -> int | None:
    """Bytes of the host's memory that a process may take without others being moved out; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # only Linux has it
        return None
    kibibytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kibibytes is None else 1024 * int(kibibytes)


def installed(package: str) -> str | None:
    """Version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
