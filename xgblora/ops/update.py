"""`update_`: the step of a zeroth-order optimizer over the whole arena, one launch for any number of directions.

    g = mean_q(g_q z(seed_q))
    master -= lr * (rule(g) + weight_decay * master)

The noise is made again from its seeds (MeZO, Malladi et al. 2023), never stored. Projected gradients, seeds, the
learning rate and the factors of the moments are read on the device: no host synchronisation, and a captured graph can
replay it. The rules are those that the gradient estimated by backpropagation is used with: plain SGD, heavy-ball
momentum (Polyak 1964), Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019), and the sign of
the estimate (signSGD, Bernstein et al. 2018; ZO-signSGD, Liu et al. 2019).
"""

import torch
from torch import Tensor

from xgblora.errors import InputError
from xgblora.ops.library import count_writes, register
from xgblora.ops.noise import DISTRIBUTIONS
from xgblora.ops.perturb import as_device_scalar, as_device_vector, as_seeds, check_distribution

# the names of the moments that each rule keeps, and the number of its factors
RULES = {"sgd": ((), 0), "momentum": (("first",), 2), "adam": (("first", "second"), 7), "sign": ((), 0)}


def update_(
    master: Tensor,
    seeds: int | Tensor,
    coefficients: float | Tensor,
    *,
    lr: float | Tensor,
    weight_decay: float | Tensor = 0.0,
    distribution: str = "gaussian",
    optimizer: str = "sgd",
    first: Tensor | None = None,
    second: Tensor | None = None,
    factors: Tensor | None = None,
) -> None:
    """A step along the directions of `seeds`, in place.

    Args:
        master: fp32 [P], contiguous.
        seeds: an int or int64 [q].
        coefficients: projected gradients, fp32 [q].
        lr: learning rate, a float or an fp32 tensor of one element.
        weight_decay: likewise.
        distribution: that of the perturbation.
        optimizer: "sgd", "momentum", "adam" or "sign".
        first: first moment, fp32 [P], contiguous, updated in place; momentum and adam.
        second: second moment, likewise; adam.
        factors: fp32 on the device of `master`. Momentum: [decay1, gain1]; adam: [decay1, gain1, decay2, gain2,
            epsilon, correction1, correction2]. Decays 1 and gains 0 leave the moments as they are; with `lr` 0 and
            coefficients 0 such a step changes nothing.

    The arithmetic is fixed so that a tape replays to the same bits elsewhere: `sum = sum + g_q * z_q` in the order of
    `seeds`, `g = sum / q`, then the rule, then `+ weight_decay * master`, `* lr`, `master -`. The rules are

        sgd:       g
        sign:      -1, 0 or 1
        momentum:  first = first * decay1 + g * gain1
        adam:      first as momentum, second = second * decay2 + (g * g) * gain2,
                   (first / correction1) / (sqrt(second / correction2) + epsilon)

    each fp32 operation rounded once, division and square root too, none fused.

    Raises:
        InputError: shapes, dtypes, the distribution or the optimizer are wrong.
    """
    device = master.device
    seeds = as_seeds(seeds, device)
    coefficients = as_device_vector(coefficients, torch.float32, device)
    lr = as_device_scalar("lr", lr, device)
    weight_decay = as_device_scalar("weight_decay", weight_decay, device)
    if master.dtype != torch.float32 or master.ndim != 1 or not master.is_contiguous():
        raise InputError(f"master must be contiguous fp32 [P], not {master.dtype} {tuple(master.shape)}")
    if seeds.numel() == 0 or seeds.shape != coefficients.shape:
        raise InputError(f"{seeds.numel()} seeds and {coefficients.numel()} coefficients: must be equal, 1 or more")
    check_distribution(distribution)
    check_optimizer(optimizer)
    _check_moments(master, optimizer, {"first": first, "second": second}, factors)
    torch.ops.xgblora.update_(
        master, seeds, coefficients, lr, weight_decay, distribution, optimizer, first, second, factors
    )
    count_writes(master, *(moment for moment in (first, second) if moment is not None))


