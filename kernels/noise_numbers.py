"""The numbers that noise is made of, for kernels and eager reference: equal bits need equal numbers.

csrc/philox.h and csrc/power_series.h have them too, and a test holds them to these. Imports neither torch nor Triton.
"""

import math
from enum import IntEnum

# Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011)
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10

# log m = 2 s (1 + s^2 / 3 + s^4 / 5 + ...) with s = (m - 1) / (m + 1): |s| < 0.172, so ten terms leave 2^-53
LOG_SERIES = tuple(1.0 / (2 * k + 1) for k in range(10))
# sine and cosine of |x| <= pi/4: nine terms leave 2^-58 and 2^-58
SIN_SERIES = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(9))
COS_SERIES = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(9))
LN_2 = math.log(2.0)
# the angle that a word counts one of
TWO_PI_2_M32 = 2.0 * math.pi * 2.0**-32
# bit patterns of fp64: sqrt(1/2) with its low word cleared, and the distance from there to 1
SQRT_HALF_BITS = 0x3FE6A09E00000000
SQRT_HALF_TO_ONE = 0x3FF0000000000000 - SQRT_HALF_BITS


class Stream(IntEnum):
    """What a noise vector is for; vectors of one seed and different streams are independent."""

    DIRECTION = 0
    ROUNDING = 1
    INITIALISATION = 2
    LAYERS = 3
    TOKENS = 5
