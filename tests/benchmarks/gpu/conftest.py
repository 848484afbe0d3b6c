"""A results file as a GPU would leave it. Its figures are invented: they try the page, and nothing else."""

import copy

import pytest

STEP = {"ours": 9_000.0, "uncaptured": 16_000.0, "floor": 8_800.0, "mezo": 81_000.0, "mezo_same_rows": 44_000.0}
STEP |= {"floor_stacked": 8_700.0, "lozo": 52_000.0, "grzo": 60_000.0, "full": 21_000.0}


@pytest.fixture
def results() -> dict:
    """A sample of a results file."""
    return sample()


def sample() -> dict:
    """A run in which one check failed, one part hung and the last stage was left out."""
    step = {"name": "opt-350m", "state": "passed", "seconds": 30.0, "reason": "", "records": [timed("opt-350m", 1.0)]}
    larger = {**step, "name": "opt-1.3b", "records": [timed("opt-1.3b", 3.1)]}
    return copy.deepcopy(
        {
            "format": 1,
            "minutes": 8.0,
            "commit": "0123456789abcdef",
            "started": "2026-11-27T12:00Z",
            "rehearsal": False,
            "install": {"state": "installed", "seconds": 11.0},
            "stages": [
                stage("device", [part("facts", FACTS)]),
                stage("checks", [part("perturb, triton", CHECKS, "failed"), part("hangs", [], "hung")], "failed"),
                stage("step", [step, larger]),
                stage("kernels", [part("all", KERNELS)]),
                {**stage("tuning", [], "skipped"), "reason": "takes about 40 s, 3 s are left"},
            ],
        }
    )


def stage(name: str, parts: list[dict], state: str = "passed") -> dict:
    """A stage of the file."""
    return {
        **{"name": name, "title": name, "estimate": 10, "bound": 20, "state": state},
        **{"seconds": 5.0, "reason": "", "parts": parts},
    }


def part(name: str, records: list[dict], state: str = "passed") -> dict:
    """A part of a stage."""
    return {"name": name, "state": state, "seconds": 1.0, "reason": "because", "records": records, "output": None}


def timed(shape: str, factor: float) -> dict:
    """The record of a step."""
    over = {way: STEP["ours"] / time for way, time in STEP.items() if way != "ours"}
    return {
        "timing": "step",
        "case": f"{shape}, bfloat16, 16 x 64 tokens",
        "shape": shape,
        "floor": "two bare forwards",
        "microseconds": {way: factor * time for way, time in STEP.items()},
        "ours_over": over,
    }


def kernel(operation: str, case: str, ours: float, floor: float, **others: float) -> dict:
    """The record of an operation."""
    times = {"ours": ours, "floor": floor, **others}
    over = {way: ours / time for way, time in times.items() if way != "ours"}
    kind = "the bare product" if operation.startswith("rank1") else "a copy of the bytes"
    return {"timing": operation, "case": case, "floor": kind, "microseconds": times, "ours_over": over}


FACTS = [
    {"fact": "device", "value": {"name": "Sample GPU", "capability": "9.0"}},
    {"fact": "versions", "value": {"torch": "2.11.0", "triton": "3.6.0", "transformers": "5.17.0", "datasets": None}},
    {"fact": "bytes_per_second", "value": 3.0e12},
    {"fact": "flops_per_second, bfloat16", "value": 7.9e14},
]
CHECKS = [
    {"operation": "perturb", "backend": "triton", "case": "float32 [1]", "passed": True, "detail": "0 of 4 differ"},
    {
        **{"operation": "perturb", "backend": "triton", "case": "bfloat16 [1023] gaussian", "passed": False},
        **{"detail": "1 of 4092 values differ", "largest_error": 0.5, "where": "at [3, 7]: 1.5, not 1"},
    },
]
KERNELS = [
    *(
        kernel("rank1_linear", f"M={rows} K=N={width} G=1", 1.04 * floor, floor, unfused=1.4 * floor)
        for rows, width, floor in [(16, 4096, 12.0), (1024, 4096, 50.0), (4096, 4096, 190.0), (16, 1024, 6.0)]
    ),
    kernel("rank1_linear_backward", "M=4096 K=N=4096", 230.0, 190.0),
    kernel("row_dots", "M=4096 K=4096, 3 adapters", 14.0, 12.0, product=30.0),
    kernel("perturb", "2600000 values, gaussian", 9.0, 7.0),
    kernel("update_", "2600000 values, adam", 25.0, 21.0),
    kernel("merge_rank1_", "8 x 8192 x 8192, nearest", 760.0, 720.0),
    kernel("merge_rank1_", "8 x 8192 x 8192, remainder", 1600.0, 1430.0),
]
