"""What this device can do at most, measured once a session: bytes copied a second, and FLOP/s of a large product."""

from functools import cache

import torch

from benchmarks.clock import seconds_of


@cache
def bytes_per_second(device: torch.device) -> float:
    """Bytes read and written a second by a copy that fits in no cache."""
    size = 1 << (30 if device.type == "cuda" else 28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


@cache
def flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product of `dtype`."""
    size = 8192 if device.type == "cuda" else 2048
    left = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(left)
    return 2 * size**3 / _best(lambda: torch.mm(left, left, out=out), device)


def _best(call, device: torch.device) -> float:
    """The least seconds of five calls: a ceiling is what the device does when nothing is in its way."""
    return min([seconds_of(call, device) for _ in range(6)][1:])
