"""`row_dots`, and `rank1_linear` that is given its result."""

import pytest
import torch

from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops.row_dots import reads_dots

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCALE = 0.7


def make_case(rows, groups, inputs, dtype=torch.float32, *, adapters=3):
    """x [M, K] and adapters [G, K] that are column slices of the rows of an arena."""
    generator = torch.Generator().manual_seed(rows + inputs)
    arena = torch.randn(groups, adapters * (inputs + 3), generator=generator).to(dtype)
    a = [arena[:, start : start + inputs] for start in range(0, arena.shape[1], inputs + 3)]
    return torch.randn(rows, inputs, generator=generator).to(dtype), a


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "groups", "inputs"), [(1, 1, 1), (6, 2, 33), (12, 4, 7), (0, 2, 5)])
def test_they_are_the_formula_and_those_of_one_adapter_alone(dtype, rows, groups, inputs):
    x, a = make_case(rows, groups, inputs, dtype)
    t = ops.row_dots(x.view(1, rows, inputs), a)
    assert (t.shape, t.dtype) == ((3, rows), torch.float32)
    expected = torch.einsum("gmk,agk->agm", x.double().view(groups, -1, inputs), torch.stack(a).double()).flatten(1)
    assert torch.allclose(t.double(), expected, rtol=1e-5, atol=1e-5)
    for one, alone in zip(t, a, strict=True):
        assert torch.equal(one, ops.row_dots(x, [alone])[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2])
def test_rank1_linear_gives_the_same_bits_with_them(dtype, groups):
    x, a = make_case(8, groups, 16, dtype)
    weight, b = torch.randn(5, 16).to(dtype), torch.randn(groups, 5).to(dtype)
    for adapter, t in zip(a, ops.row_dots(x, a), strict=True):
        with_t = ops.rank1_linear(x, weight, None, adapter, b, SCALE, t)
        assert torch.equal(with_t, ops.rank1_linear(x, weight, None, adapter, b, SCALE))


def test_they_are_read():
    x, (a,) = make_case(4, 1, 6, adapters=1)
    y = ops.rank1_linear(x, torch.zeros(2, 6), None, a, torch.ones(1, 2), 2.0, torch.arange(4.0))
    assert torch.equal(y, 2.0 * torch.arange(4.0).unsqueeze(1).expand(4, 2))


def test_gradients_are_those_without_them():
    x, (a,) = make_case(8, 2, 6, adapters=1)
    weight, b, t = torch.randn(5, 6), torch.randn(2, 5), ops.row_dots(x, [a])[0]
    results = []
    for given in (None, t):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, a, b)]
        ops.rank1_linear(leaves[0], weight, None, *leaves[1:], SCALE, given).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours, expected)


def test_autocast_casts_x_and_does_without_them():
    x, (a,) = make_case(8, 2, 64, adapters=1)
    weight, b, t = torch.randn(5, 64), torch.randn(2, 5), ops.row_dots(x, [a])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with_t = ops.rank1_linear(x, weight, None, a, b, SCALE, t)
        assert torch.equal(with_t, ops.rank1_linear(x, weight, None, a, b, SCALE))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    x, a = make_case(4, 2, 6, dtype)
    torch.library.opcheck(torch.ops.xgblora.row_dots.default, (x, a))
    b = torch.randn(2, 5).to(dtype)
    arguments = (x, torch.randn(5, 6).to(dtype), None, a[0], b, SCALE, ops.row_dots(x, a)[0])
    torch.library.opcheck(torch.ops.xgblora.rank1_linear.default, arguments)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "no adapter"),
        ([(2, 5)], r"an adapter is \(2, 5\), must be \[2, 6\]"),
        ([(2, 6), (1, 6)], r"an adapter is \(1, 6\), must be \[2, 6\]"),
        ([(6,)], r"an adapter is \(6,\), must be \[G, 6\]"),
        ([(3, 6)], "4 rows do not fall into 3 equal groups"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_one_line(shapes, message):
    with pytest.raises(InputError, match=message) as raised:
        ops.row_dots(torch.zeros(4, 6), [torch.zeros(shape) for shape in shapes])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("x", "a", "message"),
    [
        (torch.zeros(4, 6), torch.zeros(2, 6), "no adapter; a must be a list"),
        (torch.zeros(4, 6, dtype=torch.int32), [torch.zeros(2, 6)], r"x is torch.int32 \(4, 6\): must be"),
        (torch.zeros(()), [torch.zeros(2, 6)], r"x is torch.float32 \(\): must be \[..., K\]"),
        (torch.zeros(4, 6), [torch.zeros(2, 6).double()], "an adapter is torch.float64: must be fp32"),
    ],
)
def test_what_is_no_row_and_no_adapter_is_refused_in_one_line(x, a, message):
    with pytest.raises(InputError, match=message):
        ops.row_dots(x, a)


@pytest.mark.parametrize("t", [torch.zeros(3), torch.zeros(4, 1), torch.zeros(4, dtype=torch.float64)])
def test_dots_of_other_rows_are_refused(t):
    x, (a,) = make_case(4, 1, 6, adapters=1)
    with pytest.raises(InputError, match=r"must be fp32 \[4\], one number a row"):
        ops.rank1_linear(x, torch.zeros(2, 6), None, a, torch.ones(1, 2), 2.0, t)


def test_eager_code_reads_none():
    assert not reads_dots(torch.zeros(512, 8), torch.zeros(8, 8))
