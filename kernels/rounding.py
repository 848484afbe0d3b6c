"""Rounding of fp32 to the dtype of an output tensor: once, to nearest, ties to even."""

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
