"""Stage: the zeroth-order step at published shapes, against its floor, two bare forwards, and against its peers."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.by_turns import ratios, seconds_by_turns, warm_up
from benchmarks.clock import seconds_of
from benchmarks.gpu.stages import Part, Setting
from benchmarks.step_ways import step_ways
from xgblora.spelling import dtype_name, one_line

LENGTH, ROUNDS, CALLS = 64, 15, 4


def parts(setting: Setting) -> Iterable[Part]:
    """The shape that the README's ratio is of first."""
    shapes, dtype = (("small",), torch.float32) if setting.tiny else (("opt-350m", "opt-1.3b"), torch.bfloat16)
    device = torch.device(setting.device_type)
    for shape in shapes:
        yield Part(shape, lambda shape=shape: step(shape, device, dtype, setting.tiny), 10, 75)


def step(shape: str, device: torch.device, dtype: torch.dtype, tiny: bool) -> Iterator[dict]:
    """Whether the losses agree and every way runs, then all ways by turns, a few calls of each a round."""
    length, rounds, calls = (8, 2, 1) if tiny else (LENGTH, ROUNDS, CALLS)
    made = step_ways(shape, device, dtype, length)
    yield {"check": "the forms' losses agree", "case": shape, "passed": not made.mismatch, "detail": made.mismatch}
    ways = dict(made.by_name)
    for name in list(ways):
        obstacle = warmed_up(ways[name], device)
        yield {"check": f"{name} runs", "case": shape, "passed": not obstacle, "detail": obstacle}
        if obstacle:
            # a peer that does not fit, say, takes nobody's figures away
            del ways[name]
    if device.type == "cuda":
        graphs = made.zo.graphs
        # the losses and the update
        captured = graphs is not None and len(graphs) == 2
        detail = getattr(graphs, "reason", None) or ""
        yield {"check": "the step is captured", "case": shape, "passed": captured, "detail": detail}
    if "step" in ways:
        case = f"{shape}, {dtype_name(dtype)}, 16 x {length} tokens"
        yield {**by_turns(ways, device, rounds, calls), "timing": "step", "case": case, "shape": shape}


def by_turns(ways: dict[str, Callable[[], object]], device: torch.device, rounds: int, calls: int) -> dict:
    """Microseconds of each way, and of ours over every other, the median of the ratios within rounds.

    Several calls go between two looks at the clock, as in training: what the host does for the next step is done while
    the device is still at the last one.
    """
    seconds = seconds_by_turns({name: partial(_seconds, way, calls, device) for name, way in ways.items()}, rounds)
    medians = {name: round(float(np.median(values)) * 1e6, 1) for name, values in seconds.items()}
    return {
        "floor": "two bare forwards",
        "microseconds": {"ours": medians.pop("step"), **medians},
        "ours_over": {name: round(value, 4) for name, value in ratios(seconds, "step").items()},
    }


def _seconds(way: Callable[[], object], calls: int, device: torch.device) -> float:
    """Of one of several calls."""
    return seconds_of(lambda: [way() for _ in range(calls)], device) / calls


def warmed_up(way: Callable[[], object], device: torch.device) -> str:
    """Call a way as often as it takes to be captured; why it cannot run, empty where it can."""
    try:
        warm_up(way, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:
        traceback.print_exc()
        return one_line(error, kind=True, limit=300)
    return ""
