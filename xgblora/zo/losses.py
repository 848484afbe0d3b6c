"""What an objective gives, looked at before a step goes by it."""

from typing import Any

import torch
from torch import Tensor

from xgblora.errors import InputError


def losses_given(found: Any, device: torch.device) -> Tensor:
    """The losses on `device`: those of a model on several devices may come from another one.

    Raises:
        InputError: an objective gave something else than a tensor, or one without a number.
    """
    if not isinstance(found, Tensor):
        raise InputError(
            f"the objective returned a {type(found).__name__}: must be a tensor, one loss an example [B] or a scalar, "
            "such as torch.tensor(loss)"
        )
    if not found.numel():
        raise InputError(f"the objective returned no loss, shape {tuple(found.shape)}: must be [B] or a scalar")
    return found.to(device)
