"""Rounding of fp32 to a narrower dtype: once, to nearest, and the two roundings of a merge that lose nothing.

The arithmetic on bit patterns is that of `xgblora.ops.merge_rank1`; a NaN stays a NaN.
"""

import triton
import triton.language as tl


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """fp32 `x` in `dtype` (fp32, bf16 or fp16), rounded to nearest even; a NaN stays a NaN.

    bf16 is rounded on the bit pattern instead of by `x.to(tl.bfloat16)`: compiled code rounds that cast to nearest
    even, but the interpreter cuts the low bits off (Triton 3.9), and both must give the same bits. The few integer
    operations a value are hidden behind the memory access that follows them.
    """
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        # one half of the last kept bit, less one where that bit is 0: ties then go to even
        rounded = bits + (((bits >> 16) & 1) + 0x7FFF)
        upper = (tl.where(x == x, rounded, 0x7FC00000) >> 16).to(tl.uint16)
        result = upper.to(tl.bfloat16, bitcast=True)
    else:
        result = x.to(dtype)
    return result


@triton.jit
def as_fp32(x):
    """fp32, bf16 or fp16 `x` in fp32, which is exact; bf16 on the bit pattern, as in `round_to`."""
    if x.dtype == tl.bfloat16:
        result = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        result = x.to(tl.float32)
    return result


@triton.jit
def is_finite(x):
    """Whether fp32 `x` is neither infinite nor NaN."""
    return (x.to(tl.uint32, bitcast=True) & 0x7FFFFFFF) < 0x7F800000


@triton.jit
def round_stochastically(total, dtype: tl.constexpr, words):
    """fp32 `total` in `dtype` (bf16 or fp16), up in magnitude with the probability of what is cut off.

    `words` are uint32 random words; as many low bits are used as `dtype` has fewer bits of mantissa than fp32.
    """
    bits = total.to(tl.uint32, bitcast=True)
    finite = is_finite(total)
    if dtype == tl.bfloat16:
        # what the bits carry into is the next number, an infinity behind the largest; the rest is cut off
        bits = tl.where(finite, (bits + (words & 0xFFFF)) & 0xFFFF0000, bits)
    else:
        noise = words & 0x1FFF
        # below the normal range the spacing is 2^-24 whatever the exponent, and 13 bits of noise reach to 2^-37: the
        # product is exact, and what its conversion to an integer cuts off cannot carry
        small = (bits & 0x7FFFFFFF) < 0x38800000
        magnitude = tl.where(small, tl.abs(total), 0.0)
        steps = ((magnitude * 137438953472.0).to(tl.uint32) + noise) >> 13
        subnormal = (steps.to(tl.float32) * 5.9604644775390625e-08).to(tl.uint32, bitcast=True) | (bits & 0x80000000)
        rounded = tl.where(small, subnormal, (bits + noise) & 0xFFFFE000)
        bits = tl.where(finite, rounded, bits)
    # exact, but for what overflows fp16
    return round_to(bits.to(tl.float32, bitcast=True), dtype)


@triton.jit
def running_sum(weight, remainder):
    """The fp32 value that a 16-bit `weight` and its int16 `remainder` stand for."""
    value = as_fp32(weight)
    # a finite sum that rounds to a bf16 infinity lies a little below it, so its remainder is negative
    adjusts = is_finite(value) | ((value == value) & (remainder < 0))
    bits = value.to(tl.int32, bitcast=True) + tl.where(adjusts, remainder.to(tl.int32), 0)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def round_with_remainder(total, dtype: tl.constexpr):
    """fp32 `total` in `dtype` (bf16 or fp16), and the int16 remainder such that `running_sum` gives `total` back.

    Ties go away from zero for bf16, so that the remainder of a tie is -2^15, which an int16 holds, and never 2^15. For
    fp16 they go to even, and remainders beyond the normal range are clipped.
    """
    bits = total.to(tl.int32, bitcast=True)
    finite = is_finite(total)
    if dtype == tl.bfloat16:
        away = tl.where(finite, (bits + 0x8000) & -0x10000, bits)
        weight = round_to(away.to(tl.float32, bitcast=True), dtype)
        # the low half of the bits, read as a signed number
        remainder = tl.where(finite, bits - away, 0)
    else:
        weight = round_to(total, dtype)
        rounded = as_fp32(weight)
        units = bits - rounded.to(tl.int32, bitcast=True)
        remainder = tl.where(finite & is_finite(rounded), tl.minimum(tl.maximum(units, -0x8000), 0x7FFF), 0)
    return weight, remainder.to(tl.int16)
