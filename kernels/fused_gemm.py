"""A GEMM with the rank-1 term in its epilogue: y leaves the chip once, with everything added.

    y = x W^T + bias + scale * t b        t = x . a comes from `row_dots`

The vendor GEMM and a pass over y move 2 M N elements more than the GEMM itself; the epilogue here moves none, but a
Triton GEMM is slower than the vendor's. It pays only while it trails by less than 2 F / (K BW), where F / BW is the
chip's FLOP per byte. `tuning_table.json` says where; nothing uses it unmeasured.

W is read by its strides, so that the transposed view of a weight that is stored as [K, N] is never copied.

t is read, not computed: in the K loop of a GEMM it would be made again in each of the N / BLOCK_N column tiles. The
rank stays 1: padded to a matrix-unit tile, fifteen of sixteen products would be zeros.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgblora.kernels.rounding import round_to
from xgblora.kernels.tuning import Plan


@triton.jit
def _tile(rows, outputs, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Row block and column block of this program, walked in bands of GROUP_M row blocks so that W stays in L2."""
    blocks_m = (rows + BLOCK_M - 1) // BLOCK_M
    blocks_n = (outputs + BLOCK_N - 1) // BLOCK_N
    band = tl.program_id(0) // (GROUP_M * blocks_n)
    height = tl.minimum(blocks_m - band * GROUP_M, GROUP_M)
    place = tl.program_id(0) % (GROUP_M * blocks_n)
    return band * GROUP_M + place % height, place // height


@triton.jit(do_not_specialize=["rows", "rows_per_group"])
def rank1_gemm_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    t_ptr,
    b_ptr,
    y_ptr,
    scale,
    rows,
    rows_per_group,
    outputs,
    inputs,
    weight_n_stride,
    weight_k_stride,
    b_stride,
    HAS_BIAS: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One tile [BLOCK_M, BLOCK_N] of y; its rows may belong to several groups."""
    block_m, block_n = _tile(rows, outputs, BLOCK_M, BLOCK_N, GROUP_M)
    row = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_m, inside_n = row < rows, column < outputs
    k = tl.arange(0, BLOCK_K)
    x_pointers = x_ptr + row.to(tl.int64)[:, None] * inputs + k[None, :]
    weight_pointers = weight_ptr + column.to(tl.int64)[None, :] * weight_n_stride + k[:, None] * weight_k_stride
    y = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for start in range(0, inputs, BLOCK_K):
        inside_k = k < inputs - start
        x = tl.load(x_pointers, mask=inside_m[:, None] & inside_k[None, :], other=0.0)
        weight = tl.load(weight_pointers, mask=inside_k[:, None] & inside_n[None, :], other=0.0)
        y = tl.dot(x, weight, y, input_precision="ieee")
        x_pointers += BLOCK_K
        weight_pointers += BLOCK_K * weight_k_stride
    if HAS_BIAS:
        y += tl.load(bias_ptr + column, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    mask = inside_m[:, None] & inside_n[None, :]
    if ONE_GROUP:
        b = tl.load(b_ptr + column, mask=inside_n, other=0.0)[None, :]
    else:
        group = (row // rows_per_group).to(tl.int64)
        b = tl.load(b_ptr + group[:, None] * b_stride + column[None, :], mask=mask, other=0.0)
    t = tl.load(t_ptr + row, mask=inside_m, other=0.0)
    y += (scale * t)[:, None] * b.to(tl.float32)
    y_row = y_ptr + row.to(tl.int64)[:, None] * outputs
    tl.store(y_row + column[None, :], round_to(y, y_ptr.dtype.element_ty), mask=mask)


def fused_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, t: Tensor, b: Tensor, scale: float, plan: Plan
) -> Tensor:
    """`rank1_linear` [M, N] of a contiguous `x` [M, K] and its dots `t` [M] in one launch."""
    rows, inputs = x.shape
    outputs = weight.shape[0]
    bias = bias if bias is None else bias.contiguous()
    y = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(rows, plan.block_m) * triton.cdiv(outputs, plan.block_n),)
    with torch.cuda.device_of(x):
        rank1_gemm_fwd_kernel[grid](
            x,
            weight,
            bias,
            t,
            b,
            y,
            scale,
            rows,
            rows // b.shape[0],
            outputs,
            inputs,
            *weight.stride(),
            b.stride(0),
            HAS_BIAS=bias is not None,
            ONE_GROUP=b.shape[0] == 1,
            BLOCK_M=plan.block_m,
            BLOCK_N=plan.block_n,
            BLOCK_K=plan.block_k,
            GROUP_M=plan.group_m,
            num_warps=plan.num_warps,
            num_stages=plan.num_stages,
            enable_fp_fusion=True,
        )
    return y
