"""Noise addressed by (seed, index): Philox4x32-10, the same integers on every device.

Element `i` of a noise vector is a function of the 64-bit seed, a stream number and `i` alone. It does not depend on
dtype, block size, device or the order in which elements are made, so a training run can be replayed from its seeds.

Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The counter is
`(i // 4 low, i // 4 high, stream, 0)`, the key is the seed; element `i` uses output word `i % 4`.

Normals: Box and Muller (1958) in fp64, rounded to fp32. Logarithm, sine and cosine are power series in additions,
multiplications, one division and one square root, each of which IEEE 754 rounds the same way on every machine, so that
a CPU and a GPU agree by construction. With library functions they agree by luck: in fp32 one value in four differs
between two libraries, in fp64 about one in 2^28.
"""

import numpy as np
import torch
from torch import Tensor

from xgblora.kernels.noise_numbers import (
    COS_SERIES,
    LN_2,
    LOG_SERIES,
    PHILOX_KEY_INCREMENTS,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    SIN_SERIES,
    SQRT_HALF_BITS,
    SQRT_HALF_TO_ONE,
    TWO_PI_2_M32,
    Stream,
)

_WORD = 0xFFFFFFFF
_BLOCK = 1 << 16


def derive_seed(seed: int, *indices: int) -> int:
    """A 64-bit seed for `indices` (step, direction, round, ...) of a run with seed `seed`, as a signed int64.

    Chained splitmix64 finalisers (Steele, Lea, Flood, OOPSLA 2014); a pure function, any integer seed is valid, 0 too.
    """
    state = _splitmix64(seed & 0xFFFFFFFFFFFFFFFF)
    for index in indices:
        state = _splitmix64(state ^ (index & 0xFFFFFFFFFFFFFFFF))
    return state - (1 << 64) if state >= 1 << 63 else state


