"""The kernels of rows that name their adapters: as accurate as eager code, and the same bits as the rows of a group."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from xgblora.kernels.by_row import rank1_linear_by_row, rank1_linear_by_row_backward, row_dots_by_row
from xgblora.kernels.rank1_linear import linear_by
from xgblora.kernels.row_dot import row_dots
from xgblora.kernels.tuning import VENDOR_GEMM, Plan
from xgblora.ops.rank1_by_row import _backward, _forward, _row_dots

# rows, groups, inputs, outputs
SHAPES = [(1, 1, 37, 19), (6, 3, 65, 33), (10, 16, 530, 20)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(rank1_case, assert_as_accurate, device, shape, dtype):
    rows, groups, inputs, outputs = shape
    case = rank1_case(rows * groups, groups, inputs, outputs, dtype)
    index = torch.randint(0, groups, (rows,), generator=torch.Generator().manual_seed(0)).to(device)
    groups = index.to(torch.int32)
    a, b = case.a, case.b
    # in fp64, every row is a group of its own
    case.x, case.grad, case.a, case.b = case.x[:rows], case.grad[:rows], a[index], b[index]
    arguments = case.x, case.weight, case.bias, a, b, case.scale, groups
    assert_as_accurate(rank1_linear_by_row(*arguments), _forward(*arguments), case.expected())
    t = row_dots_by_row(case.x, [a, -a], groups)
    assert torch.allclose(t, _row_dots(case.x, [a, -a], groups), rtol=1e-4, atol=1e-4)
    arguments = case.grad, case.x, case.weight, a, b, case.scale, groups
    dx, da, db = case.expected_gradients()
    zeros = [torch.zeros_like(vectors, dtype=torch.float64) for vectors in (a, b)]
    da, db = (sums.index_add_(0, index, of_rows) for sums, of_rows in zip(zeros, (da, db), strict=True))
    results = rank1_linear_by_row_backward(*arguments, True), _backward(*arguments, True), (dx, da, db)
    for ours, eager, exact in zip(*results, strict=True):
        assert_as_accurate(ours, eager, exact)
    assert rank1_linear_by_row_backward(*arguments, False)[0].numel() == 0


def test_the_rows_of_equal_groups_have_the_bits_of_equal_groups(rank1_case, device):
    case = rank1_case(12, 3, 66, 35, torch.float32)
    groups = torch.arange(3, dtype=torch.int32, device=device)
    y = rank1_linear_by_row(*case.forward_arguments, groups)
    assert torch.equal(y, linear_by(Plan(VENDOR_GEMM), *case.forward_arguments))
    assert torch.equal(row_dots_by_row(case.x, [case.a], groups), row_dots(case.x, [case.a]))
    assert torch.equal(rank1_linear_by_row(*case.forward_arguments, groups.repeat_interleave(4)), y)


def test_no_rows(rank1_case, device):
    case = rank1_case(0, 2, 6, 3, torch.float32)
    groups = torch.zeros(0, dtype=torch.int32, device=device)
    assert rank1_linear_by_row(*case.forward_arguments, groups).shape == (0, 3)
    assert row_dots_by_row(case.x, [case.a], groups).shape == (1, 0)
