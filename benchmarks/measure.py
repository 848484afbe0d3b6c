"""Timing two or more ways of doing one thing: interleaved, medians, ratios from the same run."""

import statistics
import time
from collections.abc import Callable

import torch


def medians(ways: dict[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each way. One call of each makes a round, so that all see the same state of the machine."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(_seconds(way, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(way: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(benchmark, ours: str, ways: dict[str, Callable[[], object]], *, rounds: int, device: torch.device) -> None:
    """Time `ways` against each other, store the ratios with the benchmark, and let pytest-benchmark time `ours`.

    `extra_info` gets `seconds_<way>` for every way and `ours_over_<way>` for every other way.
    """
    measured = medians(ways, rounds=rounds, device=device)
    for name, seconds in measured.items():
        benchmark.extra_info[f"seconds_{name}"] = seconds
        if name != ours:
            benchmark.extra_info[f"ours_over_{name}"] = measured[ours] / seconds
    benchmark.extra_info["device"] = str(device)

    def run():
        ways[ours]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)
