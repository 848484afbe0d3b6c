"""`update_` of CPU tensors by `xgblora._host`: one pass over memory, the noise of every direction made in passing."""

import torch
from torch import Tensor

from xgblora.ops.host_extension import host_extension


def update_(
    master: Tensor,
    seeds: Tensor,
    coefficients: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    distribution: str,
    optimizer: str = "sgd",
    first: Tensor | None = None,
    second: Tensor | None = None,
    factors: Tensor | None = None,
) -> None:
    """As the eager reference of `xgblora.ops.update`, bit for bit, on `torch.get_num_threads()` threads at most."""
    seeds, coefficients = seeds.contiguous(), coefficients.contiguous()
    host_extension().module.update(
        master.data_ptr(),
        master.numel(),
        seeds.data_ptr(),
        coefficients.data_ptr(),
        seeds.numel(),
        lr.data_ptr(),
        weight_decay.data_ptr(),
        distribution,
        optimizer,
        *(0 if tensor is None else tensor.data_ptr() for tensor in (first, second, factors)),
        torch.get_num_threads(),
    )
