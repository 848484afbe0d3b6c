"""Measure on a GPU which plan of `rank1_linear` is fastest for which shape, and write `kernels/tuning_table.json`.

    python scripts/tune_kernels.py --models opt-350m llama-2-7b --rows 256 1024 4096

For each shape the candidates are the default, the vendor GEMM with its pass, one kernel for few rows with several
tiles, and fused GEMMs with several tiles, warps and stages. A candidate that does not run, or whose result is not as
accurate as eager code in the same dtype, is left out, and a line says so. The others are timed by turns, from CUDA
graphs, each call on another copy of the weight so that none is in the cache; the best few are timed again, and that
second time alone decides. An entry is written where the best one takes at least `--margin` less than the default. What
the table has of other architectures, and of shapes that were not measured, stays. It is written after every shape.

`--minutes` stops in time: the plans that are most likely to be fastest are tried first, `--candidates` of them, and a
shape that would not be finished is left out, so that what was measured is worth writing.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch

from xgblora.spelling import dtype_name

# for `benchmarks`, which is not installed
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.by_turns import seconds_by_turns
from benchmarks.clock import timer_of
from xgblora.atomic_file import write_text
from xgblora.environment import versions
from xgblora.errors import InputError, check_not_negative
from xgblora.kernels.tuning import (
    FEW_ROWS,
    FUSED_GEMM,
    TABLE_FILE,
    VENDOR_GEMM,
    Key,
    Plan,
    architecture_of,
    default_plan,
    read_entries,
    row_bucket,
)

# width, width of keys and values, width of the feed-forward layers, as published
MODELS = {
    "opt-125m": (768, 768, 3072),
    "opt-350m": (1024, 1024, 4096),
    "opt-1.3b": (2048, 2048, 8192),
    "opt-2.7b": (2560, 2560, 10240),
    "opt-6.7b": (4096, 4096, 16384),
    "opt-13b": (5120, 5120, 20480),
    "opt-30b": (7168, 7168, 28672),
    "llama-2-7b": (4096, 4096, 11008),
    "llama-2-13b": (5120, 5120, 13824),
    "llama-3-8b": (4096, 1024, 14336),
}
LAYERS = ("attention", "feed_forward")
DTYPES = ("bfloat16", "float16", "float32")
ROWS = (1, 16, 256, 1024, 4096)
MARGIN = 0.03
# of the first measurement and of the one that decides
ROUNDS, FINAL_ROUNDS = 5, 25
FINALISTS = 3
VENDOR = Plan(VENDOR_GEMM)
# few rows: past this, tiles of 16 rows read the weight too often to be worth a measurement
MOST_FEW_ROWS = 64

Measure = Callable[[Sequence[Plan], int], dict[Plan, float]]


@dataclass(frozen=True)
class Shape:
    """M rows through a weight [N, K] in a dtype."""

    dtype: torch.dtype
    rows: int
    outputs: int
    inputs: int

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)} {self.rows} x {self.inputs} -> {self.outputs}"


@dataclass(frozen=True)
class Found:
    """What was measured last: the seconds of the fastest plan, of the default and of the vendor GEMM."""

    plan: Plan
    seconds: float
    default_seconds: float
    vendor_seconds: float

    def beats_default(self, margin: float) -> bool:
        """Whether the fastest plan takes at least `margin` less than the default."""
        return self.seconds < self.default_seconds * (1 - margin)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="whose layers (default: all)")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=["attention"])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="row counts, powers of two")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--margin", type=float, default=MARGIN, help="by how much a plan must beat the default")
    parser.add_argument("--candidates", type=int, default=0, help="how many plans a shape, the likeliest (0: all)")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop in time (0: when all is measured)")
    parser.add_argument("--output", type=Path, default=TABLE_FILE, help="the table (default: the one that is read)")
    arguments = parser.parse_args(given)
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device: tuning is for a machine with a GPU")
    try:
        for name in ("margin", "candidates", "minutes"):
            check_not_negative(f"--{name}", getattr(arguments, name))
        shapes = shapes_of(arguments.models, arguments.layers, arguments.rows, arguments.dtypes)
        old = read_entries(arguments.output) if arguments.output.exists() else []
        about, measured = circumstances(), {}
        began, longest = time.monotonic(), 0.0
        for count, shape in enumerate(shapes):
            shape_began = time.monotonic()
            if arguments.minutes and shape_began + longest > began + 60 * arguments.minutes:
                print(f"the time is up: {len(shapes) - count} of {len(shapes)} shapes were not measured")
                break
            measured[shape] = tune(shape, arguments.candidates)
            longest = max(longest, time.monotonic() - shape_began)
            write_text(arguments.output, table_text(old, measured, arguments.margin, about))
        print(f"{len(read_entries(arguments.output))} entries: {arguments.output}")
    except InputError as error:
        sys.exit(f"error: {error}")


def shapes_of(models: Sequence[str], layers: Sequence[str], rows: Sequence[int], dtypes: Sequence[str]) -> list[Shape]:
    """Every shape once.

    Raises:
        InputError: a row count is no power of two: the table has entries for those.
    """
    for count in rows:
        if count < 1 or row_bucket(count) != count:
            raise InputError(f"--rows {count}: must be powers of two, such as 1 16 1024")
    weights = {}
    for width, narrow, wide in map(MODELS.get, models):
        if "attention" in layers:
            weights |= dict.fromkeys([(width, width), (narrow, width)])
        if "feed_forward" in layers:
            weights |= dict.fromkeys([(wide, width), (width, wide)])
    return [Shape(getattr(torch, dtype), count, *weight) for dtype, weight, count in product(dtypes, weights, rows)]


def candidates(shape: Shape, shared_memory: int) -> list[Plan]:
    """The default, the vendor GEMM, and every other plan whose tiles fit into `shared_memory` bytes.

    The likeliest come first: tiles of 128 x 128 to 256, which reuse most of what they read, deep pipelines.
    """
    plans = [default_plan(shape.rows), VENDOR]
    if shape.rows == 1:
        plans += [
            Plan(FEW_ROWS, 1, block_n, block_k, num_warps)
            for block_k, block_n, num_warps in product((512, 1024, 256), (8, 4, 16), (4, 8))
        ]
    elif shape.rows <= MOST_FEW_ROWS:
        plans += [
            Plan(FEW_ROWS, 16, block_n, block_k, num_warps, num_stages)
            for num_stages, block_k, block_n, num_warps in product((4, 3), (128, 256, 64), (16, 32, 64), (4, 2))
        ]
    if shape.rows > MOST_FEW_ROWS // 2:
        plans += [
            Plan(FUSED_GEMM, block_m, block_n, block_k, num_warps, num_stages)
            for block_k, block_m, num_stages, block_n, num_warps in product(
                (64, 32), (128, 64), (3, 4), (256, 128, 64), (8, 4)
            )
        ]
    size = shape.dtype.itemsize
    return [plan for plan in dict.fromkeys(plans) if tile_bytes(plan, size) <= shared_memory]


def tile_bytes(plan: Plan, size: int) -> int:
    """Bytes that the pipeline of `plan` keeps on the chip, of elements of `size` bytes; a single row keeps none."""
    return 0 if plan.block_m == 1 else plan.num_stages * (plan.block_m + plan.block_n) * plan.block_k * size


def search(plans: Sequence[Plan], default: Plan, measure: Measure) -> Found:
    """The fastest of `plans`, which must have `default` and `VENDOR`.

    The fastest of many noisy medians is one that was lucky, so the best of a first measurement are measured again.
    """
    first = measure(plans, ROUNDS)
    best = sorted(plans, key=first.__getitem__)[:FINALISTS]
    last = measure(list(dict.fromkeys([default, VENDOR, *best])), FINAL_ROUNDS)
    plan = min(last, key=last.__getitem__)
    return Found(plan, last[plan], last[default], last[VENDOR])


def medians_by_turns(ways: dict[Plan, Callable[[], float]], rounds: int) -> dict[Plan, float]:
    """The median of what each way gives, by turns."""
    return {plan: statistics.median(values) for plan, values in seconds_by_turns(ways, rounds).items()}


def is_accurate(result: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor) -> bool:
    """The rule of the tests: an error below twice that of eager code in the same dtype, both against fp64."""
    error, allowed = ((value.double() - exact).abs().max().item() for value in (result, eager))
    return error < 2 * allowed + 1e-6 * max(1.0, exact.abs().max().item())


def table_text(
    old: Sequence[tuple[Key, Plan, dict]], measured: dict[Shape, Found], margin: float, about: dict[str, object]
) -> str:
    """The table with what was measured: entries of the same keys are replaced, or go if the default is as good now.

    Args:
        old: the entries that the table has.
        measured: what was found for each shape.
        margin: by how much a plan must beat the default.
        about: "architecture", and what else an entry says of where it was measured.
    """
    entries = {key: {**asdict(key), "plan": asdict(plan), **rest} for key, plan, rest in old}
    for shape, found in measured.items():
        dtype = dtype_name(shape.dtype)
        key = Key("rank1_linear", about["architecture"], dtype, shape.rows, shape.outputs, shape.inputs)
        entries.pop(key, None)
        if found.beats_default(margin):
            seconds = {"plan": found.seconds, "default": found.default_seconds, "vendor_gemm": found.vendor_seconds}
            microseconds = {name: round(value * 1e6, 2) for name, value in seconds.items()}
            entries[key] = {**asdict(key), "plan": asdict(found.plan), **about, "microseconds": microseconds}
    ordered = sorted(entries.items(), key=lambda item: tuple(asdict(item[0]).values()))
    lines = ",".join(f"\n  {json.dumps(entry)}" for _, entry in ordered)
    return f'{{\n "entries": [{lines}{chr(10) + " " if lines else ""}]\n}}\n'


def circumstances() -> dict[str, object]:
    """What an entry says of where it was measured."""
    device = torch.device("cuda", torch.cuda.current_device())
    installed = versions()
    return {
        "architecture": architecture_of(device),
        "gpu": torch.cuda.get_device_name(device),
        "versions": {"cuda": torch.version.cuda, **{name: installed[name] for name in ("torch", "triton")}},
    }


def tune(shape: Shape, most: int = 0) -> Found:
    """Check and time the candidates for `shape`, the first `most` of them, on the current GPU, and print a line."""
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    default = default_plan(shape.rows)
    # beside the default and the vendor's
    plans = candidates(shape, facts.shared_memory_per_block_optin)[: most + 2 if most else None]
    ways = dict(runnable(shape, plans, facts.L2_cache_size))
    for plan in (default, VENDOR):
        if plan not in ways:
            raise InputError(f"{shape}: {plan.path}, which must always run, does not; see the lines above")
    found = search(list(ways), default, lambda plans, rounds: medians_by_turns({p: ways[p] for p in plans}, rounds))
    print(
        f"{shape}: {found.plan} {found.seconds * 1e6:.1f} us, default {found.default_seconds * 1e6:.1f}, "
        f"vendor GEMM {found.vendor_seconds * 1e6:.1f} ({len(ways)} plans)"
    )
    return found


def runnable(shape: Shape, plans: Sequence[Plan], cache_bytes: int) -> Iterator[tuple[Plan, Callable[[], float]]]:
    """The plans that run here and are accurate, each with a function that gives the seconds of one call."""
    from xgblora.kernels.rank1_linear import linear_by
    from xgblora.ops.eager import eager

    device, groups = torch.device("cuda"), 2 if shape.rows > 1 else 1
    generator = torch.Generator(device).manual_seed(0)

    def normals(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device).to(shape.dtype)

    x, bias = normals(shape.rows, shape.inputs), normals(shape.outputs)
    a, b = normals(groups, shape.inputs), normals(groups, shape.outputs)
    bytes_each = shape.outputs * shape.inputs * shape.dtype.itemsize
    copies = min(64, 1 + 2 * cache_bytes // bytes_each)
    weights = [normals(shape.outputs, shape.inputs) * shape.inputs**-0.5 for _ in range(copies)]
    # the vendor's fp32 is fp32, as it is without a setting
    reference = eager("rank1_linear")(x, weights[0], bias, a, b, 0.7)
    t = (x.double().view(groups, -1, shape.inputs) * a.double().unsqueeze(1)).sum(2, keepdim=True)
    exact = x.double() @ weights[0].double().T + bias.double()
    exact += (0.7 * t * b.double().unsqueeze(1)).view_as(exact)
    pool = torch.cuda.graph_pool_handle()

    def run(plan: Plan, weight: torch.Tensor) -> torch.Tensor:
        return linear_by(plan, x, weight, bias, a, b, 0.7)

    for plan in plans:
        try:
            if not is_accurate(run(plan, weights[0]), reference, exact):
                print(f"{shape}: {plan} is not accurate and is left out")
                continue
            timer = timer_of([partial(run, plan, weight) for weight in weights], device, pool)
            if timer.obstacle:
                # its launches would be compared with graphs
                raise RuntimeError(timer.obstacle)
        except Exception as error:  # a compiler's, a driver's: what a plan that does not fit raises differs by version
            print(f"{shape}: {plan} does not run and is left out ({type(error).__name__}: {str(error)[:100]!r})")
            continue
        yield plan, timer.seconds


if __name__ == "__main__":
    main()
