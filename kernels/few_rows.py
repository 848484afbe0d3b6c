"""`rank1_linear` of few rows (decoding): x W^T and x . a in one K loop of one kernel.

With few rows the time is that of reading W once, and launches count: a second kernel for x . a or for the rank-1 term
would cost as much as a tenth of a small layer. Each program owns some columns of y, reads its rows of W, all of x and
the vectors a; making x . a again in every program costs M K multiply-adds on data that is in cache anyway.

- one row: products and sums on the ordinary units; a matrix unit would see one row in sixteen filled;
- 2 rows and more: `tl.dot` with the rows padded to one tile of 16.

Both accumulate in fp32 and round once. W is read where it lies, by its strides: the transposed view of a weight that is
stored as [K, N] (GPT-2's `Conv1D`) would cost a copy of itself a call if it had to be contiguous. Tiles of such a view
are wide along N, where its elements are adjacent.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgblora.kernels.rounding import round_to
from xgblora.kernels.tuning import Plan

# columns of a tile of a transposed view: 32 elements of 2 bytes are two sectors of a GPU's memory
TRANSPOSED_BLOCK_N = 32


@triton.jit
def rank1_matvec_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    a_ptr,
    b_ptr,
    y_ptr,
    scale,
    outputs,
    inputs,
    weight_n_stride,
    weight_k_stride,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[n] for BLOCK_N outputs of a single row."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = column < outputs
    weight_row = weight_ptr + column.to(tl.int64)[:, None] * weight_n_stride
    k_offset = tl.arange(0, BLOCK_K)[None, :] * weight_k_stride
    product = tl.full((BLOCK_N, BLOCK_K), 0.0, tl.float32)
    projected = tl.full((BLOCK_K,), 0.0, tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside_k = k < inputs
        x = tl.load(x_ptr + k, mask=inside_k, other=0.0).to(tl.float32)
        a = tl.load(a_ptr + k, mask=inside_k, other=0.0).to(tl.float32)
        mask = inside_n[:, None] & inside_k[None, :]
        weight = tl.load(weight_row + k_offset, mask=mask, other=0.0).to(tl.float32)
        product += weight * x[None, :]
        projected += x * a
        # not `k * weight_k_stride`: that may pass 2^31
        weight_row += BLOCK_K * weight_k_stride
    y = tl.sum(product, axis=1)
    if HAS_BIAS:
        y += tl.load(bias_ptr + column, mask=inside_n, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + column, mask=inside_n, other=0.0).to(tl.float32)
    y += scale * tl.sum(projected, axis=0) * b
    tl.store(y_ptr + column, round_to(y, y_ptr.dtype.element_ty), mask=inside_n)


@triton.jit(do_not_specialize=["rows", "rows_per_group"])
def rank1_few_rows_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    a_ptr,
    b_ptr,
    y_ptr,
    scale,
    rows,
    rows_per_group,
    outputs,
    inputs,
    weight_n_stride,
    weight_k_stride,
    a_stride,
    b_stride,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[m, n] for BLOCK_M rows and BLOCK_N outputs; a tile may hold rows of several groups."""
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_m, inside_n = row < rows, column < outputs
    group = (row // rows_per_group).to(tl.int64)
    x_row = x_ptr + row.to(tl.int64)[:, None] * inputs
    a_row = a_ptr + group[:, None] * a_stride
    weight_row = weight_ptr + column.to(tl.int64)[:, None] * weight_n_stride
    k_offset = tl.arange(0, BLOCK_K)[None, :] * weight_k_stride
    y = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    projected = tl.full((BLOCK_M, BLOCK_K), 0.0, tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside_k = (k < inputs)[None, :]
        x = tl.load(x_row + k[None, :], mask=inside_m[:, None] & inside_k, other=0.0)
        a = tl.load(a_row + k[None, :], mask=inside_m[:, None] & inside_k, other=0.0)
        weight = tl.load(weight_row + k_offset, mask=inside_n[:, None] & inside_k, other=0.0)
        y = tl.dot(x, tl.trans(weight), y, input_precision="ieee")
        projected += x.to(tl.float32) * a.to(tl.float32)
        weight_row += BLOCK_K * weight_k_stride
    if HAS_BIAS:
        y += tl.load(bias_ptr + column, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    mask = inside_m[:, None] & inside_n[None, :]
    b = tl.load(b_ptr + group[:, None] * b_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    y += (scale * tl.sum(projected, axis=1))[:, None] * b
    y_row = y_ptr + row.to(tl.int64)[:, None] * outputs
    tl.store(y_row + column[None, :], round_to(y, y_ptr.dtype.element_ty), mask=mask)


def few_rows_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, plan: Plan
) -> Tensor:
    """`rank1_linear` [M, N] of a contiguous `x` [M, K] in one launch; `plan.block_m` 1 means a single row."""
    rows, inputs = x.shape
    outputs = weight.shape[0]
    bias = bias if bias is None else bias.contiguous()
    block_n, block_k = plan.block_n, plan.block_k
    if weight.stride(1) != 1:
        block_n, block_k = TRANSPOSED_BLOCK_N, block_n * block_k // TRANSPOSED_BLOCK_N
    y = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    options = {"num_warps": plan.num_warps, "num_stages": plan.num_stages, "enable_fp_fusion": True}
    columns = triton.cdiv(outputs, block_n)
    with torch.cuda.device_of(x):
        if plan.block_m == 1:
            rank1_matvec_fwd_kernel[(columns,)](
                x,
                weight,
                bias,
                a,
                b,
                y,
                scale,
                outputs,
                inputs,
                *weight.stride(),
                HAS_BIAS=bias is not None,
                BLOCK_N=block_n,
                BLOCK_K=block_k,
                **options,
            )
        else:
            rank1_few_rows_fwd_kernel[(columns, triton.cdiv(rows, plan.block_m))](
                x,
                weight,
                bias,
                a,
                b,
                y,
                scale,
                rows,
                rows // a.shape[0],
                outputs,
                inputs,
                *weight.stride(),
                a.stride(0),
                b.stride(0),
                HAS_BIAS=bias is not None,
                BLOCK_M=plan.block_m,
                BLOCK_N=block_n,
                BLOCK_K=block_k,
                **options,
            )
    return y
