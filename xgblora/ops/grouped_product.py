"""The product of rows with the matrices of their groups: torch's grouped kernel where it runs, else group by group."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_product(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """x [S, K] times the matrix of each row's group, [S, N]; differentiable.

    Args:
        x: rows sorted by group; taken in the dtype of the matrices.
        matrices: [E, K, N], of any strides.
        ends: int32 [E], the number of rows up to the last one of each group.
    """
    x = x.to(matrices.dtype)
    if _has_kernel(matrices.device, matrices.dtype):
        return F.grouped_mm(x, matrices, offs=ends)
    # one wait for the device, none for each group
    stops = ends.tolist()
    starts = [0, *stops[:-1]]
    return torch.cat([x[start:stop] @ matrix for start, stop, matrix in zip(starts, stops, matrices, strict=True)])


@lru_cache
def _has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's kernel takes numbers of this kind there: releases and devices differ."""
    if not hasattr(F, "grouped_mm"):
        return False
    x, ends = torch.ones(8, 16, device=device, dtype=dtype), torch.tensor([8], device=device, dtype=torch.int32)
    try:
        return F.grouped_mm(x, torch.ones(1, 16, 16, device=device, dtype=dtype), offs=ends).shape == (8, 16)
    except (RuntimeError, NotImplementedError):
        return False
