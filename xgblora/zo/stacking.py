"""Both signs and all directions in one forward: a batch that stands there several times, each copy read by its adapter.

It takes a model that keeps the examples first in whatever a layer reads: the rows of its input are then cut into equal
shares, one for each adapter. Some models have the tokens first, or give a layer a choice of the rows (the experts of a
mixture as modules). So the first batch that is stacked is run both ways.
"""

from typing import Any

import torch
from torch import Tensor

# the perturbation of the trial: large enough to change losses by more than rounding does
FAR_APART = 0.03
# of what lies between the largest and the smallest loss, and of the losses themselves, by what they are computed in
_SHARE = 0.05
_ROUNDING = {torch.float32: 1e-4}
# of a batch what is known of its forward: the step runs as it would without
_STATES = "states"


def same_losses(stacked: Tensor, alone: Tensor, dtype: torch.dtype) -> bool:
    """Whether losses fp32 [G] of a stacked forward are those of one forward after the other, up to rounding.

    Of losses that are not finite nothing can be told: then they are.
    """
    if not alone.isfinite().all():
        return True
    allowed = torch.maximum(_SHARE * (alone.max() - alone.min()), _ROUNDING.get(dtype, 2e-2) * alone.abs().max())
    return bool((stacked - alone).abs().max() <= allowed)


def is_stackable(batch: Any) -> bool:
    """Whether `batch` is a mapping whose tensors share their first dimension."""
    if not hasattr(batch, "values") or not hasattr(batch, "keys"):
        return False
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    return bool(tensors) and len({tensor.shape[:1] for tensor in tensors}) == 1 and tensors[0].ndim > 0


def elements_of(batch: Any) -> int:
    """The elements of the largest tensor that a stackable batch holds, remembered hidden states apart."""
    return max(value.numel() for name, value in batch.items() if name != _STATES and isinstance(value, Tensor))


def stacked(batch: Any, copies: int, groups: int, trunk: str = "") -> dict[str, Any]:
    """`batch` repeated `copies` times along the examples: copy c is rows `c * B .. (c + 1) * B - 1`.

    A batch that has entries `copies`, `groups` and `trunk` is told in them how often it stands there, how many adapters
    read it, each its share of the rows, and below which block all copies are the same. Others are told nothing: their
    entries may be the arguments of a model.
    """
    told = {"copies": copies, "groups": groups, "trunk": trunk}
    return {
        name: value.repeat(copies, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else told.get(name, value)
        for name, value in batch.items()
    }


def examples_in(batch: Any) -> int | None:
    """How many examples a batch has; None unless it is stackable."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor)) if is_stackable(batch) else None
