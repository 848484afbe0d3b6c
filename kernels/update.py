"""`update_` in one launch, whatever the number of directions.

    master -= lr * (mean_q(g_q z(seed_q)) + weight_decay * master)

A program makes the noise of its block for one direction after another and adds it up in registers: 8 bytes of memory
traffic an element (`master` in, `master` out) for any q, where a loop of launches would move 8 q and a noise tensor
besides. Seeds, projected gradients, learning rate and weight decay are read on the device, so the losses never travel
to the host and a captured CUDA graph can replay the step.

The order of operations is the contract of `xgblora.ops.update_`: directions in the order of the seeds, a correctly
rounded division, every fp32 operation rounded once and none fused, so that a tape replays to the same bits elsewhere.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgblora.kernels.philox import BLOCK, DIRECTION_STREAM, noise_block, vector_units


# not specialised on what changes between calls, see perturb_fwd_kernel
@triton.jit(
    do_not_specialize=["units", "directions", "stream"],
    do_not_specialize_on_alignment=["seeds_ptr", "coefficients_ptr", "lr_ptr", "weight_decay_ptr"],
)
def update_fwd_kernel(
    master_ptr,
    seeds_ptr,
    coefficients_ptr,
    lr_ptr,
    weight_decay_ptr,
    units,
    directions,
    stream,
    DISTRIBUTION: tl.constexpr,
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
    master = tl.load(master_ptr + index, mask=inside)
    mean = tl.div_rn(total, tl.full((4 * BLOCK,), 1.0, tl.float32) * directions.to(tl.float32))
    gradient = mean + tl.load(weight_decay_ptr) * master
    tl.store(master_ptr + index, master - gradient * tl.load(lr_ptr), mask=inside)


def update_(
    master: Tensor, seeds: Tensor, coefficients: Tensor, lr: Tensor, weight_decay: Tensor, distribution: str
) -> None:
    """SGD along the directions of `seeds`, in place; arguments as of `torch.ops.xgblora.update_`.

    Args:
        master: fp32 [P], contiguous.
        seeds: int64 [q].
        coefficients: fp32 [q].
        lr: fp32 [1].
        weight_decay: fp32 [1].
        distribution: "gaussian" or "rademacher".
    """
    size = master.numel()
    if size == 0:
        return
    units, unit = vector_units(size)
    with torch.cuda.device_of(master):
        update_fwd_kernel[(triton.cdiv(size, 4 * BLOCK),)](
            master,
            seeds.contiguous(),
            coefficients.contiguous(),
            lr,
            weight_decay,
            units,
            seeds.numel(),
            DIRECTION_STREAM,
            DISTRIBUTION=distribution,
            UNIT=unit,
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )
