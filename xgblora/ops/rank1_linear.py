"""`rank1_linear`: a frozen linear layer plus a rank-1 term for each group of rows.

    y = x W^T + bias + scale * (x . a_g) b_g          rows of group g

G groups let one forward carry several adapters (both signs and all directions of a zeroth-order step) over one read
of the weight, as in P-RGE (Gao et al., 2024). The rank-1 term accumulates in fp32 whatever the dtype of `x`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xgblora.errors import InputError
from xgblora.ops.library import LIBRARY, register
from xgblora.ops.rank1_by_row import check_group_of_row
from xgblora.ops.row_dots import DTYPES, project


def rank1_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    t: Tensor | None = None,
    group_of_row: Tensor | None = None,
) -> Tensor:
    """Linear layer with a rank-1 adapter a group of rows; differentiable in `x`, `a` and `b`, the weight is frozen.

    Args:
        x: [..., K]; its rows, flattened, fall into G equal contiguous groups.
        weight: [N, K], the dtype of `x`, requires no gradient.
        bias: [N] of the dtype of `x`, or None; requires no gradient.
        a: [G, K] or [K] (one group), the dtype of `x` or fp32; rows may be strided.
        b: [G, N] or [N], likewise.
        scale: alpha / rank.
        t: None, or fp32 [M], the row of `row_dots(x, [a, ...])` that is of `a`: the result has the same bits, sooner.
            It is a value and no variable: gradients are those of `x . a` all the same. Autocast, which casts `x`, does
            without it.
        group_of_row: None, or int32 [R] on the device of `x`, R a divisor of the M rows: the rows need not fall into
            equal groups then, entry r is the adapter of M / R neighbouring rows. Its values are checked on a CPU only;
            on a GPU one that is out of range is undefined behaviour.

    Returns:
        [..., N] in the dtype of `x`.

    Raises:
        InputError: shapes or dtypes do not fit together, the weight requires a gradient, or an entry of `group_of_row`
            is no adapter's number.
    """
    a, b = torch.atleast_2d(a), torch.atleast_2d(b)
    check_shapes(x, weight, bias, a, b, equal_groups=group_of_row is None)
    if t is not None and (t.dtype != torch.float32 or t.shape != (x.shape[:-1].numel(),)):
        raise InputError(f"t is {t.dtype} {tuple(t.shape)}: must be fp32 [{x.shape[:-1].numel()}], one number a row")
    if group_of_row is None:
        return torch.ops.xgblora.rank1_linear(x, weight, bias, a, b, scale, t)
    check_group_of_row(group_of_row, x.shape[:-1].numel(), a.shape[0], x.device)
    return torch.ops.xgblora.rank1_linear_by_row(x, weight, bias, a, b, scale, group_of_row, t)


def check_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, *, equal_groups: bool = True
) -> None:
    """Raise InputError unless the arguments of `rank1_linear` fit together."""
    if weight.ndim != 2 or x.ndim == 0:
        raise InputError(f"x {tuple(x.shape)} and the weight {tuple(weight.shape)}: must be [..., K] and [N, K]")
    outputs, inputs = weight.shape
    groups = a.shape[0]
    if x.dtype not in DTYPES or weight.dtype != x.dtype:
        raise InputError(f"x is {x.dtype}, the weight {weight.dtype}: both must be fp32, bf16 or fp16, and the same")
    # a kernel reads the N numbers of a bias where it lies, whatever its shape
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != x.dtype):
        raise InputError(f"bias is {bias.dtype} {tuple(bias.shape)}: must be {x.dtype} [{outputs}], or None")
    for name, vectors in (("a", a), ("b", b)):
        if vectors.dtype not in (x.dtype, torch.float32):
            raise InputError(f"{name} is {vectors.dtype}: must be fp32, or {x.dtype} as x is")
    if x.shape[-1] != inputs:
        raise InputError(f"x has {x.shape[-1]} features, the weight {tuple(weight.shape)} takes {inputs}")
    if a.shape != (groups, inputs) or b.shape != (groups, outputs):
        raise InputError(
            f"a {tuple(a.shape)} and b {tuple(b.shape)} do not fit the weight {tuple(weight.shape)}: "
            f"a must be [G, {inputs}], b [G, {outputs}]"
        )
    rows = x.numel() // inputs if inputs else 0
    if groups == 0 or (equal_groups and rows % groups):
        raise InputError(f"{rows} rows do not fall into {groups} equal groups")
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise InputError("weight and bias must be frozen (requires_grad=False): rank1_linear has no gradient for them")


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, t: Tensor | None = None
) -> Tensor:
    y = F.linear(x, weight, bias)
    groups = a.shape[0]
    y_groups = y.view(groups, -1, y.shape[-1])
    projected = project(x, a) if t is None else t.view(groups, -1, 1)
    if y.dtype == torch.float32:
        # one pass over y, no [M, N] temporary
        y_groups.addcmul_(projected, b.float().unsqueeze(1), value=scale)
        return y
    return torch.addcmul(y_groups.float(), projected, b.float().unsqueeze(1), value=scale).to(y.dtype).view(y.shape)


def _fake_forward(x, weight, bias, a, b, scale, t=None):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, need_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    groups = a.shape[0]
    projected = project(x, a)
    projected_grad = project(grad, b)
    da = torch.bmm(projected_grad.transpose(1, 2), x.reshape(groups, -1, x.shape[-1]).float()).squeeze(1).mul_(scale)
    db = torch.bmm(projected.transpose(1, 2), grad.reshape(groups, -1, grad.shape[-1]).float()).squeeze(1).mul_(scale)
    if not need_dx:
        return x.new_empty(0), da.to(a.dtype), db.to(b.dtype)
    dx = torch.matmul(grad, weight).contiguous()
    dx_groups = dx.view(groups, -1, dx.shape[-1])
    dx = torch.addcmul(dx_groups.float(), projected_grad, a.float().unsqueeze(1), value=scale).to(x.dtype)
    return dx.view(x.shape), da.to(a.dtype), db.to(b.dtype)


def _fake_backward(grad, x, weight, a, b, scale, need_dx):
    dx = x.new_empty(x.shape) if need_dx else x.new_empty(0)
    return dx, a.new_empty(a.shape), b.new_empty(b.shape)


def _save_for_backward(ctx, inputs, output) -> None:
    x, weight, bias, a, b, scale, _ = inputs
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise InputError("weight and bias must be frozen (requires_grad=False): rank1_linear has no gradient for them")
    ctx.save_for_backward(x, weight, a, b)
    ctx.scale = scale


def _autograd_backward(ctx, grad):
    x, weight, a, b = ctx.saved_tensors
    need_dx = ctx.needs_input_grad[0]
    dx, da, db = torch.ops.xgblora.rank1_linear_backward(grad.contiguous(), x, weight, a, b, ctx.scale, need_dx)
    return dx if need_dx else None, None, None, da, db, None, None


def _autocast(device_type: str, operation: str) -> Callable:
    """Under autocast x, weight and bias are cast, as `F.linear` casts them; the rank-1 term stays in fp32."""

    def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)

    def run(x, weight, bias, a, b, scale, *rest):
        # the last one is `t`, of the `x` that was not cast; by row `group_of_row` stands before it
        rest = rest[:1] if operation == "rank1_linear_by_row" else ()
        dtype = torch.get_autocast_dtype(device_type)
        x, weight, bias = (cast(tensor, dtype) for tensor in (x, weight, bias))
        with torch.autocast(device_type, enabled=False):
            return getattr(torch.ops.xgblora, operation)(x, weight, bias, a, b, scale, *rest)

    return run


register(
    "rank1_linear(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scale, Tensor? t=None) -> Tensor",
    _forward,
    _fake_forward,
)
register(
    "rank1_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor a, Tensor b, float scale, bool need_dx)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
torch.library.register_autograd(
    "xgblora::rank1_linear", _autograd_backward, setup_context=_save_for_backward, lib=LIBRARY
)
for _operation in ("rank1_linear", "rank1_linear_by_row"):
    LIBRARY.impl(_operation, _autocast("cpu", _operation), "AutocastCPU")
    LIBRARY.impl(_operation, _autocast("cuda", _operation), "AutocastCUDA")
