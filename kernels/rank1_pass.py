"""The rank-1 term added to the output of a finished GEMM, in place: `y[m] += scale * t[m] * b[g]`.

One read and one write of y, 2 M N elements, where unfused eager code (cast, product, sum, cast) moves three times as
much. The sum is fp32 and is rounded once to the dtype of y. Rows are tiled within their group, so a tile needs one
vector b[g].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgblora.kernels.rounding import round_to

BLOCK_M = 8
BLOCK_N = 512


@triton.jit(do_not_specialize=["rows_per_group"])
def rank1_pass_fwd_kernel(
    y_ptr, t_ptr, b_ptr, scale, rows_per_group, width, b_stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """One tile of y; program_id(0) counts the row blocks of group after group, program_id(1) the columns."""
    blocks_per_group = (rows_per_group + BLOCK_M - 1) // BLOCK_M
    group = tl.program_id(0) // blocks_per_group
    row = (tl.program_id(0) % blocks_per_group) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_m = row < rows_per_group
    row = group.to(tl.int64) * rows_per_group + row
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = column < width
    t = tl.load(t_ptr + row, mask=inside_m, other=0.0)
    b = tl.load(b_ptr + group.to(tl.int64) * b_stride + column, mask=inside_n, other=0.0).to(tl.float32)
    pointers = y_ptr + row[:, None] * width + column[None, :]
    mask = inside_m[:, None] & inside_n[None, :]
    y = tl.load(pointers, mask=mask, other=0.0).to(tl.float32) + (scale * t)[:, None] * b[None, :]
    tl.store(pointers, round_to(y, y_ptr.dtype.element_ty), mask=mask)


def add_rank1_(y: Tensor, t: Tensor, b: Tensor, scale: float) -> None:
    """y[m] += scale * t[m] * b[group of m], in place.

    Args:
        y: [M, N], contiguous.
        t: fp32 [M].
        b: [G, N], the elements of a row adjacent.
        scale: alpha / rank.
    """
    rows, width = y.shape
    groups = b.shape[0]
    grid = (groups * triton.cdiv(rows // groups, BLOCK_M), triton.cdiv(width, BLOCK_N))
    with torch.cuda.device_of(y):
        rank1_pass_fwd_kernel[grid](
            y,
            t,
            b,
            scale,
            rows // groups,
            width,
            b.stride(0),
            BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N,
            enable_fp_fusion=True,
        )
