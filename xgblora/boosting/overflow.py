"""Merges that pass the range of a weight's dtype: fp16 ends at 65,504, and what is beyond becomes infinite."""

from collections.abc import Mapping

import torch
from torch import Tensor

from xgblora.adapters import Rank1Linear
from xgblora.errors import InputError
from xgblora.spelling import dtype_name


class MergeOverflow(InputError):
    """A merge would make a weight infinite. It was not made: weights, adapter and ledger are as they were."""


def refuse_overflow(layers: Mapping[str, Rank1Linear], what: str) -> None:
    """Raise MergeOverflow if a weight that merges write into is not finite; the message begins with `what`.

    Args:
        layers: by name; it costs one look at each weight, and one wait for the device.
    """
    named = [(name, matrix) for name, layer in layers.items() if layer.mergeable for matrix in layer.matrices]
    if not named or bool(torch.stack([_is_finite(matrix) for _, matrix in named]).all()):
        return
    name, matrix = next((name, matrix) for name, matrix in named if not _is_finite(matrix))
    largest = torch.finfo(matrix.dtype).max
    raise MergeOverflow(
        f"{what}: the weight of {name} would pass the range of {dtype_name(matrix.dtype)}, which ends at {largest:g}; "
        "load the model in another dtype (--dtype bfloat16)"
    )


def _is_finite(matrix: Tensor) -> Tensor:
    return torch.isfinite(matrix).all()
