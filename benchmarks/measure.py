"""Timing two or more ways of doing one thing: interleaved, medians, ratios from the same run, checked and recorded.

`compare` is what a benchmark calls after it has checked its results. The ratios go to pytest-benchmark, to the results
file of this device (`benchmarks/record.py`), and against the limits of `benchmarks/guards.toml`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks import ceilings, guards, record
from benchmarks.by_turns import ratios, seconds_by_turns, warm_up
from benchmarks.clock import seconds_of


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the median, and the 20th and 80th percentile around it."""

    p20: float
    median: float
    p80: float


@dataclass(frozen=True)
class Work:
    """What a call has to do at least: bytes to and from memory, and floating-point operations in `dtype`."""

    bytes: float = 0.0
    flops: float = 0.0
    dtype: torch.dtype = torch.float32


def timings(ways: dict[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """The seconds of each way in each round. One call of each makes a round, so that all see the same machine."""
    for way in ways.values():
        warm_up(way, device)
    return seconds_by_turns({name: partial(seconds_of, way, device) for name, way in ways.items()}, rounds)


def compare(
    benchmark,
    ours: str,
    ways: dict[str, Callable[[], object]],
    *,
    rounds: int,
    device: torch.device,
    work: Work | None = None,
) -> None:
    """Time `ways` against each other and let pytest-benchmark time `ours`.

    `extra_info` gets `seconds_<way>` for every way, `ours_over_<way>` for every other way and, if `work` says what one
    call of `ours` has to do, `share_of_bandwidth` and `share_of_flops`: how much of this device's measured ceilings
    that is.

    Raises:
        AssertionError: a ratio is over its limit in `guards.toml`.
    """
    by_round = timings(ways, rounds=rounds, device=device)
    measured = {name: Timing(*np.percentile(values, (20, 50, 80)).tolist()) for name, values in by_round.items()}
    seconds = measured[ours].median
    info = {f"seconds_{name}": timing.median for name, timing in measured.items()}
    info |= {f"ours_over_{name}": ratio for name, ratio in ratios(by_round, ours).items()}
    if work is not None and work.bytes:
        info["share_of_bandwidth"] = work.bytes / seconds / ceilings.bytes_per_second(device)
    if work is not None and work.flops:
        info["share_of_flops"] = work.flops / seconds / ceilings.flops_per_second(device, work.dtype)
    benchmark.extra_info.update(info, device=str(device))
    record.add(benchmark.name, ours, measured, info, device)
    guards.check(benchmark.name, info, device)

    def run():
        ways[ours]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.pedantic(run, rounds=min(rounds, 5), warmup_rounds=1)
