"""Stage: which device this is, with which software, and what it can do at most."""

import importlib.util
import subprocess
from collections.abc import Iterable, Iterator

import torch

from benchmarks.ceilings import bytes_per_second, flops_per_second
from benchmarks.gpu.stages import Part, Setting
from benchmarks.record import device_name
from xgblora.environment import versions
from xgblora.ops.choice import choose
from xgblora.ops.eager import operations
from xgblora.ops.extension import extension
from xgblora.ops.host_extension import host_extension
from xgblora.ops.merge_rank1 import ROUNDINGS
from xgblora.spelling import dtype_name

# what the suite can do without, and what is lost then
OPTIONAL = {
    "datasets": "published data sets by name; files and the demonstration are read without it",
    "peft": "the comparison with PEFT's layer and the loading of exported adapters",
    "pytest": "stage gpu_tests",
    "triton": "all kernels but the merge",
}


def parts(setting: Setting) -> Iterable[Part]:
    """The facts first: they say what every other figure is of."""
    device = torch.device(setting.device_type)
    return [
        Part("facts", lambda: facts(device), 1, 40),
        Part("ceilings", lambda: ceilings(device, setting.tiny), 2, 40),
    ]


def facts(device: torch.device) -> Iterator[dict]:
    """Name, memory, driver, versions, what is missing, which implementation runs what."""
    yield {"fact": "device", "value": {"name": device_name(device), **(_gpu(device) if device.type == "cuda" else {})}}
    yield {"fact": "versions", "value": versions()}
    for package, loss in OPTIONAL.items():
        if not _is_here(package):
            yield {"fact": "missing", "value": f"{package} is not here; without it: {loss}"}
    found = extension()
    yield {"fact": "extension", "value": found.state}
    yield {"fact": "host extension", "value": host_extension().state}
    if found.module is not None and device.type == "cuda":
        for rounding in ROUNDINGS:
            yield {"fact": f"merge kernel, {rounding}", "value": found.module.merge_facts(rounding, 0)}
    for operation in operations():
        choice = choose(operation, device.type)
        yield {"fact": f"{operation} runs", "value": f"{choice.backend} ({choice.reason})"}
        if device.type == "cuda":
            # else eager code would be measured as ours
            passed = choice.backend != "eager"
            yield {"check": f"{operation} has a kernel", "case": choice.reason, "passed": passed}


def ceilings(device: torch.device, tiny: bool) -> Iterator[dict]:
    """Bytes a second of a copy, FLOP/s of a product of random matrices, measured."""
    copied, width = (1 << 20, 64) if tiny else (None, None)
    yield {"fact": "bytes_per_second", "value": bytes_per_second(device, copied)}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield {"fact": f"flops_per_second, {dtype_name(dtype)}", "value": flops_per_second(device, dtype, width)}


def _gpu(device: torch.device) -> dict:
    one = torch.cuda.get_device_properties(device)
    return {
        "memory_bytes": one.total_memory,
        "capability": f"{one.major}.{one.minor}",
        "multiprocessors": one.multi_processor_count,
        "l2_bytes": one.L2_cache_size,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str:
    """Version of the driver; read, nothing of the card is set."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def _is_here(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
