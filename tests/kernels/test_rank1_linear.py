"""`rank1_linear` of the kernels: every path as accurate as eager code in the same dtype, gradients too.

bf16 with `tl.dot` is left to a GPU: the interpreter multiplies bit patterns there (Triton 3.9).
"""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from xgblora.kernels import tuning
from xgblora.kernels.column_sum import CHUNK
from xgblora.kernels.rank1_linear import linear_by, rank1_linear, rank1_linear_backward
from xgblora.kernels.tuning import FEW_ROWS, FUSED_GEMM, VENDOR_GEMM, Plan
from xgblora.ops.rank1_linear import _backward, _forward

# rows, groups, inputs, outputs
SHAPES = [(1, 1, 37, 19), (6, 3, 65, 33), (16, 1, 130, 70), (16, 16, 64, 48), (90, 3, 65, 130), (34, 2, 1030, 17)]
PLANS = [
    Plan(FEW_ROWS, block_m=16, block_n=16, block_k=64),
    Plan(VENDOR_GEMM),
    Plan(FUSED_GEMM, block_m=32, block_n=32, block_k=64, group_m=2),
]


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """Fresh memory holds NaNs: an element that a kernel forgets, or reads before it is written, shows."""
    empty = torch.empty

    def poisoned(*arguments, **options):
        tensor = empty(*arguments, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.path)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_paths(rank1_case, assert_as_accurate, shape, dtype, plan):
    case = rank1_case(*shape, dtype)
    y = linear_by(plan, *case.forward_arguments)
    assert_as_accurate(y, _forward(*case.forward_arguments), case.expected())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_forward_of_one_row(rank1_case, assert_as_accurate, bias, dtype):
    case = rank1_case(1, 1, 1037, 43, dtype, bias=bias)
    y = rank1_linear(*case.forward_arguments)
    assert_as_accurate(y, _forward(*case.forward_arguments), case.expected())


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.path)
def test_forward_without_bias_and_with_fp32_adapters(rank1_case, assert_as_accurate, plan):
    case = rank1_case(24, 2, 70, 50, torch.float16, adapter_dtype=torch.float32, bias=False)
    y = linear_by(plan, *case.forward_arguments)
    assert_as_accurate(y, _forward(*case.forward_arguments), case.expected())


def test_forward_in_bf16_after_the_vendor_gemm(rank1_case, assert_as_accurate):
    case = rank1_case(90, 3, 65, 600, torch.bfloat16)
    y = rank1_linear(*case.forward_arguments)
    assert_as_accurate(y, _forward(*case.forward_arguments), case.expected())


def test_leading_dimensions_are_rows(rank1_case, assert_as_accurate):
    case = rank1_case(24, 4, 33, 20, torch.float32, shape=(4, 2, 3))
    y = rank1_linear(*case.forward_arguments)
    assert y.shape == (4, 2, 3, 20)
    assert_as_accurate(y, _forward(*case.forward_arguments), case.expected())


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.path)
def test_strided_weight_and_bias(rank1_case, assert_as_accurate, plan):
    case = rank1_case(12, 2, 66, 30, torch.float32)
    case.weight = case.weight.T.contiguous().T
    case.bias = case.bias.repeat_interleave(2)[::2]
    y = linear_by(plan, *case.forward_arguments)
    assert_as_accurate(y, _forward(*case.forward_arguments), case.expected())


@pytest.mark.parametrize("rows", [1, 12, 40])
@pytest.mark.parametrize("plan", [None, *PLANS], ids=lambda plan: plan.path if plan else "chosen")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_transposed_view_is_read_in_place(rank1_case, assert_as_accurate, monkeypatch, rows, plan, dtype):
    case = rank1_case(rows, 1, 200, 70, dtype)
    stored = case.weight.T.contiguous()
    case.weight = stored.T
    contiguous = torch.Tensor.contiguous

    def watched(tensor, *arguments, **options):
        assert tensor.shape != case.weight.shape, "a copy of the weight"
        return contiguous(tensor, *arguments, **options)

    eager, expected = _forward(*case.forward_arguments), case.expected()
    gradients, expected_gradients = _backward(*case.backward_arguments, True), case.expected_gradients()
    monkeypatch.setattr(torch.Tensor, "contiguous", watched)
    y = linear_by(plan, *case.forward_arguments) if plan else rank1_linear(*case.forward_arguments)
    ours = rank1_linear_backward(*case.backward_arguments, True)
    monkeypatch.undo()
    assert_as_accurate(y, eager, expected)
    for gradient, reference, wanted in zip(ours, gradients, expected_gradients, strict=True):
        assert_as_accurate(gradient, reference, wanted)


def test_a_part_of_a_larger_weight_is_read_by_its_strides(rank1_case, assert_as_accurate):
    # columns of a packed [K, 3 N] weight, and every other row of a [N, K] one
    for rows in (1, 12):
        case = rank1_case(rows, 1, 66, 30, torch.float32)
        for parent in (torch.randn(66, 90), torch.randn(66, 60)):
            case.weight = (parent[:, 30:60] if parent.shape[1] == 90 else parent[:, ::2]).to(case.x.device).T
            y = rank1_linear(*case.forward_arguments)
            assert_as_accurate(y, _forward(*case.forward_arguments), case.expected())


@pytest.mark.parametrize("rows", [8, 40])
def test_strided_x_and_strided_adapters(rank1_case, assert_as_accurate, rows):
    case = rank1_case(rows, 2, 66, 30, torch.float32)
    case.x = case.x.T.contiguous().T
    case.a = case.a.repeat_interleave(2, dim=1)[:, ::2]
    case.b = case.b.T.contiguous().T
    case.grad = case.grad.T.contiguous().T
    y = rank1_linear(*case.forward_arguments)
    assert_as_accurate(y, _forward(*case.forward_arguments), case.expected())
    gradients = rank1_linear_backward(*case.backward_arguments, True)
    eager = _backward(case.grad.contiguous(), *case.backward_arguments[1:], True)
    for gradient, reference, expected in zip(gradients, eager, case.expected_gradients(), strict=True):
        assert_as_accurate(gradient, reference.contiguous(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (300, 1, 40, 35)], ids=str)
def test_backward(rank1_case, assert_as_accurate, shape, dtype):
    case = rank1_case(*shape, dtype)
    gradients = rank1_linear_backward(*case.backward_arguments, True)
    eager = _backward(*case.backward_arguments, True)
    for gradient, reference, expected in zip(gradients, eager, case.expected_gradients(), strict=True):
        assert_as_accurate(gradient, reference, expected)


def test_backward_with_fp32_adapters(rank1_case, assert_as_accurate):
    case = rank1_case(40, 2, 70, 50, torch.bfloat16, adapter_dtype=torch.float32)
    gradients = rank1_linear_backward(*case.backward_arguments, True)
    eager = _backward(*case.backward_arguments, True)
    for gradient, reference, expected in zip(gradients, eager, case.expected_gradients(), strict=True):
        assert_as_accurate(gradient, reference, expected)


def test_backward_without_dx(rank1_case):
    case = rank1_case(40, 2, 30, 20, torch.float32)
    dx, da, db = rank1_linear_backward(*case.backward_arguments, False)
    _, expected_da, expected_db = rank1_linear_backward(*case.backward_arguments, True)
    assert dx.shape == (0,)
    assert dx.dtype == case.x.dtype
    assert torch.equal(da, expected_da)
    assert torch.equal(db, expected_db)


def test_backward_of_groups_of_several_chunks_twice_gives_the_same_bits(rank1_case, assert_as_accurate):
    case = rank1_case(2 * (CHUNK + 1), 2, 40, 35, torch.float16)
    first, second = (rank1_linear_backward(*case.backward_arguments, True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    eager = _backward(*case.backward_arguments, True)
    for gradient, reference, expected in zip(first, eager, case.expected_gradients(), strict=True):
        assert_as_accurate(gradient, reference, expected)


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)], ids=str)
def test_no_rows(rank1_case, shape):
    case = rank1_case(0, 2, 30, 20, torch.float32, shape=shape)
    y = rank1_linear(*case.forward_arguments)
    assert y.shape == (*shape, 20)
    dx, da, db = rank1_linear_backward(*case.backward_arguments, True)
    assert dx.shape == (*shape, 30)
    assert torch.equal(da, torch.zeros_like(case.a))
    assert torch.equal(db, torch.zeros_like(case.b))


def test_a_measured_plan_is_used(rank1_case, assert_as_accurate, monkeypatch, device):
    case = rank1_case(40, 2, 30, 20, torch.float32)
    key = tuning.Key("rank1_linear", tuning.architecture_of(device), "float32", 64, 20, 30)
    monkeypatch.setattr(tuning, "table", lambda: {key: PLANS[2]})
    monkeypatch.delattr("xgblora.kernels.rank1_linear.add_rank1_")
    y = rank1_linear(*case.forward_arguments)
    assert_as_accurate(y, _forward(*case.forward_arguments), case.expected())
