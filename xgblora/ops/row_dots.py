"""`row_dots`: the dot products of rows with the adapters of several layers, in one read of the rows.

    t[i, m] = x[m] . a_i[g]          row m of group g

Layers that read the same `x` (query, key and value projections) need one of these between them; `rank1_linear` takes
each layer's row of the result and gives the bits that it would give without.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from xgblora.errors import InputError
from xgblora.ops.backends.registry import registry
from xgblora.ops.choice import choose
from xgblora.ops.library import register
from xgblora.ops.rank1_by_row import check_group_of_row

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def row_dots(x: Tensor, a: Sequence[Tensor], group_of_row: Tensor | None = None) -> Tensor:
    """Dot products of the rows of `x` with A adapters; not differentiable.

    Args:
        x: [..., K], fp32, bf16 or fp16; its M rows, flattened, fall into G equal contiguous groups.
        a: A tensors [G, K], the dtype of `x` or fp32; their rows may be strided.
        group_of_row: None, or int32 [R], whose adapters the rows read, as of `rank1_linear`.

    Returns:
        fp32 [A, M], accumulated in fp32.

    Raises:
        InputError: there is no adapter, or shapes or dtypes do not fit together.
    """
    if isinstance(a, Tensor) or not len(a):
        raise InputError("row_dots: no adapter; a must be a list of [G, K], at least one")
    if x.ndim == 0 or x.dtype not in DTYPES:
        raise InputError(f"row_dots: x is {x.dtype} {tuple(x.shape)}: must be [..., K] of fp32, bf16 or fp16")
    rows, inputs = x.shape[:-1].numel(), x.shape[-1]
    groups = a[0].shape[0] if a[0].ndim == 2 else "G"
    for vectors in a:
        if vectors.shape != (groups, inputs):
            raise InputError(f"row_dots: an adapter is {tuple(vectors.shape)}, must be [{groups}, {inputs}]")
        if vectors.dtype not in (x.dtype, torch.float32):
            raise InputError(f"row_dots: an adapter is {vectors.dtype}: must be fp32, or {x.dtype} as x is")
        if groups == 0 or (group_of_row is None and rows % groups):
            raise InputError(f"{rows} rows do not fall into {groups} equal groups")
    if group_of_row is None:
        return torch.ops.xgblora.row_dots(x, list(a))
    check_group_of_row(group_of_row, rows, a[0].shape[0], x.device)
    return torch.ops.xgblora.row_dots_by_row(x, list(a), group_of_row)


def reads_dots(x: Tensor, weight: Tensor) -> bool:
    """Whether `rank1_linear` of these shapes reads dots that were made before; where it does not, they are wasted.

    The backend that runs `rank1_linear` says so. Eager code reads none: sharing made it no faster
    (benchmarks/NOTES.md).
    """
    backend = registry().backends.get(choose("rank1_linear", x.device.type).backend)
    return backend is not None and backend.reads_dots(x, weight)


def project(x: Tensor, a: Tensor) -> Tensor:
    """x . a for each row, fp32 [G, M/G, 1]."""
    return torch.bmm(x.reshape(a.shape[0], -1, x.shape[-1]).float(), a.float().unsqueeze(2))


def _row_dots(x: Tensor, a: list[Tensor]) -> Tensor:
    return torch.stack([project(x, vectors).view(-1) for vectors in a])


def _fake_row_dots(x, a):
    return x.new_empty((len(a), x.shape[:-1].numel()), dtype=torch.float32)


register("row_dots(Tensor x, Tensor[] a) -> Tensor", _row_dots, _fake_row_dots)
