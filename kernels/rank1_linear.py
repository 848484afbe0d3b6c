"""`rank1_linear` and its backward: which kernels run for which shape.

    y = x W^T + bias + scale * (x . a_g) b_g          rows of group g

For M rows the base GEMM takes 2 M N K / F seconds on a chip of F FLOP a second; what the rank-1 term adds is memory
traffic, the fraction (F / BW)(1 / N + c / K) of that: 1 / N for reading x once to make x . a, c = 2 for a pass over y
in place, c = 0 where the term is added before y leaves the chip. The three paths, chosen by `tuning.plan_for`:

- `few_rows_linear`: M up to 16, one launch for everything;
- `vendor_gemm_linear`: `row_dot`, the vendor GEMM, one in-place pass (c = 2);
- `fused_linear`: `row_dot`, then a Triton GEMM with the term in its epilogue (c = 0).

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
from xgblora.kernels.row_dot import row_dot, row_dots


def vendor_gemm_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, plan: tuning.Plan
) -> Tensor:
    """`rank1_linear` [M, N] of a contiguous `x` [M, K]: the vendor GEMM, then the rank-1 term in place."""
    y = F.linear(x, weight, bias)
    add_rank1_(y, row_dot(x, a), b, scale)
    return y


PATHS = {
    tuning.FEW_ROWS: few_rows_linear,
    tuning.VENDOR_GEMM: vendor_gemm_linear,
    tuning.FUSED_GEMM: fused_linear,
}


def rank1_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """y [..., N]; arguments as of `torch.ops.xgblora.rank1_linear`.

    Args:
        x: [..., K]; its rows, flattened, fall into G equal contiguous groups.
        weight: [N, K].
        bias: [N] or None.
        a: [G, K], the dtype of `x` or fp32.
        b: [G, N], likewise.
        scale: alpha / rank.
    """
    shape = (*x.shape[:-1], weight.shape[0])
    if x.numel() == 0:
        return x.new_empty(shape)
    rows = as_rows(x)
    plan = tuning.plan_for("rank1_linear", tuning.architecture_of(x.device), rows.shape[0], *weight.shape)
    y = PATHS[plan.path](rows, weight, bias, _adjacent(a), _adjacent(b), scale, plan)
    return y.view(shape)


def rank1_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, need_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (empty [0] unless `need_dx`), da and db; arguments as of `torch.ops.xgblora.rank1_linear_backward`."""
    if x.numel() == 0:
        dx = x.new_empty(x.shape) if need_dx else x.new_empty(0)
        return dx, a.new_zeros(a.shape), b.new_zeros(b.shape)
    x_rows, grad_rows = as_rows(x), as_rows(grad)
    a, b = _adjacent(a), _adjacent(b)
    t, u = row_dots(x_rows, a, grad_rows, b)
    da, db = adapter_gradients(x_rows, u, grad_rows, t, scale, a, b)
    if not need_dx:
        return x.new_empty(0), da, db
    dx = torch.matmul(grad_rows, weight)
    add_rank1_(dx, u, a, scale)
    return dx.view(x.shape), da, db


def as_rows(x: Tensor) -> Tensor:
    """`x` [..., K] as a contiguous [M, K]."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _adjacent(vectors: Tensor) -> Tensor:
    """[G, K] with the elements of each row adjacent; rows of an arena pass through as they are."""
    return vectors if vectors.stride(1) == 1 else vectors.contiguous()
