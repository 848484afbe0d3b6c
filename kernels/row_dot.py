"""Dot products of rows with the vector of their group, `t[m] = x[m] . a[g]`, in fp32.

One read of x: M K elements for M K multiply-adds, far below what a chip computes for each byte, so the time is that of
the read. It is a kernel of its own because a GEMM that made t itself would make it once in every tile of its N columns.
Rows are tiled within their group, so a program reads one vector a[g] and no gather.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_M = 4
BLOCK_K = 512


@triton.jit
def _row_dot(x_ptr, a_ptr, t_ptr, rows_per_group, width, a_stride, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """t of the BLOCK_M rows of one program; programs count the row blocks of group 0, then of group 1, ..."""
    blocks_per_group = (rows_per_group + BLOCK_M - 1) // BLOCK_M
    group = tl.program_id(0) // blocks_per_group
    row = (tl.program_id(0) % blocks_per_group) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_m = row < rows_per_group
    row = group.to(tl.int64) * rows_per_group + row
    partial = tl.full((BLOCK_M, BLOCK_K), 0.0, tl.float32)
    for start in range(0, width, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        inside_k = column < width
        a = tl.load(a_ptr + group.to(tl.int64) * a_stride + column, mask=inside_k, other=0.0).to(tl.float32)
        mask = inside_m[:, None] & inside_k[None, :]
        x = tl.load(x_ptr + row[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
        partial += x * a[None, :]
    tl.store(t_ptr + row, tl.sum(partial, axis=1), mask=inside_m)


@triton.jit(do_not_specialize=["rows_per_group"])
def row_dot_fwd_kernel(
    x_ptr, a_ptr, t_ptr, rows_per_group, width, a_stride, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr
):
    """t[m] = x[m] . a[group of m]."""
    _row_dot(x_ptr, a_ptr, t_ptr, rows_per_group, width, a_stride, BLOCK_M, BLOCK_K)


@triton.jit(do_not_specialize=["rows_per_group"])
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
    rows_per_group,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """t[m] = x[m] . a[group of m] where program_id(1) is 0, u[m] = grad[m] . b[group of m] where it is 1."""
    if tl.program_id(1) == 0:
        _row_dot(x_ptr, a_ptr, t_ptr, rows_per_group, inputs, a_stride, BLOCK_M, BLOCK_K)
    else:
        _row_dot(grad_ptr, b_ptr, u_ptr, rows_per_group, outputs, b_stride, BLOCK_M, BLOCK_K)


def row_dot(x: Tensor, a: Tensor) -> Tensor:
    """x . a for every row, fp32 [M].

    Args:
        x: [M, K], contiguous.
        a: [G, K], the elements of a row adjacent; row m of `x` belongs to group m // (M / G).
    """
    rows, width = x.shape
    groups = a.shape[0]
    t = torch.empty(rows, dtype=torch.float32, device=x.device)
    grid = (groups * triton.cdiv(rows // groups, BLOCK_M),)
    with torch.cuda.device_of(x):
        row_dot_fwd_kernel[grid](
            x,
            a,
            t,
            rows // groups,
            width,
            a.stride(0),
            BLOCK_M=BLOCK_M,
            BLOCK_K=BLOCK_K,
            enable_fp_fusion=True,
        )
    return t


def row_dots(x: Tensor, a: Tensor, grad: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """x . a and grad . b for every row, fp32 [M] each, in one launch; arguments as of `row_dot`."""
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
            rows // groups,
            BLOCK_M=BLOCK_M,
            BLOCK_K=BLOCK_K,
            enable_fp_fusion=True,
        )
    return t, u
