"""`rank1_linear` and `row_dots` whose rows belong to adapters in any order: `group_of_row` says whose each row is.

    y[m] = x[m] W^T + bias + scale * (x[m] . a[g]) b[g]          g = group_of_row of row m

The rows of one forward are then those of a population's texts as they come: packed, of different lengths, and without
those that have ended. `group_of_row` may be shorter than the rows: entry r of R is that of M / R neighbouring rows, so
that one number a text serves all of its positions. These are operations of their own, so that equal groups, where no
row must look its adapter up, stay as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from xgblora.errors import InputError
from xgblora.ops.library import LIBRARY, register


def check_group_of_row(group_of_row: Tensor, rows: int, groups: int, device: torch.device) -> None:
    """Raise InputError unless `group_of_row` gives each of `rows` rows one of `groups` adapters.

    The values are looked at on a CPU alone. Elsewhere, and in compiled code, that would be a wait; there an entry that
    is no adapter's number reads memory that is not its own.
    """
    if group_of_row.dtype != torch.int32 or group_of_row.ndim != 1 or group_of_row.device != device:
        raise InputError(
            f"group_of_row is {group_of_row.dtype} {tuple(group_of_row.shape)} on {group_of_row.device}: must be int32 "
            f"[R] on {device}"
        )
    entries = group_of_row.numel()
    if rows % entries if entries else rows:
        raise InputError(f"group_of_row has {entries} entries: must be as many as the {rows} rows, or divide them")
    if device.type == "cpu" and entries and not torch.compiler.is_compiling():
        check_groups(group_of_row, groups)


def check_groups(group_of_row: Tensor, groups: int) -> None:
    """Raise InputError unless all entries of `group_of_row` are among 0 .. groups - 1; reads them from the device."""
    low, high = (int(one) for one in group_of_row.aminmax())
    if low < 0 or high >= groups:
        raise InputError(f"group_of_row has {low if low < 0 else high}: must be among 0 .. {groups - 1}")


def of_rows(group_of_row: Tensor, rows: int) -> Tensor:
    """[M]: the adapter of each of M rows."""
    entries = group_of_row.numel()
    return group_of_row if entries == rows else group_of_row.repeat_interleave(rows // entries)


def _project(x: Tensor, a: Tensor, index: Tensor) -> Tensor:
    """x . a of each row of `x` [M, K], fp32 [M, 1]."""
    return (x.float() * a[index].float()).sum(dim=1, keepdim=True)


def _row_dots(x: Tensor, a: list[Tensor], group_of_row: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    index = of_rows(group_of_row, rows.shape[0])
    return torch.stack([_project(rows, vectors, index).view(-1) for vectors in a])


def _fake_row_dots(x, a, group_of_row):
    return x.new_empty((len(a), x.shape[:-1].numel()), dtype=torch.float32)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    group_of_row: Tensor,
    t: Tensor | None = None,
) -> Tensor:
    y = F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    index = of_rows(group_of_row, rows.shape[0])
    projected = _project(rows, a, index) if t is None else t.view(-1, 1)
    flat = y.view(-1, y.shape[-1])
    return torch.addcmul(flat.float(), projected, b[index].float(), value=scale).to(y.dtype).view(y.shape)


def _fake_forward(x, weight, bias, a, b, scale, group_of_row, t=None):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, group_of_row: Tensor, need_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    index = of_rows(group_of_row, rows.shape[0])
    t, u = _project(rows, a, index), _project(grads, b, index)
    da, db = sums_of_groups(index, u, rows, scale, a), sums_of_groups(index, t, grads, scale, b)
    if not need_dx:
        return x.new_empty(0), da, db
    dx = torch.matmul(grads, weight)
    dx = torch.addcmul(dx.float(), u, a[index].float(), value=scale).to(x.dtype)
    return dx.view(x.shape), da, db


def sums_of_groups(index: Tensor, factors: Tensor, rows: Tensor, scale: float, like: Tensor) -> Tensor:
    """scale * the sum of `factors[m] * rows[m]` over the rows of each group, [G, K] in the dtype of `like` [G, K].

    A product with a matrix that is zero outside of the groups: adding rows up where they belong has no fixed order on a
    GPU.
    """
    shares = rows.new_zeros((like.shape[0], rows.shape[0]), dtype=torch.float32)
    shares.scatter_(0, index.long().unsqueeze(0), factors.view(1, -1))
    return (shares @ rows.float()).mul_(scale).to(like.dtype)


def _fake_backward(grad, x, weight, a, b, scale, group_of_row, need_dx):
    dx = x.new_empty(x.shape) if need_dx else x.new_empty(0)
    return dx, a.new_empty(a.shape), b.new_empty(b.shape)


def _save_for_backward(ctx, inputs, output) -> None:
    x, weight, bias, a, b, scale, group_of_row, _ = inputs
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise InputError("weight and bias must be frozen (requires_grad=False): rank1_linear has no gradient for them")
    ctx.save_for_backward(x, weight, a, b, group_of_row)
    ctx.scale = scale


def _autograd_backward(ctx, grad):
    x, weight, a, b, group_of_row = ctx.saved_tensors
    need_dx = ctx.needs_input_grad[0]
    dx, da, db = torch.ops.xgblora.rank1_linear_by_row_backward(
        grad.contiguous(), x, weight, a, b, ctx.scale, group_of_row, need_dx
    )
    return dx if need_dx else None, None, None, da, db, None, None, None


register("row_dots_by_row(Tensor x, Tensor[] a, Tensor group_of_row) -> Tensor", _row_dots, _fake_row_dots)
register(
    "rank1_linear_by_row(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scale, Tensor group_of_row,"
    " Tensor? t=None) -> Tensor",
    _forward,
    _fake_forward,
)
register(
    "rank1_linear_by_row_backward(Tensor grad, Tensor x, Tensor weight, Tensor a, Tensor b, float scale,"
    " Tensor group_of_row, bool need_dx) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
torch.library.register_autograd(
    "xgblora::rank1_linear_by_row", _autograd_backward, setup_context=_save_for_backward, lib=LIBRARY
)
