"""`rank1_linear` and its backward: which kernels run for which shape.

    y = x W^T + bias + scale * (x . a_g) b_g          rows of group g

For M rows the base GEMM takes 2 M N K / F seconds on a chip of F FLOP a second; what the rank-1 term adds is memory
traffic, the fraction (F / BW)(1 / N + c / K) of that: 1 / N for reading x once to make x . a, c = 2 for a pass over y
in place, c = 0 where the term is added before y leaves the chip. The three paths, chosen by `tuning.plan_for`:

- few rows (M up to 16): one launch for everything;
- the vendor GEMM: `row_dots`, the GEMM, one in-place pass (c = 2);
- a fused GEMM: `row_dots`, then a Triton GEMM with the term in its epilogue (c = 0).

Layers that read the same x share one `row_dots`: 1 / N then counts once for all of them.

The backward reads x and grad twice each and W once: both row dots in one launch, the adapters' gradients in two, the
vendor GEMM for dx and the in-place pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from xgblora.kernels import tuning
from xgblora.kernels.column_sum import adapter_gradients
from xgblora.kernels.few_rows import few_rows_linear
from xgblora.kernels.fused_gemm import fused_linear
from xgblora.kernels.rank1_pass import add_rank1_
from xgblora.kernels.row_dot import adjacent, as_rows, row_dots, row_dots_of_both


def rank1_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, t: Tensor | None = None
) -> Tensor:
    """y [..., N]; arguments as of `torch.ops.xgblora.rank1_linear`.

    Args:
        x: [..., K]; its rows, flattened, fall into G equal contiguous groups.
        weight: [N, K].
        bias: [N] or None.
        a: [G, K], the dtype of `x` or fp32.
        b: [G, N], likewise.
        scale: alpha / rank.
        t: fp32 [M], what `row_dots` gives for `a`, or None; not read where few rows make it themselves.
    """
    shape = (*x.shape[:-1], weight.shape[0])
    if x.numel() == 0:
        return x.new_empty(shape)
    rows = as_rows(x)
    plan = tuning.plan_for("rank1_linear", x.device, x.dtype, rows.shape[0], *weight.shape)
    return linear_by(plan, rows, weight, bias, adjacent(a), adjacent(b), scale, t).view(shape)


def linear_by(
    plan: tuning.Plan,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    t: Tensor | None = None,
) -> Tensor:
    """`rank1_linear` [M, N] of a contiguous `x` [M, K] by one plan; the rows of `a` and `b` have adjacent elements."""
    if plan.path == tuning.FEW_ROWS:
        return few_rows_linear(x, weight, bias, a, b, scale, plan)
    t = row_dots(x, [a])[0] if t is None else t
    if plan.path == tuning.FUSED_GEMM:
        return fused_linear(x, weight, bias, t, b, scale, plan)
    y = F.linear(x, weight, bias)
    add_rank1_(y, t, b, scale)
    return y


def rank1_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, need_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (empty [0] unless `need_dx`), da and db; arguments as of `torch.ops.xgblora.rank1_linear_backward`."""
    if x.numel() == 0:
        dx = x.new_empty(x.shape) if need_dx else x.new_empty(0)
        return dx, a.new_zeros(a.shape), b.new_zeros(b.shape)
    x_rows, grad_rows = as_rows(x), as_rows(grad)
    a, b = adjacent(a), adjacent(b)
    t, u = row_dots_of_both(x_rows, a, grad_rows, b)
    da, db = adapter_gradients(x_rows, u, grad_rows, t, scale, a, b)
    if not need_dx:
        return x.new_empty(0), da, db
    dx = torch.matmul(grad_rows, weight)
    add_rank1_(dx, u, a, scale)
    return dx.view(x.shape), da, db