def _splitmix64(value: int) -> int:
    mask = 0xFFFFFFFFFFFFFFFF
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Ten rounds of Philox4x32.

    Args:
        counter: int64 [4, n], each value a 32-bit word.
        key: int64 [2], each value a 32-bit word.

    Returns:
        int64 [4, n], each value a 32-bit word.
    """
    # Words 0 and 2 are multiplied, words 1 and 3 are xored in; the two halves swap places every round. An int64
    # product wraps at 64 bits, which leaves exactly the low and high words that Philox wants.
    multipliers = torch.tensor(PHILOX_MULTIPLIERS, device=counter.device).unsqueeze(1)
    increments = torch.tensor(PHILOX_KEY_INCREMENTS, device=counter.device)
    multiplied, xored = counter[0::2], counter[1::2]
    for _ in range(PHILOX_ROUNDS):
        product = multiplied * multipliers
        high, low = ((product >> 32) & _WORD).flip(0), (product & _WORD).flip(0)
        multiplied = high.bitwise_xor_(xored).bitwise_xor_(key.unsqueeze(1))
        xored = low
        key = (key + increments) & _WORD
    return torch.stack((multiplied[0], xored[0], multiplied[1], xored[1]))


def random_words(seed: int | Tensor, count: int, stream: Stream, *, device: torch.device, start: int = 0) -> Tensor:
    """Random words `start .. start + count - 1` of (`seed`, `stream`), int64 [count]; `start` is a multiple of 4."""
    if start % 4:
        raise ValueError(f"start must be a multiple of 4 (one Philox call makes four words), not {start}")
    blocks = torch.arange(start // 4, start // 4 + -(-count // 4), device=device)
    zero = torch.zeros_like(blocks)
    counter = torch.stack((blocks & _WORD, blocks >> 32, zero + int(stream), zero))
    words = philox4x32(counter, _key(seed, device))
    return words.T.reshape(-1)[:count]


def normal(
    seed: int | Tensor, count: int, *, device: torch.device, stream: Stream = Stream.DIRECTION, start: int = 0
) -> Tensor:
    """Standard normals `start .. start + count - 1` of `seed`, fp32 [count].

    Box-Muller in fp64: cosine for the even word, sine for the odd one.
    """
    first = start - start % 4
    skipped = start - first
    padded = skipped + count + (skipped + count) % 2
    # 2.6 million normals on one core: 75 ms in blocks whose temporaries stay in the cache, 120 ms in one piece
    blocks = [
        _box_muller(random_words(seed, min(_BLOCK, padded - done), stream, device=device, start=first + done))
        for done in range(0, padded, _BLOCK)
    ]
    return torch.cat(blocks)[skipped : skipped + count] if blocks else torch.empty(0, device=device)


def _box_muller(words: Tensor) -> Tensor:
    """Normals, fp32 [n], of words, int64 [n], n even."""
    pairs = words.view(-1, 2)
    radius = _sqrt_(_log((pairs[:, 0].to(torch.float64) + 1.0) * 2.0**-32).mul_(-2.0))
    cosine, sine = _cos_sin(pairs[:, 1])
    return torch.stack((radius * cosine, radius * sine), dim=1).view(-1).to(torch.float32)


def _sqrt_(x: Tensor) -> Tensor:
    """Square root of fp64 `x`, rounded as IEEE 754 says, in place.

    On a CPU by numpy: torch 2.13 takes it from MKL there, which is a unit off in 1.3% of fp64 values.
    """
    if x.device.type == "cpu":
        values = x.numpy()
        np.sqrt(values, out=values)
        return x
    return x.sqrt_()


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of normal, positive fp64 `x`: `exponent * ln 2 + log m`, m in [sqrt(1/2), sqrt(2))."""
    shifted = x.view(torch.int64) + SQRT_HALF_TO_ONE
    exponent = ((shifted >> 52) - 0x3FF).to(torch.float64)
    mantissa = ((shifted & 0x000FFFFFFFFFFFFF) + SQRT_HALF_BITS).view(torch.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent.mul_(LN_2).add_(_series(LOG_SERIES, s * s).mul_(s).mul_(2.0))


def _cos_sin(word: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle `word * 2 pi / 2^32`, fp64, of int64 words."""
    # the nearest quarter turn and the rest, both exact in integers
    quadrant = (word + (1 << 29)) >> 30
    x = (word - (quadrant << 30)).to(torch.float64).mul_(TWO_PI_2_M32)
    square = x * x
    cosine, sine = _series(COS_SERIES, square), _series(SIN_SERIES, square).mul_(x)
    odd = (quadrant & 1) == 1
    cos_size, sin_size = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    # signs of a quarter turn: cosine + - - +, sine + + - -
    return cos_size.mul_(1 - ((quadrant + 1) & 2)), sin_size.mul_(1 - (quadrant & 2))


def _series(coefficients: tuple[float, ...], z: Tensor) -> Tensor:
    """`c0 + z (c1 + z (c2 + ...))`, each operation rounded once."""
    total = torch.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total.mul_(z).add_(coefficient)
    return total


def rademacher(seed: int | Tensor, count: int, *, device: torch.device, stream: Stream = Stream.DIRECTION) -> Tensor:
    """Signs -1 and +1 of `seed`, fp32 [count]: the lowest bit of each word, 1 for +1."""
    return (2 * (random_words(seed, count, stream, device=device) & 1) - 1).to(torch.float32)


def uniform(seed: int | Tensor, count: int, *, device: torch.device, stream: Stream = Stream.INITIALISATION) -> Tensor:
    """Uniform values in (-1, 1) of `seed`, fp32 [count]."""
    words = random_words(seed, count, stream, device=device).to(torch.float64)
    return ((words + 0.5) * 2.0**-31 - 1.0).to(torch.float32)


DISTRIBUTIONS = {"gaussian": normal, "rademacher": rademacher}


def _key(seed: int | Tensor, device: torch.device) -> Tensor:
    seed = torch.as_tensor(seed, dtype=torch.int64, device=device)
    return torch.stack((seed & _WORD, (seed >> 32) & _WORD))
