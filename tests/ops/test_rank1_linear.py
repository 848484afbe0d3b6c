import pytest
import torch
from torch import Tensor

from xgblora import ops
from xgblora.errors import InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCALE = 0.7


def make_case(rows, groups, inputs, outputs, dtype=torch.float32, *, adapter_dtype=None, bias=True, seed=0):
    """Arguments of `rank1_linear`; `a` and `b` are column slices of the rows of an arena [G, P]."""
    generator = torch.Generator().manual_seed(seed)

    def normals(*shape, of=dtype):
        return torch.randn(*shape, generator=generator).to(of)

    arena = normals(groups, inputs + outputs + 8, of=adapter_dtype or dtype)
    a, b = arena[:, 3 : 3 + inputs], arena[:, 5 + inputs : 5 + inputs + outputs]
    return normals(rows, inputs), normals(outputs, inputs), normals(outputs) if bias else None, a, b, SCALE


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The formula in fp64, one row at a time; differentiable."""
    x, weight, a, b = x.double(), weight.double(), a.double(), b.double()
    rows = x.reshape(-1, x.shape[-1])
    per_group = len(rows) // len(a)
    y = [weight @ row + scale * (row @ a[i // per_group]) * b[i // per_group] for i, row in enumerate(rows)]
    y = torch.stack(y) if y else rows.new_zeros(0, len(weight))
    return (y if bias is None else y + bias.double()).view(*x.shape[:-1], len(weight))


def relative_error(result: Tensor, expected: Tensor) -> float:
    return ((result.double() - expected).abs().max() / expected.abs().max()).item() if expected.numel() else 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "groups", "inputs", "outputs"),
    [
        (1, 1, 1, 1),
        (3, 1, 5, 7),
        (4, 2, 33, 17),
        (8, 4, 16, 3),
        (12, 4, 7, 65),
        (4, 4, 32, 32),
        (0, 1, 8, 8),
        (0, 2, 5, 3),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_forward_is_the_formula(dtype, rows, groups, inputs, outputs, bias):
    case = make_case(rows, groups, inputs, outputs, dtype, bias=bias)
    y = ops.rank1_linear(*case)
    assert y.dtype == dtype
    assert y.shape == (rows, outputs)
    assert relative_error(y, reference(*case)) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_adapters_may_be_fp32_beside_16_bit_rows(dtype):
    case = make_case(6, 2, 24, 9, dtype, adapter_dtype=torch.float32)
    assert relative_error(ops.rank1_linear(*case), reference(*case)) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_rank_1_term_accumulates_in_fp32(dtype):
    # 4096 products of 1: a 16-bit accumulator of bf16 stops at 256, one of fp16 at 2048
    inputs = 4096
    x, weight = torch.ones(2, inputs, dtype=dtype), torch.zeros(1, inputs, dtype=dtype)
    a, b = torch.ones(1, inputs, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    assert ops.rank1_linear(x, weight, None, a, b, 1.0).tolist() == [[4096.0], [4096.0]]


def test_leading_dimensions_are_kept_and_groups_follow_the_flattened_rows():
    x, *rest = make_case(12, 2, 5, 4)
    flat = ops.rank1_linear(x, *rest)
    assert torch.equal(ops.rank1_linear(x.view(2, 3, 2, 5), *rest), flat.view(2, 3, 2, 4))


def test_one_row_may_be_a_vector():
    x, weight, bias, a, b, scale = make_case(1, 1, 5, 4)
    y = ops.rank1_linear(x[0], weight, bias, a[0], b[0], scale)
    assert y.shape == (4,)
    assert relative_error(y, reference(x, weight, bias, a, b, scale)[0]) < 1e-6


@pytest.mark.parametrize("view", ["transposed", "every other row", "part of the columns", "expanded"])
@pytest.mark.parametrize("groups", [1, 2])
def test_x_need_not_be_contiguous(view, groups):
    _, weight, bias, a, b, scale = make_case(4, groups, 6, 5)
    generator = torch.Generator().manual_seed(1)
    x = {
        "transposed": lambda: torch.randn(6, 4, generator=generator).T,
        "every other row": lambda: torch.randn(8, 6, generator=generator)[::2],
        "part of the columns": lambda: torch.randn(4, 10, generator=generator)[:, 2:8],
        "expanded": lambda: torch.randn(1, 6, generator=generator).expand(4, 6),
    }[view]()
    assert not x.is_contiguous()
    arguments = [tensor.clone().requires_grad_() for tensor in (a, b)]
    y = ops.rank1_linear(x, weight, bias, *arguments, scale)
    assert relative_error(y, reference(x, weight, bias, a, b, scale)) < 1e-6
    y.sum().backward()
    expected = [tensor.clone().requires_grad_() for tensor in (a, b)]
    reference(x, weight, bias, *expected, scale).sum().backward()
    for ours, theirs in zip(arguments, expected, strict=True):
        assert relative_error(ours.grad, theirs.grad.double()) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_two_groups_in_one_call_are_as_good_as_one_call_a_group(dtype, groups):
    x, weight, bias, a, b, scale = make_case(8, groups, 16, 12, dtype)
    together = ops.rank1_linear(x, weight, bias, a, b, scale).view(groups, -1, 12)
    for group, rows in enumerate(x.view(groups, -1, 16)):
        alone = ops.rank1_linear(rows, weight, bias, a[group], b[group], scale)
        assert relative_error(together[group], alone.double()) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "groups", "inputs", "outputs"), [(3, 1, 5, 7), (6, 2, 9, 4), (8, 4, 16, 16), (0, 2, 4, 4)]
)
def test_the_gradients_are_those_of_plain_autograd_in_fp64(dtype, rows, groups, inputs, outputs):
    x, weight, bias, a, b, scale = make_case(rows, groups, inputs, outputs, dtype)
    grad = torch.randn(rows, outputs, generator=torch.Generator().manual_seed(2)).to(dtype)
    ours = [tensor.detach().clone().requires_grad_() for tensor in (x, a, b)]
    ops.rank1_linear(ours[0], weight, bias, *ours[1:], scale).backward(grad)
    expected = [tensor.detach().double().requires_grad_() for tensor in (x, a, b)]
    if rows:
        reference(expected[0], weight, bias, *expected[1:], scale).backward(grad.double())
    for tensor, other in zip(ours, expected, strict=True):
        assert tensor.grad.dtype == tensor.dtype
        assert tensor.grad.shape == tensor.shape
        wanted = other.grad if rows else torch.zeros_like(other)
        assert torch.allclose(
            tensor.grad.double(),
            wanted,
            rtol=0,
            atol=8 * torch.finfo(dtype).eps * (wanted.abs().max().item() if rows else 1),
        )


def test_gradients_flow_through_strided_rows_into_the_arena():
    arena = torch.randn(2, 40, requires_grad=True)
    x, weight = torch.randn(4, 8), torch.randn(6, 8)
    ops.rank1_linear(x, weight, None, arena[:, 8:16], arena[:, 20:26], SCALE).sum().backward()
    untouched = torch.ones(40, dtype=torch.bool)
    untouched[8:16] = untouched[20:26] = False
    assert torch.all(arena.grad[:, untouched] == 0)
    assert torch.all(arena.grad[:, ~untouched] != 0)


def test_no_gradient_for_x_is_made_where_none_is_wanted():
    x, weight, bias, a, b, scale = make_case(4, 2, 5, 3)
    grad = torch.randn(4, 3)
    full = torch.ops.xgblora.rank1_linear_backward(grad, x, weight, a, b, scale, True)
    partial = torch.ops.xgblora.rank1_linear_backward(grad, x, weight, a, b, scale, False)
    assert full[0].shape == x.shape
    assert partial[0].numel() == 0
    assert torch.equal(full[1], partial[1])
    assert torch.equal(full[2], partial[2])
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    ops.rank1_linear(x, weight, bias, a, b, scale).sum().backward()
    assert x.grad is None
    assert a.grad is not None


@pytest.mark.parametrize("frozen_out", ["weight", "bias"])
def test_a_weight_that_wants_a_gradient_is_refused(frozen_out):
    x, weight, bias, a, b, scale = make_case(2, 1, 3, 4)
    (weight if frozen_out == "weight" else bias).requires_grad_()
    with pytest.raises(InputError, match="must be frozen"):
        ops.rank1_linear(x, weight, bias, a, b, scale)
    with pytest.raises(InputError, match="must be frozen"):
        torch.ops.xgblora.rank1_linear(x, weight, bias, a.clone().requires_grad_(), b, scale)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4), (3, 5), (1, 5), (1, 3)), r"x has 4 features, the weight \(3, 5\) takes 5"),
        (
            ((2, 5), (3, 5), (1, 4), (1, 3)),
            r"a \(1, 4\) and b \(1, 3\) do not fit the weight \(3, 5\): a must be \[G, 5\], b \[G, 3\]",
        ),
        (((2, 5), (3, 5), (1, 5), (1, 2)), r"b \(1, 2\)"),
        (((2, 5), (3, 5), (2, 5), (1, 3)), r"b \(1, 3\)"),
        (((3, 5), (3, 5), (2, 5), (2, 3)), r"3 rows do not fall into 2 equal groups"),
        (((3, 5), (3, 5), (0, 5), (0, 3)), r"3 rows do not fall into 0 equal groups"),
        (((3, 5), (5,), (1, 5), (1, 3)), r"x \(3, 5\) and the weight \(5,\): must be \[..., K\] and \[N, K\]"),
        (((), (3, 5), (1, 5), (1, 3)), r"x \(\) and the weight \(3, 5\): must be"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_one_line(shapes, message):
    x, weight, a, b = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(InputError, match=message) as raised:
        ops.rank1_linear(x, weight, None, a, b, 1.0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bias", [torch.zeros(1), torch.zeros(4), torch.zeros(2, 3), torch.zeros(3).bfloat16()])
def test_a_bias_that_is_none_of_the_layer_is_refused_in_one_line(bias):
    x, weight, _, a, b, scale = make_case(2, 1, 5, 3)
    with pytest.raises(InputError, match=rf"bias is {bias.dtype} .*: must be torch.float32 \[3\], or None"):
        ops.rank1_linear(x, weight, bias, a, b, scale)


@pytest.mark.parametrize("adapter", ["a", "b"])
def test_adapters_of_other_dtypes_are_refused_in_one_line(adapter):
    x, weight, bias, a, b, scale = make_case(2, 1, 5, 3)
    a, b = (part.double() if name == adapter else part for name, part in (("a", a), ("b", b)))
    with pytest.raises(InputError, match=f"{adapter} is torch.float64: must be fp32, or torch.float32 as x is"):
        ops.rank1_linear(x, weight, bias, a, b, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "bias"), [(1, True), (2, False), (4, True)])
def test_opcheck_of_the_forward_with_autograd(dtype, groups, bias):
    x, weight, bias, a, b, scale = make_case(4, groups, 6, 5, dtype, bias=bias)
    for needs in ((), (x,), (x, a, b)):
        for tensor in needs:
            tensor.requires_grad_(tensor.is_leaf)
        if len(needs) == 3:
            # column slices of an arena that requires a gradient
            arena = torch.cat((a, b), dim=1).detach().requires_grad_()
            a, b = arena[:, :6].detach().requires_grad_(), arena[:, 6:].detach().requires_grad_()
            assert groups == 1 or not a.is_contiguous()
        torch.library.opcheck(torch.ops.xgblora.rank1_linear.default, (x, weight, bias, a, b, scale))


@pytest.mark.parametrize("shape", [(4,), (2, 2), (0,)])
def test_opcheck_of_the_forward_for_other_shapes_of_x(shape):
    _, weight, bias, a, b, scale = make_case(4, 2, 6, 5)
    x = torch.randn(*shape, 6)
    torch.library.opcheck(torch.ops.xgblora.rank1_linear.default, (x, weight, bias, a, b, scale))
    torch.library.opcheck(torch.ops.xgblora.rank1_linear.default, (x.mT.contiguous().mT, weight, bias, a, b, scale))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("need_dx", [True, False])
def test_opcheck_of_the_backward(dtype, need_dx):
    x, weight, _, a, b, scale = make_case(4, 2, 6, 5, dtype)
    grad = torch.randn(4, 5).to(dtype)
    torch.library.opcheck(torch.ops.xgblora.rank1_linear_backward.default, (grad, x, weight, a, b, scale, need_dx))


def test_autocast_trains_like_a_plain_linear_layer():
    x, weight, bias, a, b, scale = make_case(4, 2, 6, 5)
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.rank1_linear(x, weight, bias, a, b, scale)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, reference(x, weight, bias, a, b, scale)) < 4 * torch.finfo(torch.bfloat16).eps
    y.float().sum().backward()
    assert {tensor.grad.dtype for tensor in (x, a, b)} == {torch.float32}
    others = [tensor.detach().double().requires_grad_() for tensor in (x, a, b)]
    reference(others[0], weight, bias, *others[1:], scale).sum().backward()
    for tensor, other in zip((x, a, b), others, strict=True):
        assert relative_error(tensor.grad, other.grad) < 0.03


def test_rank_1_of_low_rank_linear_is_rank1_linear():
    for dtype in DTYPES:
        x, weight, bias, a, b, scale = make_case(6, 2, 10, 7, dtype)
        low_rank = ops.low_rank_linear(x, weight, bias, a.unsqueeze(1), b.unsqueeze(1), scale)
        rank1 = ops.rank1_linear(x, weight, bias, a, b, scale)
        assert relative_error(low_rank, rank1.double()) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("groups", [1, 2])
def test_low_rank_linear_is_the_formula(dtype, rank, groups):
    x, weight, bias, *_ = make_case(6, groups, 10, 7, dtype)
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(groups, rank, width, generator=generator) for width in (10, 7))
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double()).view(groups, -1, 7)
    expected = expected + 0.3 * x.double().view(groups, -1, 10) @ a.double().mT @ b.double()
    y = ops.low_rank_linear(x.view(3, 2, 10), weight, bias, a, b, 0.3)
    assert y.shape == (3, 2, 7)
    assert y.dtype == dtype
    assert relative_error(y.view(6, 7), expected.view(6, 7)) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("x_dtype", "weight_dtype"), [(torch.float64, torch.float64), (torch.float32, torch.bfloat16)])
def test_other_or_mixed_dtypes_are_refused_in_one_line(x_dtype, weight_dtype):
    x, weight = torch.randn(2, 4, dtype=x_dtype), torch.randn(3, 4, dtype=weight_dtype)
    with pytest.raises(InputError, match="fp32, bf16 or fp16, and the same"):
        ops.rank1_linear(x, weight, None, torch.randn(4), torch.randn(3), 1.0)
