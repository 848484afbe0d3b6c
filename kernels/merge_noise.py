"""`merge_noise_`: the noise of a layer's terms in one launch, their sum and its rounding in a second.

    W = round(W + sum_i (c_i * b_i) * a_i)          fp32 operations, each rounded once, none fused

A tile of the sum stays in registers while all terms pass, each of which is a row and a column of factors from the
cache: two operations an element and term, and the weight is read and written once. No matrix unit takes part: it would
add in an order and a precision of its own, and the sum is to have the bits of the reference.

The factors are made before, each number once: a tile that made its own would make them again for every tile beside and
below it, and Box-Muller in fp64 is what a GPU is slowest at. They take 4 (N + K) bytes a term, so more than `TERMS` are
summed in parts, with the sum so far in an fp32 matrix of one layer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgblora.kernels.merge_rank1 import _DTYPES
from xgblora.kernels.noise_numbers import Stream
from xgblora.kernels.philox import DIRECTION_STREAM, normal_block, random_words
from xgblora.kernels.rounding import as_fp32, round_stochastically, round_to, round_with_remainder, running_sum
from xgblora.kernels.weight_storage import is_transposed

BLOCK, BLOCK_R, BLOCK_C = 256, 32, 64
WARPS = 4
TERMS = 1024

_ROUNDING_STREAM = tl.constexpr(int(Stream.ROUNDING))


# not specialised on what changes from layer to layer
@triton.jit(do_not_specialize=["start", "size", "stream"], do_not_specialize_on_alignment=["seeds_ptr", "factors_ptr"])
def factors_fwd_kernel(out_ptr, seeds_ptr, factors_ptr, start, size, stream, SCALES: tl.constexpr, BLOCK: tl.constexpr):
    """out[t, i] = z(seed t, start + i), times factor t where SCALES; program (i, t) makes 4 BLOCK elements of it."""
    term = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0).to(tl.int64)
    first = start.to(tl.int64) // 4
    z = normal_block(tl.load(seeds_ptr + term), first + block * BLOCK + tl.arange(0, BLOCK), stream)
    index = first * 4 - start + block * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    if SCALES:
        z = z * tl.load(factors_ptr + term)
    tl.store(out_ptr + term * size + index, z, mask=(index >= 0) & (index < size))


@triton.jit
def _word_of(seed, number):
    """uint32 of the shape of `number`: word `number` of the seed's roundings; three of four words are thrown away."""
    w0, w1, w2, w3 = random_words(seed, number >> 2, _ROUNDING_STREAM)
    lane = number & 3
    return tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))


@triton.jit(do_not_specialize=["rows", "columns", "terms", "number", "seed"])
def noise_sum_fwd_kernel(
    weight_ptr,
    remainder_ptr,
    sum_ptr,
    row_factors_ptr,
    column_factors_ptr,
    rows,
    columns,
    terms,
    number,
    seed,
    DTYPE: tl.constexpr,
    ROUNDING: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (i, j) sums `terms` terms over tile (j, i) and, at the LAST of them, rounds the weight once.

    The sum so far comes from `sum_ptr` unless these are the FIRST terms, and goes there unless they are the LAST.
    """
    row = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_row, inside_column = row < rows, column < columns
    inside = inside_row[:, None] & inside_column[None, :]
    offset = row[:, None] * columns + column[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    if not FIRST:
        total = tl.load(sum_ptr + offset, mask=inside, other=0.0)
    for _ in range(terms):
        row_factor = tl.load(row_factors_ptr + row, mask=inside_row, other=0.0)
        column_factor = tl.load(column_factors_ptr + column, mask=inside_column, other=0.0)
        total += row_factor[:, None] * column_factor[None, :]
        row_factors_ptr += rows
        column_factors_ptr += columns
    if not LAST:
        tl.store(sum_ptr + offset, total, mask=inside)
    else:
        weight = tl.load(weight_ptr + offset, mask=inside)
        if ROUNDING == "remainder":
            remainder = tl.load(remainder_ptr + offset, mask=inside)
            weight, remainder = round_with_remainder(running_sum(weight, remainder) + total, DTYPE)
            tl.store(remainder_ptr + offset, remainder, mask=inside)
        elif ROUNDING == "stochastic":
            weight = round_stochastically(as_fp32(weight) + total, DTYPE, _word_of(seed.to(tl.int64), number + offset))
        else:
            weight = round_to(as_fp32(weight) + total, DTYPE)
        tl.store(weight_ptr + offset, weight, mask=inside)


def merge_noise_(
    weights: list[Tensor],
    remainders: list[Tensor],
    a_starts: list[int],
    b_starts: list[int],
    seeds: Tensor,
    coefficients: Tensor,
    rounding: str,
    rounding_seed: int,
) -> None:
    """Merge the sum of the terms into each weight, in place.

    Arguments and bits as of `torch.ops.xgblora.merge_noise_`. One weight after the other, so that weights may share
    memory. Weights that lie neither row by row nor column by column are merged in a copy, which is written back.
    """
    seeds, coefficients, number = seeds.contiguous(), coefficients.contiguous(), 0
    for index, (weight, a_start, b_start) in enumerate(zip(weights, a_starts, b_starts, strict=True)):
        # 32-bit weights have nothing to round
        own_rounding = "nearest" if weight.dtype == torch.float32 else rounding
        transposed = is_transposed(weight)
        parts = [weight, remainders[index]] if own_rounding == "remainder" else [weight]
        stored = [part.T if transposed else part for part in parts]
        dense = [part.contiguous() for part in stored]
        if weight.numel():
            places = (a_start, b_start, False) if transposed else (b_start, a_start, True)
            _merge(dense, places, seeds, coefficients, own_rounding, number, rounding_seed)
        for target, source in zip(stored, dense, strict=True):
            if target.data_ptr() != source.data_ptr():
                target.copy_(source)
        number += weight.numel()


def _merge(
    dense: list[Tensor],
    places: tuple[int, int, bool],
    seeds: Tensor,
    coefficients: Tensor,
    rounding: str,
    number: int,
    rounding_seed: int,
) -> None:
    """Merge into a contiguous matrix, and its plane; its first element has the number `number`."""
    matrix, (row_start, column_start, scales_rows) = dense[0], places
    rows, columns = matrix.shape
    terms = len(seeds)
    total = torch.empty(matrix.shape if terms > TERMS else (0, 0), dtype=torch.float32, device=matrix.device)
    with torch.cuda.device_of(matrix):
        # once without terms too: a sum of none is 0
        for first in range(0, max(terms, 1), TERMS):
            own = seeds[first : first + TERMS], coefficients[first : first + TERMS]
            row_factors = _factors(*own, row_start, rows, scales_rows)
            column_factors = _factors(*own, column_start, columns, not scales_rows)
            noise_sum_fwd_kernel[(triton.cdiv(columns, BLOCK_C), triton.cdiv(rows, BLOCK_R))](
                matrix,
                dense[-1],
                total,
                row_factors,
                column_factors,
                rows,
                columns,
                len(own[0]),
                number,
                rounding_seed,
                DTYPE=_DTYPES[matrix.dtype],
                ROUNDING=rounding,
                FIRST=first == 0,
                LAST=first + TERMS >= terms,
                BLOCK_R=BLOCK_R,
                BLOCK_C=BLOCK_C,
                num_warps=WARPS,
                enable_fp_fusion=False,
            )


def _factors(seeds: Tensor, coefficients: Tensor, start: int, size: int, scales: bool) -> Tensor:
    """fp32 [T, size]: noise of each seed from place `start` on, times its coefficient where `scales`."""
    out = torch.empty(len(seeds), size, dtype=torch.float32, device=seeds.device)
    if out.numel():
        # a whole number of counters, the first of which begins up to 3 elements early
        blocks = triton.cdiv(size + start % 4, 4 * BLOCK)
        factors_fwd_kernel[(blocks, len(seeds))](
            out, seeds, coefficients, start, size, DIRECTION_STREAM, SCALES=scales, BLOCK=BLOCK, enable_fp_fusion=False
        )
    return out
