"""What this device can do at most, measured once a session: bytes copied a second, and FLOP/s of a large product."""

import time
from functools import cache

import torch

from benchmarks.clock import seconds_of


@cache
def bytes_per_second(device: torch.device, size: int | None = None) -> float:
    """Bytes read and written a second by a copy of `size` bytes; None is a size that fits in no cache."""
    size = size or 1 << (30 if device.type == "cuda" else 28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


@cache
def flops_per_second(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a square matrix product of `dtype`, `size` rows and columns; None is a size that fills the device."""
    size = size or (8192 if device.type == "cuda" else 2048)
    left = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(left)
    return 2 * size**3 / _best(lambda: torch.mm(left, left, out=out), device)


def _best(call, device: torch.device) -> float:
    """The least seconds of a call: a ceiling is what the device does when nothing is in its way.

    A GPU that was idle takes a while to raise its clock.
    """
    warm_until = time.perf_counter() + (0.2 if device.type == "cuda" else 0.0)
    seconds = [seconds_of(call, device) for _ in range(6)][1:]
    while time.perf_counter() < warm_until:
        seconds.append(seconds_of(call, device))
    return min(seconds)
