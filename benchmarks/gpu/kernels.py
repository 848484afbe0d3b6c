"""Stage: each operation against the least that it can cost, the device's own seconds of a call.

`rank1_linear` and its backward are held against the bare product, what moves bytes against a copy of as many bytes in
the same run. Every call of a measurement has other weights, or other rows where rows are what is read, up to 64 of
them: more than the cache holds, but for `row_dots` of few rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.by_turns import ratios, seconds_by_turns
from benchmarks.clock import timer_of
from benchmarks.gpu.stages import Part, Setting
from xgblora import ops
from xgblora.ops.choice import choose
from xgblora.ops.merge_rank1 import ROUNDINGS
from xgblora.ops.update import RULES

ROUNDS = 15
# what a measurement goes through, so that nothing of it is in a cache when its turn comes again
CACHE_BYTES = 256 << 20
MOST_COPIES = 64
ROWS, WIDTHS = (16, 1024, 4096), (1024, 2048, 4096)
Calls = Sequence[Callable[[], object]]


def parts(setting: Setting) -> Iterable[Part]:
    """What the README promises first: many rows and few at 4,096, and the merge."""
    device = torch.device(setting.device_type)
    dtype = torch.float32 if setting.tiny else torch.bfloat16
    shapes = [(4, 32)] if setting.tiny else sorted(product(ROWS, WIDTHS), key=lambda shape: -shape[1])
    arena = 1_000 if setting.tiny else 2_600_000
    weight = 48 if setting.tiny else 16384
    rounds = 2 if setting.tiny else ROUNDS
    yield Part("rank1_linear", lambda: linears(device, dtype, shapes, rounds), 4, 40)
    yield Part("merge_rank1_", lambda: merges(device, dtype, weight, rounds), 3, 40)
    yield Part("perturb", lambda: perturbs(device, dtype, arena, rounds), 2, 30)
    yield Part("update_", lambda: updates(device, arena, rounds), 2, 30)
    yield Part("rank1_linear_backward", lambda: backwards(device, dtype, shapes, rounds), 4, 40)
    yield Part("row_dots", lambda: dots(device, dtype, shapes, rounds), 3, 30)


def timed(
    operation: str,
    case: str,
    floor: str,
    ways: dict[str, Calls],
    device: torch.device,
    rounds: int,
    *,
    capture: bool = True,
) -> dict:
    """A record: microseconds of each way, and of `ours` over every other, the median of the ratios within rounds."""
    for calls in ways.values():
        for call in calls:
            call()
    timers = {name: timer_of(calls, device, capture=capture) for name, calls in ways.items()}
    obstacles = {name: timer.obstacle for name, timer in timers.items() if timer.obstacle}
    if obstacles:
        # a graph and calls that are launched one by one are not compared
        timers = {name: timer_of(calls, device, capture=False) for name, calls in ways.items()}
    seconds = seconds_by_turns({name: timer.seconds for name, timer in timers.items()}, rounds)
    record = {
        "timing": operation,
        "case": case,
        "floor": floor,
        "microseconds": {name: round(float(np.median(values)) * 1e6, 3) for name, values in seconds.items()},
        "ours_over": {name: round(value, 4) for name, value in ratios(seconds, "ours").items()},
    }
    # launches count then: that is a failure of the measurement
    return {**record, "passed": False, "detail": f"not captured: {obstacles}"} if obstacles else record


def copies_of(size: int) -> int:
    """How many tensors of `size` bytes are more than a cache holds."""
    return max(1, min(MOST_COPIES, -(-CACHE_BYTES // max(size, 1))))


def linears(device: torch.device, dtype: torch.dtype, shapes: list, rounds: int) -> Iterator[dict]:
    """M rows through a square weight, for one adapter and for the two of a paired step."""
    for (rows, width), groups in product(shapes, (1, 2)):
        x, weights, a, b = _linear(device, dtype, rows, width, groups)

        def unfused(weight, x=x, a=a, b=b):
            t = torch.bmm(x.view(len(a), -1, x.shape[1]), a.unsqueeze(2))
            return F.linear(x, weight) + (2.0 * t * b.unsqueeze(1)).view(x.shape[0], -1)

        result, expected = ops.rank1_linear(x, weights[0], None, a, b, 2.0), unfused(weights[0])
        case = f"M={rows} K=N={width} G={groups}"
        yield {"check": "as unfused", "case": case, "passed": torch.allclose(result, expected, rtol=5e-2, atol=0.25)}
        ways = {
            "ours": [lambda w=w, x=x, a=a, b=b: ops.rank1_linear(x, w, None, a, b, 2.0) for w in weights],
            "floor": [lambda w=w, x=x: F.linear(x, w) for w in weights],
            "unfused": [lambda w=w, unfused=unfused: unfused(w) for w in weights],
        }
        yield {**timed("rank1_linear", case, "the bare product", ways, device, rounds), "rows": rows, "width": width}


def backwards(device: torch.device, dtype: torch.dtype, shapes: list, rounds: int) -> Iterator[dict]:
    """dx, da and db, against the product for dx alone: the weight is frozen."""
    backward = choose("rank1_linear_backward", device.type).function
    for rows, width in shapes:
        x, weights, a, b = _linear(device, dtype, rows, width, 1)
        grad = torch.randn(rows, width, device=device).to(dtype)
        ways = {
            "ours": [lambda w=w, x=x, a=a, b=b, g=grad: backward(g, x, w, a, b, 2.0, True) for w in weights],
            "floor": [lambda w=w, g=grad: g @ w for w in weights],
        }
        yield timed("rank1_linear_backward", f"M={rows} K=N={width}", "the bare product", ways, device, rounds)


def dots(device: torch.device, dtype: torch.dtype, shapes: list, rounds: int) -> Iterator[dict]:
    """x . a of three adapters that read the same rows, against a copy of half of x: as many bytes are moved."""
    for rows, width in shapes:
        size = rows * width * dtype.itemsize
        inputs = [torch.randn(rows, width, device=device).to(dtype) for _ in range(copies_of(size))]
        adapters = [torch.randn(1, width, device=device).to(dtype) for _ in range(3)]
        together = torch.cat(adapters).T.contiguous()
        ways = {
            "ours": [lambda x=x, adapters=adapters: ops.row_dots(x, adapters) for x in inputs],
            "floor": _copies(size, len(inputs), device),
            "product": [lambda x=x, together=together: x @ together for x in inputs],
        }
        yield timed("row_dots", f"M={rows} K={width}, 3 adapters", "a copy of the bytes", ways, device, rounds)


def perturbs(device: torch.device, dtype: torch.dtype, size: int, rounds: int) -> Iterator[dict]:
    """Both signs of one direction: 4 bytes an element are read, those of two elements of `live` written."""
    moved = size * (4 + 2 * dtype.itemsize)
    count = copies_of(moved)
    masters = [torch.randn(size, device=device) for _ in range(count)]
    lives = [torch.empty(2, size, dtype=dtype, device=device) for _ in range(count)]
    seed, eps = torch.tensor([7], device=device), torch.tensor([1e-3], device=device)
    signs = torch.tensor([1.0, -1.0], device=device)
    for distribution in ("gaussian", "rademacher"):
        ours = [
            lambda m=master, v=live, d=distribution: ops.perturb(m, v, seed, eps, signs, distribution=d)
            for master, live in zip(masters, lives, strict=True)
        ]
        ways = {"ours": ours, "floor": _copies(moved, count, device)}
        yield timed("perturb", f"{size} values, {distribution}", "a copy of the bytes", ways, device, rounds)


def updates(device: torch.device, size: int, rounds: int) -> Iterator[dict]:
    """One direction: `master` and what the rule remembers are read and written."""
    seed, one = torch.tensor([7], device=device), torch.ones(1, device=device)
    # tensors, as a step has them: a number would be copied to the device, which a graph cannot hold
    numbers = {"lr": 1e-4 * one, "weight_decay": 0.0 * one}
    for rule, (names, factors) in RULES.items():
        moved = 8 * size * (1 + len(names))
        count = copies_of(moved)
        of_rule = torch.tensor([0.9, 0.1, 0.999, 0.001, 1e-8, 1.0, 1.0][:factors], device=device)
        given = {"optimizer": rule, **numbers, **({"factors": of_rule} if factors else {})}
        ours = []
        for _ in range(count):
            state = {name: torch.zeros(size, device=device) for name in names}
            master = torch.randn(size, device=device)
            ours.append(lambda m=master, state=state, given=given: ops.update_(m, seed, one, **given, **state))
        ways = {"ours": ours, "floor": _copies(moved, count, device)}
        yield timed("update_", f"{size} values, {rule}", "a copy of the bytes", ways, device, rounds)


def merges(device: torch.device, dtype: torch.dtype, width: int, rounds: int) -> Iterator[dict]:
    """Eight layers at once: each weight, and each remainder, is read and written."""
    weights = [torch.randn(width, width, device=device).to(dtype) for _ in range(8)]
    pairs = [(torch.randn(width, device=device) * 1e-3, torch.randn(width, device=device)) for _ in weights]
    for rounding in ROUNDINGS:
        remainders = ops.new_remainders(weights) if rounding == "remainder" else None
        moved = sum(2 * tensor.numel() * tensor.element_size() for tensor in [*weights, *(remainders or [])])

        def merge(rounding=rounding, remainders=remainders):
            ops.merge_rank1_(weights, pairs, 0.1, rounding, remainders=remainders, seed=3)

        # the table of layers is copied from memory that is not pinned, which a graph must not hold; of four calls that
        # take milliseconds each, making the table for the first is all that the device waits for
        ways = {"ours": [merge] * 4, "floor": _copies(moved, 1, device) * 4}
        case = f"8 x {width} x {width}, {rounding}"
        yield timed("merge_rank1_", case, "a copy of the bytes", ways, device, rounds, capture=False)


def _linear(device: torch.device, dtype: torch.dtype, rows: int, width: int, groups: int) -> tuple:
    def normals(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device=device) * scale).to(dtype)

    count = copies_of(width * width * dtype.itemsize)
    weights = [normals(width, width, scale=width**-0.5) for _ in range(count)]
    return normals(rows, width), weights, normals(groups, width, scale=width**-0.5), normals(groups, width)


def _copies(moved: int, count: int, device: torch.device) -> list[Callable[[], object]]:
    """Calls that each move `moved` bytes, reading half of them and writing half."""
    half = max(1, moved // 2)
    sources = [torch.ones(half, dtype=torch.uint8, device=device) for _ in range(count)]
    targets = [torch.empty_like(source) for source in sources]
    return [lambda t=target, s=source: t.copy_(s) for target, source in zip(targets, sources, strict=True)]
