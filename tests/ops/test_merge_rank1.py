"""Merges to the bit: the three operations, nearest and remainder, layouts, and what is refused."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ops.numbers import HALVES, bits_of_all_exponents, normals, transposed
from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops.merge_rank1 import (
    ROUNDINGS,
    new_remainders,
    round_with_remainder,
    running_sum,
)

LARGEST_BF16 = torch.finfo(torch.bfloat16).max


def update_of(scale, a, b) -> np.ndarray:
    """(scale * b) * a in numpy: two fp32 products, each rounded once."""
    return (np.float32(scale) * b.numpy())[:, None] * a.numpy()[None, :]


def rounded_to_bf16(values: np.ndarray) -> np.ndarray:
    """fp32 to the nearest bf16, ties away from zero, as fp64 numbers.

    Independent of bit tricks on the sum: the two neighbours are compared by their distance in fp64, where 2^128 stands
    for infinity.
    """
    magnitude = np.abs(values.astype(np.float64))
    _, exponent = np.frexp(magnitude)
    spacing = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    lower = np.floor(magnitude / spacing) * spacing
    nearest = np.where(magnitude - lower < lower + spacing - magnitude, lower, lower + spacing)
    return np.copysign(np.where(nearest >= 2.0**128, np.inf, nearest), values)


def as_fp64(weight: Tensor) -> np.ndarray:
    return weight.double().numpy()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_fp32_weights_are_the_three_documented_operations(rounding):
    weights = [normals(5, 7), normals(3, 2, seed=1)]
    adapters = [(normals(7, seed=2), normals(5, seed=3)), (normals(2, seed=4), normals(3, seed=5))]
    wanted = [w.numpy() + update_of(0.37, a, b) for w, (a, b) in zip(weights, adapters, strict=True)]
    pointers = [w.data_ptr() for w in weights]
    ops.merge_rank1_(weights, adapters, 0.37, rounding, remainders=new_remainders(weights), seed=9)
    for weight, value, pointer in zip(weights, wanted, pointers, strict=True):
        assert np.array_equal(weight.numpy(), value)
        assert weight.data_ptr() == pointer, "merged in place"


@pytest.mark.parametrize("dtype", HALVES)
def test_nearest_rounds_the_fp32_sum_once(dtype):
    weight, a, b = normals(9, 5).to(dtype), normals(5, seed=1), normals(9, seed=2)
    wanted = torch.from_numpy(weight.float().numpy() + update_of(0.37, a, b)).to(dtype)
    ops.merge_rank1_([weight], [(a, b)], 0.37, "nearest")
    assert torch.equal(weight, wanted)


def test_weights_that_are_views_are_written_through():
    storage = normals(8, 6).bfloat16()
    before, weight = storage.clone(), storage[::2, 1:4]
    ops.merge_rank1_([weight], [(torch.ones(3), torch.ones(4))], 1.0, "remainder", remainders=new_remainders([weight]))
    assert not torch.equal(weight, before[::2, 1:4])
    storage[::2, 1:4] = before[::2, 1:4]
    assert torch.equal(storage, before), "nothing beside the view was touched"


@pytest.mark.parametrize("rounding", ["nearest", "remainder"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_transposed_weight_merges_to_the_same_numbers(dtype, rounding):
    weights = [normals(9, 5).to(dtype)]
    turned = [transposed(weights[0])]
    planes, turned_planes = new_remainders(weights), new_remainders(turned)
    storage = turned[0].T
    for merge in range(3):
        pair = normals(5, seed=merge), normals(9, seed=merge + 1)
        ops.merge_rank1_(weights, [pair], 0.37, rounding, remainders=planes)
        ops.merge_rank1_(turned, [pair], 0.37, rounding, remainders=turned_planes)
    assert torch.equal(weights[0], turned[0])
    assert torch.equal(planes[0], turned_planes[0])
    assert storage.is_contiguous() and torch.equal(storage, weights[0].T), "merged in place"


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 1e-30, 16.0, 1 + 2.0**-30])
def test_the_scale_is_rounded_to_fp32_first(scale):
    a, b = normals(301), normals(257, seed=1)
    merged = torch.zeros(257, 301)
    ops.merge_rank1_([merged], [(a, b)], scale, "nearest")
    assert np.array_equal(merged.numpy(), update_of(scale, a, b))


def test_nothing_to_merge():
    ops.merge_rank1_([], [], 1.0, "remainder", remainders=[])
    empty = torch.zeros(0, 3)
    ops.merge_rank1_([empty], [(torch.zeros(3), torch.zeros(0))], 1.0, "stochastic", seed=1)


@pytest.mark.parametrize("std", [1e-4, 1e-2, 1.0])
def test_remainder_in_bf16_is_always_the_running_sum_rounded_once(std):
    weight = normals(6, 11, std=0.05).bfloat16()
    weight[0, 0], weight[0, 1] = 0.0, -0.0
    remainders = new_remainders([weight])
    total = weight.float().numpy()
    for merge in range(250):
        a, b = normals(11, seed=2 * merge, std=std), normals(6, seed=2 * merge + 1, std=std)
        total = total + update_of(0.7, a, b)
        ops.merge_rank1_([weight], [(a, b)], 0.7, "remainder", remainders=remainders)
        assert np.array_equal(as_fp64(weight), rounded_to_bf16(total))
        assert torch.equal(running_sum(weight, remainders[0]), torch.from_numpy(total))


@pytest.mark.parametrize("std", [1e-3, 1e-2, 1.0])
def test_remainder_in_fp16_is_exact_for_normal_numbers(std):
    # far enough from zero that no sum leaves the normal range of fp16
    weight = (normals(6, 11, std=0.05).sign() * 40).half()
    remainders = new_remainders([weight])
    total = weight.float().numpy()
    for merge in range(250):
        a, b = normals(11, seed=2 * merge, std=std), normals(6, seed=2 * merge + 1, std=std)
        total = total + update_of(0.7, a, b)
        assert np.abs(total).min() > 2.0**-14
        ops.merge_rank1_([weight], [(a, b)], 0.7, "remainder", remainders=remainders)
        # numpy rounds ties to even
        assert np.array_equal(weight.numpy(), total.astype(np.float16))
        assert torch.equal(running_sum(weight, remainders[0]), torch.from_numpy(total))


def test_every_kind_of_finite_sum_survives_in_bf16():
    # ties, sums that overflow to infinity, subnormals, zeros, both signs
    total = bits_of_all_exponents()
    assert total.isfinite().all()
    weight, remainder = round_with_remainder(total, torch.bfloat16)
    assert np.array_equal(as_fp64(weight), rounded_to_bf16(total.numpy()))
    assert torch.equal(running_sum(weight, remainder).view(torch.int32), total.view(torch.int32))
    assert weight.isinf().any()
    assert remainder.min() == -0x8000


def test_a_tie_goes_away_from_zero_in_bf16():
    half_unit = 2.0**-8
    total = torch.tensor([1 + half_unit, -1 - half_unit, 1 + 3 * half_unit, 2 - half_unit])
    weight, remainder = round_with_remainder(total, torch.bfloat16)
    assert weight.tolist() == [1 + 2 * half_unit, -1 - 2 * half_unit, 1 + 4 * half_unit, 2.0]
    assert remainder.tolist() == [-0x8000] * 4


def test_every_kind_of_normal_sum_survives_in_fp16():
    total = bits_of_all_exponents()
    total = total[(total.abs() >= 2.0**-14) & (total.abs() < 65520)]
    weight, remainder = round_with_remainder(total, torch.float16)
    assert np.array_equal(weight.numpy(), total.numpy().astype(np.float16))
    assert torch.equal(running_sum(weight, remainder).view(torch.int32), total.view(torch.int32))


def test_below_the_normal_range_fp16_is_near_and_never_wild():
    total = bits_of_all_exponents()
    total = total[total.abs() < 2.0**-14]
    weight, remainder = round_with_remainder(total, torch.float16)
    assert np.array_equal(weight.numpy(), total.numpy().astype(np.float16))
    assert (running_sum(weight, remainder) - total).abs().max() <= 2.0**-25


@pytest.mark.parametrize("dtype", HALVES)
def test_infinities_and_nan_stay_what_they_are(dtype):
    weight = torch.tensor([[math.inf], [-math.inf], [math.nan], [1.0]]).to(dtype)
    remainders = new_remainders([weight])
    for _ in range(3):
        ops.merge_rank1_([weight], [(torch.ones(1), torch.full((4,), 0.1))], 1.0, "remainder", remainders=remainders)
    assert weight[:2, 0].tolist() == [math.inf, -math.inf]
    assert weight[2].isnan()
    assert weight[3].isfinite()
    assert remainders[0][:3].abs().sum() == 0
    total = running_sum(weight, remainders[0])
    assert total[:2, 0].tolist() == [math.inf, -math.inf]
    assert total[2].isnan()


def test_an_update_that_is_infinite_or_nan_shows_in_the_weight():
    weight = torch.ones(3, 1).bfloat16()
    remainders = new_remainders([weight])
    update = torch.tensor([math.inf, -math.inf, math.nan])
    ops.merge_rank1_([weight], [(torch.ones(1), update)], 1.0, "remainder", remainders=remainders)
    assert weight[:2, 0].tolist() == [math.inf, -math.inf]
    assert weight[2].isnan()


def test_a_sum_beyond_bf16_comes_back_from_infinity():
    weight = torch.full((1, 2), LARGEST_BF16).bfloat16()
    weight[0, 1] = -LARGEST_BF16
    remainders, base = new_remainders([weight]), weight.clone()
    beyond = torch.tensor([1.5, -1.5]) * 2.0**119
    ops.merge_rank1_([weight], [(beyond, torch.ones(1))], 1.0, "remainder", remainders=remainders)
    assert weight.tolist() == [[math.inf, -math.inf]]
    ops.merge_rank1_([weight], [(-beyond, torch.ones(1))], 1.0, "remainder", remainders=remainders)
    assert torch.equal(weight, base)


def test_of_200_small_merges_nearest_loses_most_stochastic_little_and_the_remainder_nothing():
    start = normals(32, 32, std=0.05)
    merged = {rounding: start.bfloat16() for rounding in ROUNDINGS}
    exact = start.bfloat16().float()
    remainders = new_remainders([exact.bfloat16()])
    direction = normals(32, seed=1).sign() * 1e-2, normals(32, seed=2).sign() * 1e-3
    for merge in range(200):
        for rounding, weight in merged.items():
            ops.merge_rank1_([weight], [direction], 1.0, rounding, remainders=remainders, seed=merge)
        ops.merge_rank1_([exact], [direction], 1.0, "nearest")
    true_update = exact - start.bfloat16().float()

    def recovered(rounding):
        moved = merged[rounding].float() - start.bfloat16().float()
        return ((moved * true_update).sum() / true_update.square().sum()).item()

    assert recovered("nearest") < 0.5
    assert abs(recovered("stochastic") - 1) < 0.1
    assert np.array_equal(as_fp64(merged["remainder"]), rounded_to_bf16(exact.numpy()))
    assert torch.equal(running_sum(merged["remainder"], remainders[0]), exact)


def test_new_remainders_fit_their_weights():
    weights = [torch.zeros(2, 3).bfloat16(), torch.zeros(4, 5), torch.zeros(1, 2).half()]
    assert [tuple(r.shape) for r in new_remainders(weights)] == [(2, 3), (0,), (1, 2)]
    assert {r.dtype for r in new_remainders(weights)} == {torch.int16}


def test_new_remainders_lie_as_their_weights_do():
    weight = torch.ones(4, 3).bfloat16()
    for view in (weight, weight.T):
        (plane,) = new_remainders([view])
        assert (plane.shape, plane.stride()) == (view.shape, view.stride())
        assert not plane.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounding": "up"}, r"rounding=up: must be one of nearest, stochastic, remainder"),
        ({"adapters": []}, r"1 weights and 0 adapters: must be equal"),
        ({"adapters": [(torch.zeros(2), torch.zeros(3))]}, r"a \(2,\) and b \(3,\) do not fit the weight \(2, 3\)"),
        (
            {"adapters": [(torch.zeros(1, 3), torch.zeros(1, 2))]},
            r"a \(1, 3\) and b \(1, 2\) do not fit .* \[K\] and \[N\]",
        ),
        ({"adapters": [(torch.zeros(3).bfloat16(), torch.zeros(2))]}, r"a is bfloat16, b float32: .* in float32"),
        ({"weights": [torch.zeros(2, 3, dtype=torch.float64)]}, r"must be fp32, bf16 or fp16 .* not torch.float64"),
        ({"remainders": None}, r"1 weights and 0 remainders: must be equal"),
        (
            {"remainders": [torch.zeros(3, 2, dtype=torch.int16)]},
            r"a remainder must be int16 \(2, 3\) on cpu, not int16 \(3, 2\) on cpu",
        ),
        ({"remainders": [torch.zeros(2, 3, dtype=torch.int32)]}, r"must be int16 \(2, 3\) on cpu, not int32 \(2, 3\)"),
        ({"adapters": [(torch.ones(3, device="meta"), torch.ones(2))]}, r"a weight and its adapter must be on one"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_and_nothing_is_merged(changes, message):
    weight = torch.ones(2, 3).bfloat16()
    arguments = {
        "weights": [weight],
        "adapters": [(torch.ones(3), torch.ones(2))],
        "scale": 1.0,
        "rounding": "remainder",
        "remainders": new_remainders([weight]),
    }
    with pytest.raises(InputError, match=message) as raised:
        ops.merge_rank1_(**{**arguments, **changes})
    assert "\n" not in str(raised.value)
    assert torch.all(weight == 1)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_opcheck(rounding, dtype):
    weights = [normals(3, 5).to(dtype), normals(2, 3).to(dtype)]
    remainders = new_remainders(weights) if rounding == "remainder" else []
    a, b = [normals(5), normals(3)], [normals(3), normals(2)]
    torch.library.opcheck(torch.ops.xgblora.merge_rank1_.default, (weights, a, b, remainders, 0.5, rounding, 7))


def test_opcheck_of_a_transposed_weight():
    weights = [transposed(normals(3, 5).bfloat16())]
    arguments = weights, [normals(5)], [normals(3)], new_remainders(weights), 0.5, "remainder", 7
    torch.library.opcheck(torch.ops.xgblora.merge_rank1_.default, arguments)
