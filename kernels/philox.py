"""Noise addressed by (seed, index) on the device: Philox4x32-10 and normals that have the same bits everywhere.

Philox (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a counter and a key
into four 32-bit words; element `i` of a vector is word `i % 4` of counter `i // 4`. Every program makes whole Philox
calls: a block of B counters gives 4 B neighbouring elements, no word is thrown away, and the join of the four words
leaves four neighbours in one thread, which stores them as one 16-byte vector.

Normals come from Box-Muller in fp64, rounded to fp32 at the end, with the power series of `noise_numbers.py` for
logarithm, sine and cosine: additions, multiplications, a division and a square root, which IEEE 754 rounds the same
way everywhere, so that reference, interpreter and GPU agree by construction. `tl.log`, `tl.cos` and `tl.sin` would be
another library on each side, and on a GPU keep a table walk in local memory for angles that never occur here. Kernels
that call this must be launched with `enable_fp_fusion=False`: a fused multiply-add rounds once where two are meant.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgblora.kernels import noise_numbers as numbers

BLOCK = 256
# an integer like others for Triton, which does not know enumerations
DIRECTION_STREAM = int(numbers.Stream.DIRECTION)

_MULTIPLIER_0, _MULTIPLIER_1 = map(tl.constexpr, numbers.PHILOX_MULTIPLIERS)
_KEY_INCREMENT_0, _KEY_INCREMENT_1 = map(tl.constexpr, numbers.PHILOX_KEY_INCREMENTS)
_ROUNDS = tl.constexpr(numbers.PHILOX_ROUNDS)
_WORD = tl.constexpr(0xFFFFFFFF)

_TWO_PI_2_M32 = tl.constexpr(numbers.TWO_PI_2_M32)
_2_M32 = tl.constexpr(2.0**-32)
_LN_2 = tl.constexpr(numbers.LN_2)
_SQRT_HALF_BITS = tl.constexpr(numbers.SQRT_HALF_BITS)
_SQRT_HALF_TO_ONE = tl.constexpr(numbers.SQRT_HALF_TO_ONE)
_LOG_0, _LOG_1, _LOG_2, _LOG_3, _LOG_4, _LOG_5, _LOG_6, _LOG_7, _LOG_8, _LOG_9 = map(tl.constexpr, numbers.LOG_SERIES)
_SIN_0, _SIN_1, _SIN_2, _SIN_3, _SIN_4, _SIN_5, _SIN_6, _SIN_7, _SIN_8 = map(tl.constexpr, numbers.SIN_SERIES)
_COS_0, _COS_1, _COS_2, _COS_3, _COS_4, _COS_5, _COS_6, _COS_7, _COS_8 = map(tl.constexpr, numbers.COS_SERIES)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32; counter words, key words and results are uint32."""
    for _ in tl.static_range(_ROUNDS):
        high_0, low_0 = tl.umulhi(c0, _MULTIPLIER_0), c0 * _MULTIPLIER_0
        high_1, low_1 = tl.umulhi(c2, _MULTIPLIER_1), c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = k0 + _KEY_INCREMENT_0, k1 + _KEY_INCREMENT_1
    return c0, c1, c2, c3


@triton.jit
def random_words(seed, counters, stream):
    """The four words of each counter: `seed` int64, `counters` int64 [B] = i // 4, `stream` an integer below 2^31."""
    k0 = (seed & _WORD).to(tl.uint32)
    k1 = ((seed >> 32) & _WORD).to(tl.uint32)
    c0 = (counters & _WORD).to(tl.uint32)
    c1 = ((counters >> 32) & _WORD).to(tl.uint32)
    zero = c0 ^ c0
    return philox4x32(c0, c1, zero + stream, zero, k0, k1)


@triton.jit
def in_order(v0, v1, v2, v3):
    """Four [B] vectors, one a Philox word, as [4 B] in the order of the elements."""
    pairs = tl.join(tl.join(v0, v2), tl.join(v1, v3))
    return tl.reshape(pairs, (v0.shape[0] * 4,))


@triton.jit
def random_words_in_order(seed, counters, stream):
    """uint32 [4 B]: words 4 c .. 4 c + 3 of each counter c."""
    w0, w1, w2, w3 = random_words(seed, counters, stream)
    return in_order(w0, w1, w2, w3)


@triton.jit
def _log(x):
    """Natural logarithm of normal, positive fp64 `x`."""
    bits = x.to(tl.int64, bitcast=True) + _SQRT_HALF_TO_ONE
    exponent = ((bits >> 52) - 0x3FF).to(tl.float64)
    mantissa = ((bits & 0x000FFFFFFFFFFFFF) + _SQRT_HALF_BITS).to(tl.float64, bitcast=True)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    z = s * s
    upper = ((((z * _LOG_9 + _LOG_8) * z + _LOG_7) * z + _LOG_6) * z + _LOG_5) * z + _LOG_4
    series = (((upper * z + _LOG_3) * z + _LOG_2) * z + _LOG_1) * z + _LOG_0
    return exponent * _LN_2 + series * s * 2.0


