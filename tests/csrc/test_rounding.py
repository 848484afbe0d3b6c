"""The roundings of csrc/rounding.h against the eager reference, bit for bit, on the CPU."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from xgblora.ops.merge_rank1 import ROUNDINGS, round_stochastically, round_with_remainder, running_sum

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COUNT = 10_000_000
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def expected(rounding: str, weights: Tensor, updates: Tensor, words: Tensor, remainders: Tensor):
    """Weights and remainders after the merge, as the eager reference makes them of whole updates."""
    if weights.dtype == torch.float32:
        return weights + updates, remainders
    if rounding == "nearest":
        return (weights.float() + updates).to(weights.dtype), remainders
    if rounding == "stochastic":
        return round_stochastically(weights.float() + updates, weights.dtype, words), remainders
    return round_with_remainder(running_sum(weights, remainders) + updates, weights.dtype)


def different(ours: Tensor, reference: Tensor) -> int:
    """How many values differ in their bits; two NaN are the same."""
    integers = INTEGERS[reference.dtype]
    both_nan = ours.isnan() & reference.isnan()
    return int(((ours.view(integers) != reference.view(integers)) & ~both_nan).sum())


def assert_merges_agree(host, rounding, weights, updates, words, remainders):
    wanted, wanted_remainders = expected(rounding, weights, updates, words.long(), remainders)
    before = weights.clone()
    host.merge_elements(rounding, weights, updates, words.to(torch.int32), remainders)
    assert different(weights, wanted) == 0
    assert torch.equal(remainders, wanted_remainders)
    return before


def random_bits(generator: np.random.Generator, count: int, dtype: torch.dtype) -> Tensor:
    """Numbers of every exponent, infinities and NaN among them, as often as bit patterns have them."""
    kind = np.int32 if dtype == torch.float32 else np.int16
    limits = np.iinfo(kind)
    return torch.from_numpy(generator.integers(limits.min, limits.max, count, kind, endpoint=True)).view(dtype)


def random_updates(generator: np.random.Generator, weights: Tensor) -> Tensor:
    """A third random bit patterns, the rest within 2^-20 .. 2^4 of the weight, where roundings decide."""
    updates = random_bits(generator, weights.numel(), torch.float32)
    near = weights[weights.numel() // 3 :].float()
    factors = torch.from_numpy(generator.standard_normal(near.numel(), np.float32))
    exponents = torch.from_numpy(generator.integers(-20, 4, near.numel(), np.int32))
    updates[weights.numel() // 3 :] = torch.ldexp(near * factors, exponents)
    return updates


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ten_million_random_bit_patterns(host, dtype, rounding):
    generator = np.random.default_rng(0)
    block = COUNT // 10
    for _ in range(10):
        weights = random_bits(generator, block, dtype)
        updates = random_updates(generator, weights)
        words = random_bits(generator, block, torch.float32).view(torch.int32)
        remainders = torch.from_numpy(generator.integers(-(2**15), 2**15, block, np.int16))
        before = assert_merges_agree(host, rounding, weights, updates, words, remainders)
        assert different(weights, before) > block // 10, "most weights moved"


def special_values() -> Tensor:
    """fp32 of every exponent: zeros, subnormals, ties of bf16 and fp16 and their neighbours, infinities, NaN."""
    exponents = torch.arange(256).view(-1, 1, 1) << 23
    kept = torch.tensor([0, 1 << 13, 1 << 16, 3 << 16, 0x7F0000]).view(1, -1, 1)
    low = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF]).view(1, 1, -1)
    values = (exponents + kept + low).reshape(-1).to(torch.int32).view(torch.float32)
    return torch.cat((values, -values))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("base", [0.0, -0.0, 1.0, -(2.0**-24), 65504.0, math.inf, -math.inf, math.nan])
def test_special_values(host, dtype, rounding, base):
    updates = special_values()
    for word in (0, 0xFFFF, 0x1000, 0x8000):
        words = torch.full(updates.shape, word)
        for remainder in (0, 1, -1, -(2**15), 2**15 - 1):
            weights = torch.full(updates.shape, base).to(dtype)
            remainders = torch.full(updates.shape, remainder, dtype=torch.int16)
            assert_merges_agree(host, rounding, weights, updates.clone(), words, remainders)


def test_every_16_bit_number_survives_a_merge_of_nothing(host):
    for dtype in (torch.bfloat16, torch.float16):
        for rounding in ROUNDINGS:
            weights = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
            before = weights.clone()
            zeros = torch.zeros(weights.shape).copysign(before.float())
            words = torch.full(weights.shape, 0xFFFF)
            host.merge_elements(rounding, weights, zeros, words.to(torch.int32), torch.zeros_like(words).short())
            assert different(weights, before) == 0


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_stochastic_is_unbiased(host, dtype, fraction):
    count, unit = 400_000, torch.finfo(dtype).eps
    for sign, start in ((1.0, 1.0), (-1.0, 1.0), (1.0, 2.0**-20)):
        step = unit * start if dtype == torch.bfloat16 or start == 1.0 else 2.0**-24
        weights = torch.full((count,), sign * start, dtype=dtype)
        updates = torch.full((count,), sign * fraction * step)
        words = torch.tensor([word for call in range(count // 8) for word in host.rounding_words(5, 8 * call)])
        host.merge_elements("stochastic", weights, updates, words.to(torch.int32), torch.zeros(count).short())
        moved = (weights.double().abs() - start) / step
        assert set(moved.unique().tolist()) == {0.0, 1.0}
        # the noise has 16 or 13 bits, so the probability is the fraction to within 2^-13
        z = (moved.sum().item() - count * fraction) / math.sqrt(count * fraction * (1 - fraction))
        assert abs(z) < 4.5
