"""`low_rank_linear`: the forward of plain LoRA of any rank, with one adapter a group of rows.

Two small matrix products a layer (Hu et al., 2021); rank 1, which the fused `rank1_linear` serves, is the special case.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    rows = x.reshape(a.shape[0], -1, x.shape[-1]).float()
    low_rank = torch.bmm(torch.bmm(rows, a.float().transpose(1, 2)), b.float())
    return (y.float() + scale * low_rank.view(y.shape)).to(y.dtype)
