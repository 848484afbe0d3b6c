"""`update_` in one launch, whatever the number of directions.

    master -= lr * (rule(mean_q(g_q z(seed_q))) + weight_decay * master)

A program makes the noise of its block for one direction after another and adds it up in registers: 8 bytes of memory
traffic an element (`master` in, `master` out) for any q, and 8 more for each moment that the rule keeps, where a loop
of launches would move 8 q and a noise tensor besides. Seeds, projected gradients, learning rate, weight decay and the
factors of the moments are read on the device, so the losses never travel to the host and a captured CUDA graph can
replay the step.

The order of operations is the contract of `xgblora.ops.update_`: directions in the order of the seeds, division and
square root correctly rounded, every fp32 operation rounded once and none fused, so that a tape replays to the same bits
elsewhere.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgblora.kernels.philox import BLOCK, DIRECTION_STREAM, noise_block, vector_units


@triton.jit
def _divide(values, divisor_ptr):
    """`values` over the number at `divisor_ptr`, correctly rounded."""
    return tl.div_rn(values, tl.full(values.shape, 1.0, tl.float32) * tl.load(divisor_ptr))


@triton.jit
def _decayed(moment_ptr, index, inside, value, factors_ptr):
    """The moment at `moment_ptr` times the first factor plus `value` times the second, which is stored there."""
    moment = tl.load(moment_ptr + index, mask=inside) * tl.load(factors_ptr) + value * tl.load(factors_ptr + 1)
    tl.store(moment_ptr + index, moment, mask=inside)
    return moment


@triton.jit
def _rule(gradient, index, inside, first_ptr, second_ptr, factors_ptr, OPTIMIZER: tl.constexpr):
    """What `OPTIMIZER` makes of the gradient; its moments are updated."""
    if OPTIMIZER == "sgd":
        return gradient
    elif OPTIMIZER == "sign":
        return tl.where(gradient > 0.0, 1.0, tl.where(gradient < 0.0, -1.0, 0.0))
    elif OPTIMIZER == "momentum":
        return _decayed(first_ptr, index, inside, gradient, factors_ptr)
    else:
        second = _decayed(second_ptr, index, inside, gradient * gradient, factors_ptr + 2)
        first = _decayed(first_ptr, index, inside, gradient, factors_ptr)
        root = tl.sqrt_rn(_divide(second, factors_ptr + 6)) + tl.load(factors_ptr + 4)
        return tl.div_rn(_divide(first, factors_ptr + 5), root)


# not specialised on what changes between calls, see perturb_fwd_kernel
@triton.jit(
    do_not_specialize=["units", "directions", "stream"],
    do_not_specialize_on_alignment=["seeds_ptr", "coefficients_ptr", "lr_ptr", "weight_decay_ptr", "factors_ptr"],
)
def update_fwd_kernel(
    master_ptr,
    first_ptr,
    second_ptr,
    seeds_ptr,
    coefficients_ptr,
    lr_ptr,
    weight_decay_ptr,
    factors_ptr,
    units,
    directions,
    stream,
    DISTRIBUTION: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program i updates elements 4 BLOCK i ..; P = units * UNIT."""
    block = tl.program_id(0).to(tl.int64)
    index = block * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    inside = index < units.to(tl.int64) * UNIT
    counters = block * BLOCK + tl.arange(0, BLOCK)
    total = tl.full((4 * BLOCK,), 0.0, tl.float32)
    for direction in range(directions):
        z = noise_block(tl.load(seeds_ptr + direction), counters, stream, DISTRIBUTION)
        total += z * tl.load(coefficients_ptr + direction)
    mean = tl.div_rn(total, tl.full((4 * BLOCK,), 1.0, tl.float32) * directions.to(tl.float32))
    step = _rule(mean, index, inside, first_ptr, second_ptr, factors_ptr, OPTIMIZER)
    master = tl.load(master_ptr + index, mask=inside)
    step += tl.load(weight_decay_ptr) * master
    tl.store(master_ptr + index, master - step * tl.load(lr_ptr), mask=inside)


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
    """A step along the directions of `seeds`, in place; arguments as of `torch.ops.xgblora.update_`.

    Args:
        master: fp32 [P], contiguous.
        seeds: int64 [q].
        coefficients: fp32 [q].
        lr: fp32 [1].
        weight_decay: fp32 [1].
        distribution: "gaussian" or "rademacher".
        optimizer: "sgd", "momentum", "adam" or "sign".
        first, second: the moments that the optimizer keeps, fp32 [P], contiguous.
        factors: of the moments, fp32.
    """
    size = master.numel()
    if size == 0:
        return
    units, unit = vector_units(size)
    with torch.cuda.device_of(master):
        update_fwd_kernel[(triton.cdiv(size, 4 * BLOCK),)](
            master,
            first,
            second,
            seeds.contiguous(),
            coefficients.contiguous(),
            lr,
            weight_decay,
            factors,
            units,
            seeds.numel(),
            DIRECTION_STREAM,
            DISTRIBUTION=distribution,
            OPTIMIZER=optimizer,
            UNIT=unit,
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )
