"""Rows times the matrices of their groups, by the kernel and group by group."""

import pytest
import torch

from xgblora.ops import grouped_product as module
from xgblora.ops.grouped_product import grouped_product


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_meets_the_matrix_of_its_group(monkeypatch, kernel, transposed, dtype):
    if not kernel:
        monkeypatch.setattr(module, "_has_kernel", lambda device, dtype: False)
    torch.manual_seed(0)
    # the second group has no rows
    x, ends, groups = torch.randn(9, 16, dtype=dtype), torch.tensor([3, 3, 9], dtype=torch.int32), [0] * 3 + [2] * 6
    matrices = torch.randn(3, 8, 16, dtype=dtype).transpose(1, 2) if transposed else torch.randn(3, 16, 8, dtype=dtype)
    x.requires_grad_()
    y = grouped_product(x, matrices, ends)
    expected = torch.einsum("sk,skn->sn", x, matrices[groups])
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(y, expected, **tolerance)
    weights = torch.randn(9, 8, dtype=dtype)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    torch.testing.assert_close(gradient, torch.einsum("sn,skn->sk", weights, matrices[groups]), **tolerance)
