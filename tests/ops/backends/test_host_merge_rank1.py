"""`merge_rank1_` by the host extension against the eager reference: the same bits."""

import itertools

import pytest
import torch

from xgblora.ops.backends.host import merge_rank1_
from xgblora.ops.eager import eager
from xgblora.ops.merge_rank1 import ROUNDINGS, WEIGHT_DTYPES, new_remainders

SHAPES = ((1, 1), (33, 65), (64, 40), (7, 513), (0, 4), (5, 0))


def merged(function, make_weights, rounding, scale=0.37, merges=3):
    """Weights and remainders after some merges of a, b that change."""
    weights, generator = make_weights(), torch.Generator().manual_seed(1)
    remainders = new_remainders(weights)
    for seed in range(merges):
        a = [torch.randn(weight.shape[1], generator=generator) for weight in weights]
        b = [torch.randn(weight.shape[0], generator=generator) for weight in weights]
        function(weights, a, b, remainders, scale, rounding, seed)
    return weights + remainders


def agree(make_weights, rounding, **settings):
    ours, theirs = (
        merged(function, make_weights, rounding, **settings) for function in (merge_rank1_, eager("merge_rank1_"))
    )
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def of_all_shapes(dtype, layout):
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(2 * rows, 2 * columns, generator=generator).to(dtype) for rows, columns in SHAPES]
    return [layout(matrix, rows, columns) for matrix, (rows, columns) in zip(matrices, SHAPES, strict=True)]


LAYOUTS = {
    "row by row": lambda matrix, rows, columns: matrix[:rows, :columns].contiguous(),
    "column by column": lambda matrix, rows, columns: matrix[:rows, :columns].T.contiguous().T,
    "with gaps": lambda matrix, rows, columns: matrix[::2, ::2],
    "at an odd address": lambda matrix, rows, columns: matrix.flatten()[1 : 1 + rows * columns].view(rows, columns),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_any_layout_dtype_and_shape(instruction_set, rounding, layout):
    for dtype in WEIGHT_DTYPES:
        assert agree(lambda dtype=dtype: of_all_shapes(dtype, LAYOUTS[layout]), rounding)


def test_weights_of_any_size_and_sums_that_overflow(instruction_set):
    exponents = torch.arange(-140, 128, dtype=torch.float32).repeat_interleave(8).view(8, -1)
    values = torch.ldexp(1 + torch.rand(exponents.shape, generator=torch.Generator().manual_seed(2)), exponents)
    for dtype, rounding, scale in itertools.product(WEIGHT_DTYPES, ("nearest", "remainder"), (1e-6, 1e4)):
        finite = values.clamp(max=torch.finfo(dtype).max).to(dtype)
        assert agree(lambda finite=finite: [finite.clone(), -finite], rounding, scale=scale)


def test_tied_weights_are_merged_one_after_the_other():
    tied = torch.randn(40, 40).bfloat16()

    def make():
        weight = tied.clone()
        return [weight, weight, weight[:20]]

    assert agree(make, "remainder")


def test_the_number_of_threads_changes_no_bit(threads):
    weight = torch.randn(521, 600).bfloat16()
    for count in (1, 2, 5):
        threads(count)
        assert agree(lambda: [weight.clone()], "remainder", merges=1)
