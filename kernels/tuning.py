"""Which path a shape takes and with which block sizes: a table of measurements and a rule for what is not in it.

No autotuning at import or at the first call: a search costs seconds for every new shape, runs again where the row count
changes from batch to batch, and makes two machines compute in different orders. What is here is in the repository, so
a run is the same everywhere.

`tuning_table.json` is written by `scripts/tune_kernels.py` on a GPU and is empty until one has measured: without an
entry, many rows take the vendor GEMM, which a Triton GEMM has yet to be measured against.
"""

import json
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from xgblora.errors import InputError
from xgblora.spelling import dtype_name, one_line

TABLE_FILE = Path(__file__).with_name("tuning_table.json")

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


@dataclass(frozen=True)
class Key:
    """What a plan was measured for; `row_bucket` as `row_bucket` gives it, `outputs` and `inputs` are N and K."""

    operation: str
    architecture: str
    dtype: str
    row_bucket: int
    outputs: int
    inputs: int


# 0.2 us a look-up and not 5, as long as a launch; bounded because packed batches bring ever new row counts
@lru_cache(maxsize=4096)
def plan_for(operation: str, device: torch.device, dtype: torch.dtype, rows: int, outputs: int, inputs: int) -> Plan:
    """The measured plan for this shape, or the default of `default_plan`.

    Raises:
        InputError: the table is damaged.
    """
    key = Key(operation, architecture_of(device), dtype_name(dtype), row_bucket(rows), outputs, inputs)
    return table().get(key) or default_plan(rows)


def default_plan(rows: int) -> Plan:
    """One row: a matrix-vector kernel; few: one kernel; many: the vendor GEMM and a rank-1 pass."""
    if rows == 1:
        return Plan(FEW_ROWS, block_m=1, block_n=8, block_k=512)
    if rows <= MAX_FEW_ROWS:
        # 16 columns a program: a layer of 2,048 outputs then has 128 programs, about one a multiprocessor
        return Plan(FEW_ROWS, block_m=16, block_n=16, block_k=128)
    return Plan(VENDOR_GEMM)


@cache
def table() -> dict[Key, Plan]:
    """The measured plans, read once."""
    return {key: plan for key, plan, _ in read_entries(TABLE_FILE)}


def read_entries(path: Path) -> list[tuple[Key, Plan, dict[str, Any]]]:
    """`parse_entries` of a file.

    Raises:
        InputError: the file is missing or damaged; one line says where.
    """
    try:
        return parse_entries(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = one_line(error, kind=True)
        raise InputError(f"{path}: no table of measured plans ({reason}); install xgblora anew") from None


def parse_entries(text: str) -> list[tuple[Key, Plan, dict[str, Any]]]:
    """Key, plan and the rest (GPU, versions, microseconds) of every entry of a table.

    Raises:
        ValueError, KeyError, TypeError: an entry is no plan that can run, or comes twice.
    """
    found = [_parsed(entry) for entry in json.loads(text)["entries"]]
    keys = [key for key, _, _ in found]
    twice = [key for key in set(keys) if keys.count(key) > 1]
    if twice:
        raise ValueError(f"two plans for {twice[0]}")
    return found


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


def _parsed(entry: dict[str, Any]) -> tuple[Key, Plan, dict[str, Any]]:
    rest = dict(entry)
    key = Key(**{field.name: _typed(rest.pop(field.name), field) for field in fields(Key)})
    numbers = dict(rest.pop("plan"))
    plan = Plan(**{field.name: _typed(numbers.pop(field.name), field) for field in fields(Plan)})
    if numbers:
        raise ValueError(f"a plan has no {', '.join(numbers)}")
    _check(key, plan)
    return key, plan, rest


def _typed(value: Any, field: Any) -> Any:
    if type(value) is not field.type:
        raise TypeError(f"{field.name}={value!r} is no {field.type.__name__}")
    return value


def _check(key: Key, plan: Plan) -> None:
    """Raise ValueError unless the launch of `plan` computes what `key` asks for."""
    if plan.path not in (FEW_ROWS, VENDOR_GEMM, FUSED_GEMM):
        raise ValueError(f"path={plan.path!r} is none")
    if key.row_bucket < 1 or row_bucket(key.row_bucket) != key.row_bucket:
        raise ValueError(f"row_bucket={key.row_bucket} is no power of two")
    if plan.path == VENDOR_GEMM:
        return
    one_row = plan.path == FEW_ROWS and plan.block_m == 1
    if one_row and key.row_bucket != 1:
        raise ValueError(f"block_m=1 is for a single row, not {key.row_bucket}")
    # a matrix unit multiplies tiles of 16 and more
    smallest = 1 if one_row else 16
    for name, least in (("block_m", smallest), ("block_n", smallest), ("block_k", smallest), ("num_warps", 1)):
        size = getattr(plan, name)
        if size < least or row_bucket(size) != size:
            raise ValueError(f"{name}={size} is no power of two from {least} on")
    if plan.num_stages < 1 or plan.group_m < 1:
        raise ValueError(f"num_stages={plan.num_stages} and group_m={plan.group_m} must be 1 or more")