@triton.jit
def _cos_sin(word):
    """Cosine and sine, fp64, of the angle `word * 2 pi / 2^32` of uint32 words."""
    wide = word.to(tl.int64)
    # the nearest quarter turn and the rest, both exact in integers
    quadrant = (wide + (1 << 29)) >> 30
    x = (wide - (quadrant << 30)).to(tl.float64) * _TWO_PI_2_M32
    z = x * x
    sin_upper = (((z * _SIN_8 + _SIN_7) * z + _SIN_6) * z + _SIN_5) * z + _SIN_4
    sine = ((((sin_upper * z + _SIN_3) * z + _SIN_2) * z + _SIN_1) * z + _SIN_0) * x
    cos_upper = (((z * _COS_8 + _COS_7) * z + _COS_6) * z + _COS_5) * z + _COS_4
    cosine = (((cos_upper * z + _COS_3) * z + _COS_2) * z + _COS_1) * z + _COS_0
    odd = (quadrant & 1) == 1
    cos_size, sin_size = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    # signs of a quarter turn: cosine + - - +, sine + + - -
    cos_sign, sin_sign = 1 - ((quadrant + 1) & 2), 1 - (quadrant & 2)
    return cos_size * cos_sign.to(tl.float64), sin_size * sin_sign.to(tl.float64)


@triton.jit
def _box_muller(word_0, word_1):
    """Two fp32 normals from two words: cosine first, sine second (Box and Muller, 1958)."""
    u = (word_0.to(tl.float64) + 1.0) * _2_M32
    radius = tl.sqrt(_log(u) * -2.0)
    cosine, sine = _cos_sin(word_1)
    return (radius * cosine).to(tl.float32), (radius * sine).to(tl.float32)


@triton.jit
def normal_block(seed, counters, stream):
    """fp32 normals [4 B] of `counters` [B], in the order of the elements."""
    w0, w1, w2, w3 = random_words(seed, counters, stream)
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    return in_order(z0, z1, z2, z3)


@triton.jit
def rademacher_block(seed, counters, stream):
    """fp32 signs [4 B] of `counters` [B]: the lowest bit of each word, 1 for +1."""
    words = random_words_in_order(seed, counters, stream)
    return ((words & 1).to(tl.int32) * 2 - 1).to(tl.float32)


@triton.jit
def noise_block(seed, counters, stream, DISTRIBUTION: tl.constexpr):
    """fp32 noise [4 B] of `counters` [B]; DISTRIBUTION is "gaussian" or "rademacher"."""
    if DISTRIBUTION == "gaussian":
        return normal_block(seed, counters, stream)
    return rademacher_block(seed, counters, stream)


@triton.jit(do_not_specialize=["units", "stream"], do_not_specialize_on_alignment=["seed_ptr"])
def noise_fwd_kernel(
    out_ptr, seed_ptr, units, stream, DISTRIBUTION: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr
):
    """out[i] = z(seed, i) for i < units * UNIT; one program makes BLOCK counters, 4 BLOCK elements."""
    block = tl.program_id(0).to(tl.int64)
    z = noise_block(tl.load(seed_ptr), block * BLOCK + tl.arange(0, BLOCK), stream, DISTRIBUTION)
    index = block * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    tl.store(out_ptr + index, z, mask=index < units * UNIT)


def noise(
    seed: Tensor, count: int, distribution: str = "gaussian", *, stream: int = DIRECTION_STREAM, block: int = BLOCK
) -> Tensor:
    """fp32 [count] of "gaussian" or "rademacher" noise of `seed`, an int64 tensor of one element on the device."""
    out = torch.empty(count, dtype=torch.float32, device=seed.device)
    if count == 0:
        return out
    units, unit = vector_units(count)
    with torch.cuda.device_of(out):
        noise_fwd_kernel[(triton.cdiv(count, 4 * block),)](
            out, seed, units, stream, DISTRIBUTION=distribution, UNIT=unit, BLOCK=block, enable_fp_fusion=False
        )
    return out


def vector_units(count: int) -> tuple[int, int]:
    """`count` as (units, unit) with units * unit = count and unit 8 where that divides it, else 1.

    The compiler knows that an integer argument is a multiple of 16, or nothing. The arena aligns its vectors to 8: told
    the factor 8 as a compile-time constant, the compiler can prove that a row starts on 16 bytes and that a mask does
    not cut a vector, so that loads and stores stay 16 bytes wide.
    """
    return (count // 8, 8) if count % 8 == 0 else (count, 1)
