"""`update_`: the step of a zeroth-order optimizer over the whole arena, one launch for any number of directions.

    master -= lr * (mean_q(g_q z(seed_q)) + weight_decay * master)

The noise is made again from its seeds (MeZO, Malladi et al. 2023), never stored. Projected gradients, seeds and the
learning rate are read on the device: no host synchronisation, and a captured graph can replay it.
"""

import torch
from torch import Tensor

from xgblora.errors import InputError
from xgblora.ops.library import register
from xgblora.ops.noise import DISTRIBUTIONS
from xgblora.ops.perturb import as_device_scalar, as_device_vector, check_distribution


def update_(
    master: Tensor,
    seeds: int | Tensor,
    coefficients: float | Tensor,
    *,
    lr: float | Tensor,
    weight_decay: float | Tensor = 0.0,
    distribution: str = "gaussian",
) -> None:
    """SGD along the directions of `seeds`, in place.

    Args:
        master: fp32 [P], contiguous.
        seeds: an int or int64 [q].
        coefficients: projected gradients, fp32 [q].
        lr: learning rate, a float or an fp32 tensor of one element.
        weight_decay: likewise.
        distribution: that of the perturbation.

    The arithmetic is fixed so that a tape replays to the same bits elsewhere: `sum = sum + g_q * z_q` in the order of
    `seeds`, `sum / q`, `+ weight_decay * master`, `* lr`, `master -`; each fp32 operation rounded once, none fused.

    Raises:
        InputError: shapes, dtypes or the distribution are wrong.
    """
    device = master.device
    seeds = as_device_vector(seeds, torch.int64, device)
    coefficients = as_device_vector(coefficients, torch.float32, device)
    lr = as_device_scalar("lr", lr, device)
    weight_decay = as_device_scalar("weight_decay", weight_decay, device)
    if master.dtype != torch.float32 or master.ndim != 1 or not master.is_contiguous():
        raise InputError(f"master must be contiguous fp32 [P], not {master.dtype} {tuple(master.shape)}")
    if seeds.numel() == 0 or seeds.shape != coefficients.shape:
        raise InputError(f"{seeds.numel()} seeds and {coefficients.numel()} coefficients: must be equal, 1 or more")
    check_distribution(distribution)
    torch.ops.xgblora.update_(master, seeds, coefficients, lr, weight_decay, distribution)


def _update(
    master: Tensor, seeds: Tensor, coefficients: Tensor, lr: Tensor, weight_decay: Tensor, distribution: str
) -> None:
    total = torch.zeros_like(master)
    for seed, coefficient in zip(seeds, coefficients, strict=True):
        total += DISTRIBUTIONS[distribution](seed, master.numel(), device=master.device).mul_(coefficient)
    # not `total / q` times 1: a division by a Python number may be turned into a multiplication by its reciprocal
    gradient = total.div_(torch.full_like(lr, seeds.numel())).add_(weight_decay * master)
    master -= gradient.mul_(lr)


def _fake(master, seeds, coefficients, lr, weight_decay, distribution) -> None:
    return None


register(
    "update_(Tensor(a!) master, Tensor seeds, Tensor coefficients, Tensor lr, Tensor weight_decay, str distribution)"
    " -> ()",
    _update,
    _fake,
)
