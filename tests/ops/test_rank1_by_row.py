"""`rank1_linear` and `row_dots` whose rows name their adapters: as one call a row, whatever backend runs them."""

import pytest
import torch

from tests.ops.test_rank1_linear import DTYPES, make_case, relative_error
from xgblora import ops
from xgblora.errors import InputError
from xgblora.ops.choice import available

BACKENDS = ("eager", "host")
OPERATION = "rank1_linear_by_row"


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """The backend that CPU tensors run in this test."""
    function = available(OPERATION, "cpu").get(request.param)
    if isinstance(function, str):
        pytest.skip(function)
    monkeypatch.setenv("XGBLORA_BACKEND", request.param)
    ops.choose.cache_clear()
    yield request.param
    ops.choose.cache_clear()


def groups_of(count, groups, seed=0):
    return torch.randint(0, groups, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def one_call_a_row(case, group_of_row):
    """In fp64, each row with its own adapter in a call of equal groups of one row."""
    x, weight, bias, a, b, scale = case
    index = group_of_row.repeat_interleave(x.shape[:-1].numel() // len(group_of_row)).long()
    x, weight, a, b = x.double(), weight.double(), a.double()[index], b.double()[index]
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ weight.T + scale * (rows * a).sum(1, keepdim=True) * b
    return (y if bias is None else y + bias.double()).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "entries", "groups", "inputs", "outputs"),
    [(1, 1, 1, 1, 1), (7, 7, 3, 33, 17), (12, 4, 64, 16, 5), (6, 1, 2, 70, 9), (40, 20, 3, 64, 64)],
)
def test_every_row_reads_its_own_adapter(backend, dtype, rows, entries, groups, inputs, outputs):
    group_of_row = groups_of(entries, groups)
    for adapter_dtype, bias in ((dtype, True), (torch.float32, False)):
        case = make_case(rows, groups, inputs, outputs, dtype, adapter_dtype=adapter_dtype, bias=bias)
        y = ops.rank1_linear(*case, group_of_row=group_of_row)
        assert (y.dtype, y.shape) == (dtype, (rows, outputs))
        assert relative_error(y, one_call_a_row(case, group_of_row)) < 8 * torch.finfo(dtype).eps
        t = ops.row_dots(case[0], [case[3], 2 * case[3]], group_of_row)
        ones = case[0], torch.zeros_like(case[1]), None, case[3], torch.ones_like(case[4]), 1.0
        dots = one_call_a_row(ones, group_of_row)[:, 0]
        assert torch.allclose(t.double(), torch.stack([dots, 2 * dots]), rtol=1e-4, atol=1e-4)
        with_t = ops.rank1_linear(*case, t[0], group_of_row)
        assert torch.equal(with_t, y)


def test_a_row_has_the_same_rank_1_term_whatever_stands_beside_it(backend):
    case = make_case(9, 4, 37, 21)
    x, weight, bias, a, b, scale = case[0], torch.zeros_like(case[1]), *case[2:]
    group_of_row = groups_of(9, 4)
    together = ops.rank1_linear(x, weight, bias, a, b, scale, group_of_row=group_of_row)
    for kept in (torch.tensor([8, 2, 5]), torch.tensor([4])):
        alone = ops.rank1_linear(x[kept], weight, bias, a, b, scale, group_of_row=group_of_row[kept])
        assert torch.equal(alone, together[kept])


