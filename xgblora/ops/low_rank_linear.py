"""`low_rank_linear`: the forward of plain LoRA of any rank, with one adapter a group of rows.

Two small matrix products a layer (Hu et al., 2021); rank 1, which the fused `rank1_linear` serves, is the special case.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from xgblora.ops.rank1_by_row import of_rows


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`x W^T + bias + scale * (x a_g^T) b_g` for the rows of each group g.

    Args:
        x: [..., K]; its rows, flattened, fall into G equal contiguous groups.
        weight: [N, K], frozen.
        bias: [N] or None.
        a: [G, r, K], the dtype of `x` or fp32.
        b: [G, r, N], likewise.
        scale: alpha / r.

    Returns:
        [..., N] in the dtype of `x`; the low-rank term is computed in fp32.
    """
    y = F.linear(x, weight, bias)
    return (y + scale * low_rank_term(x, a, b)).to(y.dtype)


def low_rank_term(x: Tensor, a: Tensor, b: Tensor, group_of_row: Tensor | None = None) -> Tensor:
    """`(x a_g^T) b_g` for the rows of each group g; arguments as of `low_rank_linear`.

    Args:
        group_of_row: None, or int32 [R], whose adapters the rows read, as of `xgblora.ops.rank1_linear`.

    Returns:
        fp32 [..., N], computed in fp32 under autocast too: what is added to a rounded output must not be rounded first.
    """
    # tensors without storage have no autocast, and `torch.autocast("meta")` is an error
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        if group_of_row is not None:
            rows = x.reshape(-1, 1, x.shape[-1]).float()
            index = of_rows(group_of_row, rows.shape[0])
            a, b = a[index], b[index]
        else:
            rows = x.reshape(a.shape[0], -1, x.shape[-1]).float()
        term = torch.bmm(torch.bmm(rows, a.float().transpose(1, 2)), b.float())
    return term.view(*x.shape[:-1], b.shape[-1])
