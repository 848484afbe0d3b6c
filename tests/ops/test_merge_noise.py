"""`merge_noise_`: the fp32 sum of weighted rank-1 noise, rounded once, the same bits by every backend."""

import pytest
import torch

from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops.eager import eager
from xgblora.ops.host_extension import host_extension
from xgblora.ops.merge_noise import noise_sum
from xgblora.ops.merge_rank1 import ROUNDINGS, round_with_remainder, running_sum
from xgblora.ops.noise import normal

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# places that are multiples of 4 and not, as a mixture's rows have them
STARTS = [(0, 72), (104, 201), (303, 602), (1000, 2001)]


def weights_of(dtype):
    """Row by row, column by column, and with gaps."""
    torch.manual_seed(0)
    rows, columns, gaps = torch.randn(33, 65), torch.randn(96, 40), torch.randn(5, 130)
    return [rows.to(dtype), columns.to(dtype).T.contiguous().T, columns.clone().to(dtype).T, gaps.to(dtype)[:, ::2]]


def terms_of(count):
    return torch.arange(count) * 7 - 3, torch.linspace(-1, 2, count)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 70_001])
def test_noise_can_be_made_from_any_place(start):
    whole = normal(-5, 70_020, device=CPU)
    assert torch.equal(normal(-5, 17, device=CPU, start=start), whole[start : start + 17])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_it_is_what_merging_one_sum_says(dtype, rounding):
    """In fp64 within fp32's rounding, and with one term the bits of `merge_rank1_`."""
    weights, (seeds, coefficients) = weights_of(dtype), terms_of(5)
    sums = [noise_sum(w.shape, *places, seeds, coefficients) for w, places in zip(weights, STARTS, strict=True)]
    for weight, (a, b), total in zip(weights, STARTS, sums, strict=True):
        z = torch.stack([normal(int(seed), 4000, device=CPU) for seed in seeds]).double()
        left = z[:, b : b + weight.shape[0]] * coefficients.double().unsqueeze(1)
        torch.testing.assert_close(total.double(), left.T @ z[:, a : a + weight.shape[1]], rtol=1e-5, atol=1e-5)
    one, other = weights_of(dtype), weights_of(dtype)
    ops.merge_noise_(one, STARTS, seeds[:1], coefficients[:1], rounding, remainders=ops.new_remainders(one), seed=3)
    z = normal(int(seeds[0]), 4000, device=CPU)
    pairs = [(z[a : a + w.shape[1]], z[b : b + w.shape[0]]) for w, (a, b) in zip(other, STARTS, strict=True)]
    planes = ops.new_remainders(other)
    ops.merge_rank1_(other, pairs, coefficients[0].item(), rounding, remainders=planes, seed=3)
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_256_terms_in_bf16_are_the_fp32_sum_rounded_once():
    weights, (seeds, _) = weights_of(torch.bfloat16), terms_of(256)
    coefficients = torch.linspace(-3e-5, 1e-4, 256)
    planes = ops.new_remainders(weights)
    for merge in range(3):
        totals = [
            running_sum(weight, plane) + noise_sum(weight.shape, *places, seeds + merge, coefficients)
            for weight, plane, places in zip(weights, planes, STARTS, strict=True)
        ]
        ops.merge_noise_(weights, STARTS, seeds + merge, coefficients, "remainder", remainders=planes)
        for weight, plane, total in zip(weights, planes, totals, strict=True):
            assert torch.equal(weight, round_with_remainder(total, torch.bfloat16)[0])
            assert torch.equal(running_sum(weight, plane), total)


@pytest.mark.skipif(host_extension().module is None, reason=host_extension().state)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 300])
def test_the_host_extension_gives_the_same_bits(dtype, count):
    from xgblora.ops.backends.host import merge_noise_

    seeds, coefficients = terms_of(count)
    for rounding in ("nearest", "remainder"):
        results = []
        for merge in (merge_noise_, eager("merge_noise_")):
            weights = weights_of(dtype)
            planes = ops.new_remainders(weights)
            for _ in range(2):
                merge(weights, planes, *map(list, zip(*STARTS, strict=True)), seeds, coefficients, rounding, 0)
            results.append([*weights, *planes])
        assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.skipif(host_extension().module is None, reason=host_extension().state)
def test_neither_instruction_set_nor_threads_change_a_bit():
    module, (seeds, coefficients) = host_extension().module, terms_of(9)
    results = []
    for number in range(len(module.instruction_sets())):
        for threads in (1, 3):
            weight = torch.ones(301, 259)
            terms = seeds.data_ptr(), coefficients.data_ptr(), len(seeds)
            module.merge_noise(weight.data_ptr(), 0, 0, 301, 259, 2, 400, True, *terms, threads, set=number)
            results.append(weight)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rounding": "up"}, "rounding=up: must be one of"),
        ({"starts": STARTS[:3]}, "4 weights and 3 starts"),
        ({"starts": [(-4, 0), *STARTS[1:]]}, r"a weight \(33, 65\) at \(-4, 0\): must be"),
        ({"coefficients": torch.ones(4)}, "5 seeds and 4 coefficients"),
        ({"seeds": torch.rand(5)}, r"seed=torch.float32 \(5,\): must be int64"),
        ({"seeds": 3}, "1 seeds and 5 coefficients"),
        ({"rounding": "remainder"}, "4 weights and 0 remainders"),
        ({"weights": [weight.int() for weight in weights_of(torch.float32)]}, "must be fp32, bf16 or fp16"),
    ],
)
def test_bad_input_is_refused_in_one_line(changed, message):
    seeds, coefficients = terms_of(5)
    arguments = {"weights": weights_of(torch.float32), "starts": STARTS, "seeds": seeds} | {
        "coefficients": coefficients,
        "rounding": "nearest",
    }
    with pytest.raises(InputError, match=message) as raised:
        ops.merge_noise_(**{**arguments, **changed})
    assert "\n" not in str(raised.value)


def test_opcheck():
    weights, (seeds, coefficients) = weights_of(torch.bfloat16)[:2], terms_of(3)
    arguments = (weights, ops.new_remainders(weights), [0, 104], [72, 201], seeds, coefficients, "remainder", 0)
    torch.library.opcheck(torch.ops.xgblora.merge_noise_, arguments)
