"""Dot products of rows with the vectors of their group, `t[m] = x[m] . a[g]`, in fp32, for several adapters at once.

One read of x: M K elements for M K multiply-adds an adapter, far below what a chip computes for each byte, so the time
is that of the read, whether one adapter needs it or the three of a query, a key and a value projection. It is a kernel
of its own because a GEMM that made t itself would make it once in every tile of its N columns. Rows are tiled within
their group, so a program reads one vector a[g] and no gather.

The sums of one adapter have the same bits whatever stands beside it: each has partial sums [BLOCK_M, BLOCK_K] of its
own and the same sequence of fused multiply-adds and reductions, in tiles of the same layout.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_M = 4
BLOCK_K = 512
# adapters of a launch: the partial sums of each take 16 registers a thread
MAX_ADAPTERS = 4


@triton.jit
def _row_dots(
    x_ptr, a_ptrs, t_ptr, rows, rows_per_group, width, a_strides, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr
):
    """t of the BLOCK_M rows of one program; programs count the row blocks of group 0, then of group 1, ..."""
    blocks_per_group = (rows_per_group + BLOCK_M - 1) // BLOCK_M
    group = (tl.program_id(0) // blocks_per_group).to(tl.int64)
    row = (tl.program_id(0) % blocks_per_group) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_m = row < rows_per_group
    row = group * rows_per_group + row
    partials = ()
    for _ in tl.static_range(len(a_ptrs)):
        partials = partials + (tl.full((BLOCK_M, BLOCK_K), 0.0, tl.float32),)  # noqa: RUF005
    for start in range(0, width, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        inside_k = column < width
        mask = inside_m[:, None] & inside_k[None, :]
        x = tl.load(x_ptr + row[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
        sums = ()
        for i in tl.static_range(len(a_ptrs)):
            a = tl.load(a_ptrs[i] + group * a_strides[i] + column, mask=inside_k, other=0.0).to(tl.float32)
            sums = sums + (partials[i] + x * a[None, :],)  # noqa: RUF005
        partials = sums
    for i in tl.static_range(len(a_ptrs)):
        tl.store(t_ptr + i * rows + row, tl.sum(partials[i], axis=1), mask=inside_m)


@triton.jit(do_not_specialize=["rows", "rows_per_group"])
def row_dots_fwd_kernel(
    x_ptr, a_ptrs, t_ptr, rows, rows_per_group, width, a_strides, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr
):
    """t[i, m] = x[m] . a_i[group of m] for every adapter i."""
    _row_dots(x_ptr, a_ptrs, t_ptr, rows, rows_per_group, width, a_strides, BLOCK_M, BLOCK_K)


@triton.jit(do_not_specialize=["rows", "rows_per_group"])
def row_dots_bwd_kernel(
    x_ptr,
    a_ptr,
    t_ptr,
    inputs,
    a_stride,
    grad_ptr,
    b_ptr,
    u_ptr,
    outputs,
    b_stride,
    rows,
    rows_per_group,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """t[m] = x[m] . a[group of m] where program_id(1) is 0, u[m] = grad[m] . b[group of m] where it is 1."""
    if tl.program_id(1) == 0:
        _row_dots(x_ptr, (a_ptr,), t_ptr, rows, rows_per_group, inputs, (a_stride,), BLOCK_M, BLOCK_K)
    else:
        _row_dots(grad_ptr, (b_ptr,), u_ptr, rows, rows_per_group, outputs, (b_stride,), BLOCK_M, BLOCK_K)


def row_dots(x: Tensor, a: Sequence[Tensor]) -> Tensor:
    """x . a for every row and adapter, fp32 [A, M], in one launch for up to `MAX_ADAPTERS` of them.

    Args:
        x: [..., K]; its M rows, flattened, fall into G equal contiguous groups.
        a: A adapters [G, K], the dtype of `x` or fp32.
    """
    x, a = as_rows(x), [adjacent(vectors) for vectors in a]
    rows, width = x.shape
    if x.numel() == 0:
        return x.new_zeros((len(a), rows), dtype=torch.float32)
    t = torch.empty((len(a), rows), dtype=torch.float32, device=x.device)
    groups = a[0].shape[0]
    grid = (groups * triton.cdiv(rows // groups, BLOCK_M),)
    with torch.cuda.device_of(x):
        for first in range(0, len(a), MAX_ADAPTERS):
            together = a[first : first + MAX_ADAPTERS]
            row_dots_fwd_kernel[grid](
                x,
                tuple(together),
                t[first:],
                rows,
                rows // groups,
                width,
                tuple(vectors.stride(0) for vectors in together),
                BLOCK_M=BLOCK_M,
                BLOCK_K=BLOCK_K,
                enable_fp_fusion=True,
            )
    return t


def row_dots_of_both(x: Tensor, a: Tensor, grad: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """x . a and grad . b for every row, fp32 [M] each, in one launch.

    Args:
        x: [M, K], contiguous.
        a: [G, K], the elements of a row adjacent; row m of `x` belongs to group m // (M / G).
        grad: [M, N], contiguous.
        b: [G, N], as `a`.
    """
    rows = x.shape[0]
    groups = a.shape[0]
    t = torch.empty(rows, dtype=torch.float32, device=x.device)
    u = torch.empty_like(t)
    grid = (groups * triton.cdiv(rows // groups, BLOCK_M), 2)
    with torch.cuda.device_of(x):
        row_dots_bwd_kernel[grid](
            x,
            a,
            t,
            x.shape[1],
            a.stride(0),
            grad,
            b,
            u,
            grad.shape[1],
            b.stride(0),
            rows,
            rows // groups,
            BLOCK_M=BLOCK_M,
            BLOCK_K=BLOCK_K,
            enable_fp_fusion=True,
        )
    return t, u


def as_rows(x: Tensor) -> Tensor:
    """`x` [..., K] as a contiguous [M, K]."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1]).contiguous()


def adjacent(vectors: Tensor) -> Tensor:
    """[G, K] with the elements of each row adjacent; rows of an arena pass through as they are."""
    return vectors if vectors.stride(1) == 1 else vectors.contiguous()