def test_one_entry_serves_all_positions_of_a_text(backend):
    x, *rest = make_case(12, 3, 8, 5)
    texts = torch.tensor([2, 0, 2, 1], dtype=torch.int32)
    y = ops.rank1_linear(x.view(4, 3, 8), *rest, group_of_row=texts)
    assert torch.equal(y.view(12, 5), ops.rank1_linear(x, *rest, group_of_row=texts.repeat_interleave(3)))
    packed = ops.rank1_linear(x.view(1, 12, 8), *rest, group_of_row=texts.repeat_interleave(3))
    assert torch.equal(packed.view(12, 5), y.view(12, 5))
    assert ops.rank1_linear(x[:0], *rest, group_of_row=texts[:0]).shape == (0, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradients_are_those_of_plain_autograd_in_fp64(dtype):
    case, group_of_row = make_case(10, 4, 9, 7, dtype), torch.tensor([3, 0, 0, 1, 3], dtype=torch.int32)
    grad = torch.randn(10, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    x, weight, bias, a, b, scale = case
    ours = [tensor.detach().clone().requires_grad_() for tensor in (x, a, b)]
    ops.rank1_linear(ours[0], weight, bias, *ours[1:], scale, group_of_row=group_of_row).backward(grad)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, a, b)]
    one_call_a_row((exact[0], weight, bias, *exact[1:], scale), group_of_row).backward(grad.double())
    for tensor, other in zip(ours, exact, strict=True):
        assert relative_error(tensor.grad, other.grad) < 16 * torch.finfo(dtype).eps
    assert torch.all(ours[1].grad[2] == 0), "no row reads this adapter"
    arguments = (grad, x, weight, a, b, scale, group_of_row)
    full, partial = (torch.ops.xgblora.rank1_linear_by_row_backward(*arguments, need) for need in (True, False))
    assert partial[0].numel() == 0
    assert torch.equal(full[1], partial[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    x, weight, bias, a, b, scale = make_case(4, 2, 6, 5, dtype)
    group_of_row = torch.tensor([1, 0], dtype=torch.int32)
    needy = [tensor.detach().clone().requires_grad_() for tensor in (x, a, b)]
    for given, vectors in ((x, (a, b)), (needy[0], needy[1:])):
        arguments = (given, weight, bias, *vectors, scale, group_of_row)
        torch.library.opcheck(torch.ops.xgblora.rank1_linear_by_row.default, arguments)
    torch.library.opcheck(torch.ops.xgblora.row_dots_by_row.default, (x, [a], group_of_row))
    grad = torch.randn(4, 5).to(dtype)
    torch.library.opcheck(
        torch.ops.xgblora.rank1_linear_by_row_backward.default, (grad, x, weight, a, b, scale, group_of_row, True)
    )


def test_it_compiles_whole():
    x, weight, bias, a, b, scale = make_case(4, 2, 6, 5)
    group_of_row = torch.tensor([1, 0, 0, 1], dtype=torch.int32)

    def run(x, group_of_row):
        return ops.rank1_linear(x, weight, bias, a, b, scale, group_of_row=group_of_row)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, group_of_row), run(x, group_of_row))


def test_autocast_computes_in_its_dtype():
    case, group_of_row = make_case(4, 2, 6, 5), torch.tensor([1, 0, 0, 1], dtype=torch.int32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.rank1_linear(*case, group_of_row=group_of_row)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, one_call_a_row(case, group_of_row)) < 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize(
    ("group_of_row", "message"),
    [
        (torch.tensor([0, 1, 2, 0], dtype=torch.int32), r"group_of_row has 2: must be among 0 \.\. 1"),
        (torch.tensor([0, -1, 0, 0], dtype=torch.int32), r"group_of_row has -1: must be among 0 \.\. 1"),
        (torch.tensor([0, 1, 1], dtype=torch.int32), r"group_of_row has 3 entries: .* the 4 rows, or divide them"),
        (torch.tensor([], dtype=torch.int32), r"group_of_row has 0 entries"),
        (torch.tensor([0, 1, 1, 0]), r"group_of_row is torch.int64 \(4,\) on cpu: must be int32 \[R\] on cpu"),
    ],
)
def test_groups_that_do_not_fit_are_refused_in_one_line(group_of_row, message):
    case = make_case(4, 2, 6, 5)
    for call in (
        lambda: ops.rank1_linear(*case, group_of_row=group_of_row),
        lambda: ops.row_dots(case[0], [case[3]], group_of_row),
    ):
        with pytest.raises(InputError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_the_host_reads_no_adapter_that_is_not_there():
    if isinstance(available(OPERATION, "cpu")["host"], str):
        pytest.skip("no host extension")
    case = make_case(2, 2, 6, 5)
    with pytest.raises(IndexError, match=r"group_of_row has 7: must be among 0 \.\. 1"):
        torch.ops.xgblora.rank1_linear_by_row(*case, torch.tensor([0, 7], dtype=torch.int32))
