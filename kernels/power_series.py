"""Coefficients of logarithm, sine and cosine, for kernels and eager reference: equal bits need equal numbers."""

import math

# log m = 2 s (1 + s^2 / 3 + s^4 / 5 + ...) with s = (m - 1) / (m + 1): |s| < 0.172, so ten terms leave 2^-53
LOG_SERIES = tuple(1.0 / (2 * k + 1) for k in range(10))
# sine and cosine of |x| <= pi/4: nine terms leave 2^-58 and 2^-58
SIN_SERIES = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(9))
COS_SERIES = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(9))
# bit patterns of fp64: sqrt(1/2) with its low word cleared, and the distance from there to 1
SQRT_HALF_BITS = 0x3FE6A09E00000000
SQRT_HALF_TO_ONE = 0x3FF0000000000000 - SQRT_HALF_BITS