def check_optimizer(optimizer: str) -> None:
    """Raise InputError unless `optimizer` is a known one."""
    if optimizer not in RULES:
        raise InputError(f"optimizer={optimizer}: must be one of {', '.join(RULES)}")


def _check_moments(master: Tensor, optimizer: str, moments: dict[str, Tensor | None], factors: Tensor | None) -> None:
    wanted, count = RULES[optimizer]
    for name, moment in moments.items():
        if (moment is not None) != (name in wanted):
            raise InputError(f"optimizer={optimizer} {'needs' if name in wanted else 'takes no'} {name}")
        if moment is not None and (
            moment.shape != master.shape or moment.dtype != torch.float32 or not moment.is_contiguous()
        ):
            raise InputError(
                f"{name} must be contiguous fp32 {list(master.shape)}, not {moment.dtype} {tuple(moment.shape)}"
            )
    if (0 if factors is None else factors.numel()) != count:
        raise InputError(
            f"optimizer={optimizer} needs {count} factors, not {0 if factors is None else factors.numel()}"
        )
    if factors is not None and (factors.dtype != torch.float32 or not factors.is_contiguous()):
        raise InputError(f"factors must be contiguous fp32, not {factors.dtype}")


def _update(
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
    total = torch.zeros_like(master)
    for seed, coefficient in zip(seeds, coefficients, strict=True):
        total += DISTRIBUTIONS[distribution](seed, master.numel(), device=master.device).mul_(coefficient)
    # not `total / q` times 1: a division by a Python number may be turned into a multiplication by its reciprocal
    gradient = total.div_(torch.full_like(lr, seeds.numel()))
    step = _RULES[optimizer](gradient, first, second, factors)
    master -= step.add_(weight_decay * master).mul_(lr)


def _sgd(gradient: Tensor, first: None, second: None, factors: None) -> Tensor:
    return gradient


def _sign(gradient: Tensor, first: None, second: None, factors: None) -> Tensor:
    return gradient.sign_()


def _momentum(gradient: Tensor, first: Tensor, second: None, factors: Tensor) -> Tensor:
    # slices of one element and not numbers, for the same reason as above
    decay, gain = factors.split(1)
    return first.mul_(decay).add_(gradient.mul_(gain)).clone()


def _adam(gradient: Tensor, first: Tensor, second: Tensor, factors: Tensor) -> Tensor:
    decay1, gain1, decay2, gain2, epsilon, correction1, correction2 = factors.split(1)
    second.mul_(decay2).add_((gradient * gradient).mul_(gain2))
    first.mul_(decay1).add_(gradient.mul_(gain1))
    return (first / correction1).div_(_root(second / correction2).add_(epsilon))


def _root(values: Tensor) -> Tensor:
    """Square roots of fp32 `values`, correctly rounded.

    torch's own on a CPU is not: with MKL up to 17% of fp32 roots, and 1% of fp64 roots, are the neighbour of the right
    one. A root of an fp32 number lies 4 fp64 ulp or more from the middle between two fp32 numbers, so that of fp64
    rounds to the right one all the same.
    """
    return values.double().sqrt_().float()


_RULES = {"sgd": _sgd, "sign": _sign, "momentum": _momentum, "adam": _adam}


def _fake(
    master,
    seeds,
    coefficients,
    lr,
    weight_decay,
    distribution,
    optimizer="sgd",
    first=None,
    second=None,
    factors=None,
) -> None:
    return None


register(
    "update_(Tensor(a!) master, Tensor seeds, Tensor coefficients, Tensor lr, Tensor weight_decay, str distribution,"
    ' str optimizer="sgd", Tensor(b!)? first=None, Tensor(c!)? second=None, Tensor? factors=None) -> ()',
    _update,
    _fake,
)
