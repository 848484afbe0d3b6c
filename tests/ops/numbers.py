"""Numbers that merges are tried on."""

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)


def normals(*shape, seed=0, std=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std


def transposed(weight: Tensor) -> Tensor:
    """The same numbers [N, K], stored as [K, N]."""
    return weight.T.contiguous().T


def bits_of_all_exponents() -> Tensor:
    """fp32 numbers of every exponent and sign whose low bits sit at, beside and between the ties of bf16 and fp16."""
    exponents = torch.arange(255).view(-1, 1, 1, 1) << 23
    kept = torch.tensor([0, 1 << 16, 2 << 16, 0x7F0000]).view(1, -1, 1, 1)
    low = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    low = torch.tensor(low).view(1, 1, -1, 1)
    sign = torch.tensor([0, -(2**31)]).view(1, 1, 1, 2)
    return (exponents + kept + low + sign).reshape(-1).to(torch.int32).view(torch.float32)
