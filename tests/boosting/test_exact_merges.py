"""Merging loses nothing: a thousand merges into 16-bit weights are the fp32 sum, rounded once."""

import pytest
import torch

import xgblora
from xgblora.ops.merge_rank1 import round_with_remainder

MERGES = 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_thousand_merges_are_the_fp32_sum_rounded_once(make_opt, randomise_adapters, dtype):
    adapters = xgblora.attach(make_opt(dtype=dtype), alpha=2.0)
    booster = xgblora.Booster(adapters)
    sums = [weight.float() for weight in adapters.weights()]
    for merge in range(MERGES):
        randomise_adapters(adapters, seed=merge, std=0.01)
        merged = booster.merge()
        for total, slot in zip(sums, adapters.arena.slots, strict=True):
            a, b = (part[0, 0] for part in slot.views(merged.adapters.unsqueeze(0)))
            # the arithmetic of the contract, written out: three fp32 operations, each rounded once
            total += (merged.scale * b).unsqueeze(1) * a
    for weight, total in zip(adapters.weights(), sums, strict=True):
        right, _ = round_with_remainder(total, dtype)
        if dtype == torch.bfloat16:
            assert torch.equal(weight, right)
        else:
            # below its normal range fp16 has more to remember than 16 bits
            normal = right.abs() >= torch.finfo(torch.float16).tiny
            assert normal.float().mean() > 0.99
            assert (weight == right)[normal].float().mean() > 0.999


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_other_roundings_are_not_the_fp32_sum(make_opt, randomise_adapters, rounding):
    adapters = xgblora.attach(make_opt(dtype=torch.bfloat16), alpha=2.0)
    exact = xgblora.attach(make_opt(dtype=torch.bfloat16), alpha=2.0)
    boosters = xgblora.Booster(adapters, rounding=rounding), xgblora.Booster(exact)
    for merge in range(50):
        for booster in boosters:
            randomise_adapters(booster.adapters, seed=merge, std=0.01)
            booster.merge()
    different = [(w != v).float().mean() for w, v in zip(adapters.weights(), exact.weights(), strict=True)]
    assert min(different) > 0.3
