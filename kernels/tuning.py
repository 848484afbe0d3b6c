"""Which path a shape takes and with which block sizes: a table of measurements and a rule for what is not in it.

No autotuning at import or at the first call: a search costs seconds for every new shape, runs again where the row count
changes from batch to batch, and makes two machines compute in different orders. What is here is in the repository, so
a run is the same everywhere.

`TABLE` is empty: an entry needs a measurement on the GPU it names. Without one, many rows take the vendor GEMM, which a
Triton GEMM has yet to be measured against.
"""

from dataclasses import dataclass
from functools import cache

import torch

FEW_ROWS = "few_rows"
VENDOR_GEMM = "vendor_gemm"
FUSED_GEMM = "fused_gemm"

# a matrix unit multiplies 16 rows at once; up to that many cost what one costs
MAX_FEW_ROWS = 16


@dataclass(frozen=True)
class Plan:
    """One path of `rank1_linear` and its launch: tile sizes, warps, pipeline stages, row blocks in a band of tiles."""

    path: str
    block_m: int = 0
    block_n: int = 0
    block_k: int = 0
    num_warps: int = 4
    num_stages: int = 3
    group_m: int = 8


# (operation, architecture, row bucket, N, K) -> Plan; measured, with the GPU and the figures in a comment above each
TABLE: dict[tuple[str, str, int, int, int], Plan] = {}


def plan_for(operation: str, architecture: str, rows: int, outputs: int, inputs: int) -> Plan:
    """The plan of `TABLE` for this shape, or the default of `default_plan`."""
    measured = TABLE.get((operation, architecture, row_bucket(rows), outputs, inputs))
    return measured or default_plan(rows)


def default_plan(rows: int) -> Plan:
    """One row: a matrix-vector kernel; few: one kernel; many: the vendor GEMM and a rank-1 pass."""
    if rows == 1:
        return Plan(FEW_ROWS, block_m=1, block_n=8, block_k=512)
    if rows <= MAX_FEW_ROWS:
        # 16 columns a program: a layer of 2,048 outputs then has 128 programs, about one a multiprocessor
        return Plan(FEW_ROWS, block_m=16, block_n=16, block_k=128)
    return Plan(VENDOR_GEMM)


def row_bucket(rows: int) -> int:
    """The smallest power of two that is not below `rows`."""
    return 1 << max(rows - 1, 0).bit_length()


@cache
def architecture_of(device: torch.device) -> str:
    """Architecture of a CUDA device, such as "sm_90"; "cpu" under the interpreter."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
