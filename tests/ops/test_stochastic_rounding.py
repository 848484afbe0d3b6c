"""Stochastic rounding of merges: unbiased, a neighbour of the sum, and noise that belongs to the element."""

import math

import pytest
import torch

from tests.ops.numbers import HALVES, bits_of_all_exponents, normals, transposed
from xgblora import ops
from xgblora.ops.merge_rank1 import (
    round_stochastically,
)
from xgblora.ops.noise import Stream, random_words

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_noise_of_a_transposed_weight_belongs_to_its_place_in_memory(dtype):
    # as for the row-major [K, N] that it is, with a and b exchanged; behind an odd weight, so that words are shifted
    first, weight, a, b = normals(3, 3), normals(9, 5), normals(5, seed=1), normals(9, seed=2)
    pair = normals(3, seed=3), normals(3, seed=4)
    turned = [first.to(dtype), transposed(weight.to(dtype))]
    stored = [first.to(dtype), weight.T.contiguous().to(dtype)]
    plain = [first.to(dtype), weight.to(dtype)]
    # a power of two, so that (scale * b) * a and (scale * a) * b are the same number
    for weights, adapters in ((turned, (a, b)), (stored, (b, a)), (plain, (a, b))):
        ops.merge_rank1_(weights, [pair, adapters], 0.25, "stochastic", seed=7)
    assert torch.equal(turned[1].T, stored[1])
    assert not torch.equal(turned[1], plain[1])
    assert torch.equal(turned[0], plain[0])


def test_stochastic_noise_of_other_strides_goes_row_by_row():
    wide, a, b = normals(4, 10).bfloat16(), normals(5, seed=1), normals(4, seed=2)
    views = [wide[:, ::2], wide[:, ::2].contiguous()]
    for view in views:
        ops.merge_rank1_([view], [(a, b)], 0.3, "stochastic", seed=7)
    assert torch.equal(*views)


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_is_unbiased(dtype):
    count, fraction = 200_000, 0.3
    unit = torch.finfo(dtype).eps
    for sign in (1.0, -1.0):
        weight = torch.full((count, 1), sign, dtype=dtype)
        update = torch.full((count,), sign * fraction * unit)
        ops.merge_rank1_([weight], [(torch.ones(1), update)], 1.0, "stochastic", seed=12)
        moved = (weight.float() - sign).abs() / unit
        assert set(moved.unique().tolist()) == {0.0, 1.0}, "only the two neighbours"
        z = (moved.sum().item() - count * fraction) / math.sqrt(count * fraction * (1 - fraction))
        assert abs(z) < 4.5


@pytest.mark.parametrize("units", [5, 700])
def test_stochastic_is_unbiased_below_the_normal_range_of_fp16(units):
    count, fraction, unit = 200_000, 0.3, 2.0**-24
    weight = torch.full((count, 1), units * unit, dtype=torch.float16)
    update = torch.full((count,), fraction * unit)
    ops.merge_rank1_([weight], [(torch.ones(1), update)], 1.0, "stochastic", seed=12)
    moved = weight.double() / unit - units
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    assert abs(moved.sum().item() - count * fraction) < 4.5 * math.sqrt(count * fraction * (1 - fraction))


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_gives_a_neighbour_of_every_kind_of_sum(dtype):
    total = bits_of_all_exponents()
    words = random_words(3, total.numel(), Stream.ROUNDING, device=CPU)
    rounded = round_stochastically(total, dtype, words)
    nearest = total.to(dtype)
    towards, away = (torch.nextafter(nearest, torch.full_like(nearest, end)) for end in (-math.inf, math.inf))
    exact = total == nearest.float()
    assert torch.equal(rounded[exact], nearest[exact]), "what fits is not touched"
    other = torch.where(nearest.float() > total, towards, away)
    assert torch.all((rounded == nearest) | (rounded == other))
    assert torch.any(rounded != nearest)


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_leaves_infinities_and_nan(dtype):
    total = torch.tensor([math.inf, -math.inf, math.nan])
    rounded = round_stochastically(total, dtype, torch.full((3,), 0xFFFF))
    assert rounded[:2].tolist() == [math.inf, -math.inf]
    assert rounded[2].isnan()


@pytest.mark.parametrize("split", [1, 2, 4, 6])
def test_stochastic_noise_belongs_to_the_element_of_the_concatenation(split):
    # 5 columns: the second weight starts at word 5, 10, 20 or 30
    weight, a, b = normals(7, 5).bfloat16(), normals(5, seed=1), normals(7, seed=2)
    parts = [weight[:split].clone(), weight[split:].clone()]
    ops.merge_rank1_([weight], [(a, b)], 0.3, "stochastic", seed=77)
    ops.merge_rank1_(parts, [(a, b[:split]), (a, b[split:])], 0.3, "stochastic", seed=77)
    assert torch.equal(torch.cat(parts), weight)


def test_stochastic_noise_is_a_function_of_the_seed():
    def merged(seed):
        weight = torch.ones(100, 10).bfloat16()
        ops.merge_rank1_([weight], [(torch.full((10,), 2.0**-9), torch.ones(100))], 1.0, "stochastic", seed=seed)
        return weight

    assert torch.equal(merged(1), merged(1))
    assert not torch.equal(merged(1), merged(2))
    assert not torch.equal(merged(-1), merged(1))


def test_fp32_weights_take_part_in_the_numbering_of_stochastic_noise():
    b16 = [torch.ones(3, 3).bfloat16(), torch.ones(5, 4).bfloat16()]
    mixed = [torch.ones(3, 3), torch.ones(5, 4).bfloat16()]
    adapters = [(torch.full((3,), 2.0**-9), torch.ones(3)), (torch.full((4,), 2.0**-9), torch.ones(5))]
    ops.merge_rank1_(b16, adapters, 1.0, "stochastic", seed=4)
    ops.merge_rank1_(mixed, adapters, 1.0, "stochastic", seed=4)
    assert torch.equal(b16[1], mixed[1])
