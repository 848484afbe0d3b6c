"""The time of calls: one with everything that it started on a GPU done, or many as a device alone spends on them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from xgblora.spelling import one_line
from xgblora.zo.cuda_recorder import end_broken_capture


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of `call`; the device is idle before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Timer:
    """Times the same calls again and again.

    Attributes:
        seconds: runs all calls; the device's seconds for one of them.
        obstacle: why the calls are no CUDA graph, so that launches count; empty where they are one, and on a CPU.
    """

    seconds: Callable[[], float]
    obstacle: str = ""


def timer_of(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    pool: tuple[int, int] | None = None,
    *,
    capture: bool = True,
) -> Timer:
    """A timer of `calls`: on a GPU a CUDA graph of them all, so that launching costs nothing.

    Calls that cannot be captured are launched one after the other between two events.

    Args:
        calls: each of other inputs, where inputs would stay in the cache; all ran before.
        device: where they run.
        pool: of the memory that graphs share.
        capture: False for calls that must not be captured; they should be long, or launching them counts.
    """
    if device.type != "cuda":
        return Timer(lambda: seconds_of(lambda: [call() for call in calls], device) / len(calls))
    launched = _between_events(lambda: [call() for call in calls], len(calls))
    if not capture:
        return Timer(launched)
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    pool = pool or torch.cuda.graph_pool_handle()
    try:
        with torch.cuda.graph(graph, pool=pool):
            for call in calls:
                # nobody keeps the result: the next call, and the next graph, may use its memory
                call()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        # a capture that breaks off leaves its own stream behind as the current one
        torch.cuda.set_stream(stream)
        end_broken_capture(device, pool)
        return Timer(launched, one_line(error, kind=True, limit=200))
    return Timer(_between_events(graph.replay, len(calls)))


def _between_events(run: Callable[[], object], count: int) -> Callable[[], float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds() -> float:
        # about a millisecond, in which the host launches what is timed: the device then goes through it without a gap
        torch.cuda._sleep(2_000_000)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / count

    return seconds
