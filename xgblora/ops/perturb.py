"""`perturb`: the adapters of every sign and direction of a zeroth-order step, in one launch.

    live[g] = cast(master + (sign_g * eps) * z(seed of g))

`master` is read and never written, so restoring is `live = cast(master)` and exact. Adding, subtracting twice and
adding again is not: 1,000 cycles at zero learning rate drift by 12% rms in bf16.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from xgblora.errors import InputError
from xgblora.ops.library import count_writes, register
from xgblora.ops.noise import DISTRIBUTIONS

LIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def perturb(
    master: Tensor,
    live: Tensor,
    seed: int | Tensor,
    eps: float | Tensor,
    signs: Tensor,
    *,
    distribution: str = "gaussian",
) -> None:
    """Write the perturbed adapters into `live`.

    Args:
        master: fp32 [P], contiguous.
        live: [G, P] or [P], contiguous, fp32, bf16 or fp16; overwritten.
        seed: an int, or int64 [D]. D divides G: rows `g * D // G` share seed g, so `seed` of one element serves all
            rows and of G elements one each.
        eps: the size of the perturbation, a float or an fp32 tensor of one element on the device of `master`.
        signs: fp32 [G] on the device of `master`; 0 restores.
        distribution: "gaussian" or "rademacher".

    The arithmetic is `(sign * eps)`, `* z`, `+ master`: three fp32 operations rounded once each, then the cast.

    Raises:
        InputError: shapes, dtypes or the distribution are wrong.
    """
    seeds = as_seeds(seed, master.device)
    eps = as_device_scalar("eps", eps, master.device)
    signs = as_device_vector(signs, torch.float32, master.device)
    live = torch.atleast_2d(live)
    if master.dtype != torch.float32 or master.ndim != 1 or not master.is_contiguous():
        raise InputError(f"master must be contiguous fp32 [P], not {master.dtype} {tuple(master.shape)}")
    if live.shape != (signs.numel(), master.numel()) or not live.is_contiguous():
        raise InputError(
            f"live must be contiguous [G, P] = [{signs.numel()}, {master.numel()}], not {tuple(live.shape)}"
        )
    if live.dtype not in LIVE_DTYPES:
        raise InputError(f"live must be fp32, bf16 or fp16, not {live.dtype}")
    check_distribution(distribution)
    if seeds.numel() == 0 or signs.numel() % seeds.numel():
        raise InputError(f"{seeds.numel()} seeds do not divide {signs.numel()} signs")
    torch.ops.xgblora.perturb(master, live, seeds, eps, signs, distribution)
    count_writes(live)


def as_seeds(value: int | Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Seeds as int64 [D] on `device`; InputError if they are no integers of 64 bits: cut off, many would be one."""
    if isinstance(value, Tensor):
        fits, said = not (value.is_floating_point() or value.is_complex()), f"{value.dtype} {tuple(value.shape)}"
    else:
        numbers = [value] if isinstance(value, int) else value
        fits = isinstance(numbers, Sequence) and all(isinstance(n, int) and -(1 << 63) <= n < 1 << 63 for n in numbers)
        said = repr(value)[:60]
    if not fits:
        raise InputError(f"seed={said}: must be int64, or an integer from -2^63 to 2^63 - 1")
    return as_device_vector(value, torch.int64, device)


def as_device_vector(value: int | float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`value` as a 1-D tensor of `dtype` on `device`; a tensor that is one already is passed through."""
    return torch.as_tensor(value, dtype=dtype, device=device).reshape(-1)


def as_device_scalar(name: str, value: float | Tensor, device: torch.device) -> Tensor:
    """`value` as an fp32 tensor [1] on `device`; InputError, by its `name`, if it has not one element."""
    value = as_device_vector(value, torch.float32, device)
    if value.numel() != 1:
        raise InputError(f"{name} has {value.numel()} elements: must be a number or a tensor of one element")
    return value


def check_distribution(distribution: str) -> None:
    """Raise InputError unless `distribution` is a known one."""
    if distribution not in DISTRIBUTIONS:
        raise InputError(f"distribution={distribution}: must be one of {', '.join(DISTRIBUTIONS)}")


def _perturb(master: Tensor, live: Tensor, seeds: Tensor, eps: Tensor, signs: Tensor, distribution: str) -> None:
    steps = (signs * eps).view(seeds.numel(), -1)
    rows = live.view(*steps.shape, master.numel())
    for seed, row, step in zip(seeds, rows, steps, strict=True):
        z = DISTRIBUTIONS[distribution](seed, master.numel(), device=master.device)
        row.copy_(step.unsqueeze(1) * z + master)


def _fake(master, live, seeds, eps, signs, distribution) -> None:
    return None


register(
    "perturb(Tensor master, Tensor(a!) live, Tensor seeds, Tensor eps, Tensor signs, str distribution) -> ()",
    _perturb,
    _fake,
)
