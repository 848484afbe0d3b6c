"""The rank-1 term of rows that each name their adapter: `t[m] = x[m] . a[g]` and `y[m] += scale * t[m] * b[g]`.

The kernels of equal groups read one vector a tile. Here each row of a tile reads its own, so a tile asks for up to
twice the memory; neighbouring rows mostly share an adapter, whose vector is then in cache. One number serves
`rows_per_entry` neighbouring rows. The product with the weight is the vendor's.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from xgblora.kernels.rounding import round_to
from xgblora.kernels.row_dot import adjacent, as_rows

BLOCK_M = 4
BLOCK_K = 512
BLOCK_N = 512


@triton.jit(do_not_specialize=["rows", "rows_per_entry"])
def row_dots_by_row_fwd_kernel(
    x_ptr, a_ptr, t_ptr, group_ptr, rows, rows_per_entry, width, a_stride, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr
):
    """t of BLOCK_M rows."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_m = row < rows
    group = tl.load(group_ptr + row // rows_per_entry, mask=inside_m, other=0).to(tl.int64)
    x_row, a_row = x_ptr + row.to(tl.int64)[:, None] * width, a_ptr + group[:, None] * a_stride
    partial = tl.full((BLOCK_M, BLOCK_K), 0.0, tl.float32)
    for start in range(0, width, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)[None, :]
        mask = inside_m[:, None] & (column < width)
        x = tl.load(x_row + column, mask=mask, other=0.0).to(tl.float32)
        partial += x * tl.load(a_row + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(t_ptr + row, tl.sum(partial, axis=1), mask=inside_m)


@triton.jit(do_not_specialize=["rows", "rows_per_entry"])
def rank1_pass_by_row_fwd_kernel(
    y_ptr,
    t_ptr,
    b_ptr,
    group_ptr,
    scale,
    rows,
    rows_per_entry,
    width,
    b_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of y; program_id(0) counts the row blocks, program_id(1) the columns."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_m = row < rows
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    mask = inside_m[:, None] & (column < width)
    group = tl.load(group_ptr + row // rows_per_entry, mask=inside_m, other=0).to(tl.int64)
    t = tl.load(t_ptr + row, mask=inside_m, other=0.0)
    b = tl.load(b_ptr + group[:, None] * b_stride + column, mask=mask, other=0.0).to(tl.float32)
    pointers = y_ptr + row.to(tl.int64)[:, None] * width + column
    y = tl.load(pointers, mask=mask, other=0.0).to(tl.float32) + (scale * t)[:, None] * b
    tl.store(pointers, round_to(y, y_ptr.dtype.element_ty), mask=mask)


def row_dots_by_row(x: Tensor, a: Sequence[Tensor], group_of_row: Tensor) -> Tensor:
    """x . a for every row and adapter, fp32 [A, M], one launch an adapter.

    Args:
        x: [..., K], M rows.
        a: A adapters [G, K], the dtype of `x` or fp32.
        group_of_row: int32 [R], R a divisor of M: the adapter of M / R neighbouring rows.
    """
    x, group_of_row = as_rows(x), group_of_row.contiguous()
    rows, width = x.shape
    t = torch.zeros((len(a), rows), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return t
    with torch.cuda.device_of(x):
        for of_adapter, vectors in zip(t, map(adjacent, a), strict=True):
            row_dots_by_row_fwd_kernel[(triton.cdiv(rows, BLOCK_M),)](
                x,
                vectors,
                of_adapter,
                group_of_row,
                rows,
                rows // group_of_row.numel(),
                width,
                vectors.stride(0),
                BLOCK_M=BLOCK_M,
                BLOCK_K=BLOCK_K,
                enable_fp_fusion=True,
            )
    return t


def rank1_linear_by_row(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    group_of_row: Tensor,
    t: Tensor | None = None,
) -> Tensor:
    """y [..., N]; arguments as of `torch.ops.xgblora.rank1_linear_by_row`."""
    rows = as_rows(x)
    y = F.linear(rows, weight, bias)
    t = row_dots_by_row(rows, [a], group_of_row)[0] if t is None else t
    _add_rank1_(y, t, b, scale, group_of_row)
    return y.view(*x.shape[:-1], weight.shape[0])


def rank1_linear_by_row_backward(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, group_of_row: Tensor, need_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (empty [0] unless `need_dx`), da and db; arguments as of `torch.ops.xgblora.rank1_linear_by_row_backward`."""
    rows, grads = as_rows(x), as_rows(grad)
    t, u = (row_dots_by_row(of, [by], group_of_row)[0] for of, by in ((rows, a), (grads, b)))
    da, db = _sums(u, rows, scale, a, group_of_row), _sums(t, grads, scale, b, group_of_row)
    if not need_dx:
        return x.new_empty(0), da, db
    dx = torch.matmul(grads, weight)
    _add_rank1_(dx, u, a, scale, group_of_row)
    return dx.view(x.shape), da, db


def _add_rank1_(y: Tensor, t: Tensor, b: Tensor, scale: float, group_of_row: Tensor) -> None:
    """y[m] += scale * t[m] * b[group of m], in place, of a contiguous `y` [M, N]."""
    rows, width = y.shape
    if y.numel() == 0:
        return
    b, group_of_row = adjacent(b), group_of_row.contiguous()
    with torch.cuda.device_of(y):
        rank1_pass_by_row_fwd_kernel[(triton.cdiv(rows, BLOCK_M), triton.cdiv(width, BLOCK_N))](
            y,
            t,
            b,
            group_of_row,
            scale,
            rows,
            rows // group_of_row.numel(),
            width,
            b.stride(0),
            BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N,
            enable_fp_fusion=True,
        )


def _sums(factors: Tensor, rows: Tensor, scale: float, like: Tensor, group_of_row: Tensor) -> Tensor:
    """scale * the sum of factors[m] * rows[m] over the rows of each group, [G, K], in an order that is fixed."""
    entries = max(group_of_row.numel(), 1)
    index = group_of_row.long().repeat_interleave(rows.shape[0] // entries)
    shares = torch.zeros((like.shape[0], rows.shape[0]), dtype=torch.float32, device=rows.device)
    shares.scatter_(0, index.unsqueeze(0), factors.unsqueeze(0))
    return (shares @ rows.float()).mul_(scale).to(like.dtype)
