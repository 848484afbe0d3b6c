"""`perturb` of CPU tensors by `xgblora._host`: one pass over memory for all signs, the noise made once a seed."""

import torch
from torch import Tensor

from xgblora.ops.extension import DTYPE_CODES
from xgblora.ops.host_extension import host_extension


def perturb(master: Tensor, live: Tensor, seeds: Tensor, eps: Tensor, signs: Tensor, distribution: str) -> None:
    """As the eager reference of `xgblora.ops.perturb`, bit for bit, on `torch.get_num_threads()` threads at most."""
    seeds, signs = seeds.contiguous(), signs.contiguous()
    host_extension().module.perturb(
        master.data_ptr(),
        live.data_ptr(),
        DTYPE_CODES[live.dtype],
        master.numel(),
        signs.numel(),
        seeds.data_ptr(),
        seeds.numel(),
        eps.data_ptr(),
        signs.data_ptr(),
        distribution,
        torch.get_num_threads(),
    )
