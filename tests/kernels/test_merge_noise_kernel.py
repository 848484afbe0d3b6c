"""`merge_noise_` of the kernels gives the bits of the eager reference."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from xgblora.kernels import merge_noise
from xgblora.ops.eager import eager
from xgblora.ops.merge_rank1 import ROUNDINGS, new_remainders

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weights_of(dtype):
    """Row by row and larger than a tile, column by column, and with gaps."""
    torch.manual_seed(0)
    rows, columns, gaps = torch.randn(33, 9), torch.randn(9, 40), torch.randn(5, 30)
    return [rows.to(dtype), columns.to(dtype).T, gaps.to(dtype)[:, ::2]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rounding", "terms"), [*((rounding, 5) for rounding in ROUNDINGS), ("remainder", 0)])
def test_the_bits_are_those_of_the_reference(monkeypatch, dtype, rounding, terms):
    # so that five terms are summed in parts
    monkeypatch.setattr(merge_noise, "TERMS", 2)
    seeds, coefficients = torch.arange(terms) * 7 - 3, torch.linspace(-1, 2, terms)
    results = []
    for merge in (merge_noise.merge_noise_, eager("merge_noise_")):
        weights = weights_of(dtype)
        planes = new_remainders(weights)
        for seed in range(2):
            merge(weights, planes, [0, 104, 303], [72, 201, 602], seeds, coefficients, rounding, seed)
        results.append([*weights, *planes])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
