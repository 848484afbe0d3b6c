"""`perturb` in one launch: every sign and every direction of a zeroth-order step.

    live[g] = round((sign_g * eps) * z(seed of g) + master)

The noise of a block is made once in registers and serves all rows of its seed (both signs of a pair), so a launch reads
`4 P` bytes of `master` a direction, writes `G P` elements of `live` and nothing else: no tensor of noise exists. The
noise is made from seeds that the kernel reads on the device, like eps and the signs: nothing is copied to the host,
nothing recompiles, and a captured CUDA graph replays with new values.

The arithmetic is the contract of `xgblora.ops.perturb`: three fp32 operations, each rounded once, then one rounding to
the dtype of `live`. It is launched without fused multiply-adds so that every implementation gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xgblora.kernels.philox import BLOCK, DIRECTION_STREAM, noise_block, vector_units
from xgblora.kernels.rounding import round_to


# The integers change from model to model and the small tensors are slices of larger ones: specialised on their values
# and alignments, as Triton does by default, the kernel would be compiled several times for no gain.
@triton.jit(
    do_not_specialize=["units", "rows_per_seed", "stream"],
    do_not_specialize_on_alignment=["seeds_ptr", "eps_ptr", "signs_ptr"],
)
def perturb_fwd_kernel(
    master_ptr,
    live_ptr,
    seeds_ptr,
    eps_ptr,
    signs_ptr,
    units,
    rows_per_seed,
    stream,
    DISTRIBUTION: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (i, d) writes elements 4 BLOCK i .. of all rows of seed d; P = units * UNIT."""
    block = tl.program_id(0).to(tl.int64)
    direction = tl.program_id(1)
    size = units.to(tl.int64) * UNIT
    index = block * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    inside = index < size
    master = tl.load(master_ptr + index, mask=inside)
    eps = tl.load(eps_ptr)
    seed = tl.load(seeds_ptr + direction)
    z = noise_block(seed, block * BLOCK + tl.arange(0, BLOCK), stream, DISTRIBUTION)
    first_row = direction * rows_per_seed
    for row in range(first_row, first_row + rows_per_seed):
        step = tl.load(signs_ptr + row) * eps
        value = round_to(step * z + master, live_ptr.dtype.element_ty)
        tl.store(live_ptr + size * row + index, value, mask=inside)


def perturb(master: Tensor, live: Tensor, seeds: Tensor, eps: Tensor, signs: Tensor, distribution: str) -> None:
    """Write the perturbed adapters into `live` [G, P]; arguments as of `torch.ops.xgblora.perturb`.

    Args:
        master: fp32 [P], contiguous.
        live: [G, P], contiguous, fp32, bf16 or fp16.
        seeds: int64 [D], D divides G.
        eps: fp32 [1].
        signs: fp32 [G].
        distribution: "gaussian" or "rademacher".
    """
    size, directions = master.numel(), seeds.numel()
    if size == 0:
        return
    units, unit = vector_units(size)
    with torch.cuda.device_of(master):
        perturb_fwd_kernel[(triton.cdiv(size, 4 * BLOCK), directions)](
            master,
            live,
            seeds.contiguous(),
            eps,
            signs.contiguous(),
            units,
            signs.numel() // directions,
            DIRECTION_STREAM,
            DISTRIBUTION=distribution,
            UNIT=unit,
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )
