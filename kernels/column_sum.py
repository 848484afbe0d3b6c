"""Gradients of the adapters: column sums of x and of grad, each row weighted by one number.

    da[g] = scale * sum_m u[m] x[m]        u[m] = grad[m] . b[g]
    db[g] = scale * sum_m t[m] grad[m]     t[m] = x[m] . a[g]

One read of x and of grad, in one launch. No atomics: their order is not that of the rows, and two runs would differ in
the last bit. Rows are cut into chunks of a fixed length instead, each program sums one chunk of one block of columns in
fp32, and a second launch adds the chunks in order. The chunk length does not depend on the GPU, so neither does the
result; the fp32 partial sums are 1/128 of what a 16-bit x takes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgblora.kernels.rounding import round_to

CHUNK = 256
BLOCK_M = 16
BLOCK_N = 128
REDUCE_BLOCK = 512


@triton.jit
def _partial_column_sum(
    x_ptr,
    row_weight_ptr,
    partial_ptr,
    block_n,
    rows_per_group,
    width,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """partial[chunk, group, n] = sum over the rows of the chunk; chunk is program_id(1), group program_id(2)."""
    chunk, group = tl.program_id(1), tl.program_id(2).to(tl.int64)
    column = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = column < width
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for start in range(0, CHUNK, BLOCK_M):
        row = chunk * CHUNK + start + tl.arange(0, BLOCK_M)
        inside_m = row < rows_per_group
        row = group * rows_per_group + row
        row_weight = tl.load(row_weight_ptr + row, mask=inside_m, other=0.0)
        mask = inside_m[:, None] & inside_n[None, :]
        x = tl.load(x_ptr + row[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
        total += x * row_weight[:, None]
    target = partial_ptr + (chunk * tl.num_programs(2) + group) * width + column
    tl.store(target, tl.sum(total, axis=0), mask=inside_n)


@triton.jit(do_not_specialize=["rows_per_group"])
def column_sums_bwd_kernel(
    x_ptr,
    u_ptr,
    da_partial_ptr,
    inputs,
    grad_ptr,
    t_ptr,
    db_partial_ptr,
    outputs,
    rows_per_group,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Chunk sums of u x and t grad; program_id(0) counts the column blocks of x, then those of grad."""
    blocks_a = (inputs + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0)
    if block < blocks_a:
        _partial_column_sum(x_ptr, u_ptr, da_partial_ptr, block, rows_per_group, inputs, CHUNK, BLOCK_M, BLOCK_N)
    else:
        block -= blocks_a
        _partial_column_sum(grad_ptr, t_ptr, db_partial_ptr, block, rows_per_group, outputs, CHUNK, BLOCK_M, BLOCK_N)


@triton.jit
def _sum_chunks(partial_ptr, out_ptr, scale, block, chunks, size, BLOCK: tl.constexpr):
    """out[i] = scale * sum over chunks of partial[chunk, i], in order."""
    index = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for _ in range(chunks):
        total += tl.load(partial_ptr + index, mask=inside, other=0.0)
        partial_ptr += size
    tl.store(out_ptr + index, round_to(scale * total, out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["chunks"])
def sum_chunks_bwd_kernel(
    da_partial_ptr, da_ptr, da_size, db_partial_ptr, db_ptr, db_size, scale, chunks, BLOCK: tl.constexpr
):
    """da and db from their chunk sums; program_id(0) counts the blocks of da, then those of db."""
    blocks_a = (da_size + BLOCK - 1) // BLOCK
    block = tl.program_id(0)
    if block < blocks_a:
        _sum_chunks(da_partial_ptr, da_ptr, scale, block, chunks, da_size, BLOCK)
    else:
        _sum_chunks(db_partial_ptr, db_ptr, scale, block - blocks_a, chunks, db_size, BLOCK)


def adapter_gradients(
    x: Tensor, u: Tensor, grad: Tensor, t: Tensor, scale: float, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """da [G, K] and db [G, N], in the dtypes of `a` and `b`.

    Args:
        x: [M, K], contiguous.
        u: fp32 [M], grad . b.
        grad: [M, N], contiguous.
        t: fp32 [M], x . a.
        scale: alpha / rank.
        a: [G, K], for its dtype and number of groups.
        b: [G, N], for its dtype.
    """
    rows, inputs = x.shape
    outputs = grad.shape[1]
    groups = a.shape[0]
    chunks = triton.cdiv(rows // groups, CHUNK)
    da_partial = torch.empty((chunks, groups, inputs), dtype=torch.float32, device=x.device)
    db_partial = torch.empty((chunks, groups, outputs), dtype=torch.float32, device=x.device)
    da = torch.empty((groups, inputs), dtype=a.dtype, device=x.device)
    db = torch.empty((groups, outputs), dtype=b.dtype, device=x.device)
    columns = triton.cdiv(inputs, BLOCK_N) + triton.cdiv(outputs, BLOCK_N)
    blocks = triton.cdiv(da.numel(), REDUCE_BLOCK) + triton.cdiv(db.numel(), REDUCE_BLOCK)
    with torch.cuda.device_of(x):
        column_sums_bwd_kernel[(columns, chunks, groups)](
            x,
            u,
            da_partial,
            inputs,
            grad,
            t,
            db_partial,
            outputs,
            rows // groups,
            CHUNK=CHUNK,
            BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N,
            enable_fp_fusion=True,
        )
        sum_chunks_bwd_kernel[(blocks,)](
            da_partial,
            da,
            da.numel(),
            db_partial,
            db,
            db.numel(),
            scale,
            chunks,
            BLOCK=REDUCE_BLOCK,
            enable_fp_fusion=True,
        )
    return da, db
