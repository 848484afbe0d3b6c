"""`merge_rank1_`: write rank-1 adapters into the base weights of every layer in one call.

    W += scale * outer(b, a), computed as `W + (scale * b) * a`: three fp32 operations, each rounded once, none fused;
    `scale` is rounded to fp32 first.

Rounding says what happens to the bits that a 16-bit weight cannot hold:

- `nearest` drops them. After 200 small merges into bf16 only 14% of the true update is left.
- `stochastic` keeps them on average: rounds up with the probability of the remainder (Gupta et al., 2015), with noise
  keyed on (seed, element).
- `remainder` keeps them exactly, in an int16 plane beside the weight: weight and remainder together are the fp32
  running sum, and the weight is always that sum rounded once (ties away from zero for bf16, ties to even for fp16).

fp32 weights hold the running sum themselves; all three roundings are the same for them.
"""

import torch
from torch import Tensor

from xgblora.errors import InputError
from xgblora.kernels.weight_storage import is_transposed
from xgblora.ops.library import count_writes, register
from xgblora.ops.noise import Stream, random_words
from xgblora.ops.several_devices import launches
from xgblora.spelling import dtype_name

ROUNDINGS = ("nearest", "stochastic", "remainder")
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def merge_rank1_(
    weights: list[Tensor],
    adapters: list[tuple[Tensor, Tensor]],
    scale: float,
    rounding: str,
    *,
    remainders: list[Tensor] | None = None,
    seed: int = 0,
) -> None:
    """Merge one rank-1 adapter into each weight, in place.

    Args:
        weights: tensors [N_l, K_l] of fp32, bf16 or fp16, of any strides; one launch for those of a device. A weight
            that is stored as [K_l, N_l] is handed over as its transpose, `weight.T`, and takes part like any other.
        adapters: a pair (a, b) for each weight, on its device: fp32 [K_l] and [N_l].
        scale: alpha / rank; rounded to fp32 before it is used.
        rounding: "nearest", "stochastic" or "remainder".
        remainders: for "remainder", an int16 tensor of the weight's shape for each 16-bit weight (for fp32 weights an
            empty tensor), from `new_remainders`.
        seed: for "stochastic": the 64-bit seed of this merge. Element i of the concatenated weights uses word i.
            Elements are numbered in the order in which they lie in memory: row by row, and column by column for a
            transposed weight, so that four neighbours share one Philox call; row by row for any other strides.

    Raises:
        InputError: the rounding is unknown, or lists, shapes or dtypes do not fit together.
    """
    check_rounding(rounding)
    if len(weights) != len(adapters):
        raise InputError(f"{len(weights)} weights and {len(adapters)} adapters: must be equal")
    for weight, (a, b) in zip(weights, adapters, strict=True):
        check_weight(weight)
        if a.ndim != 1 or b.ndim != 1 or weight.shape != (*b.shape, *a.shape):
            raise InputError(
                f"a {tuple(a.shape)} and b {tuple(b.shape)} do not fit the weight {tuple(weight.shape)}: must be [K] "
                "and [N] of a weight [N, K]"
            )
        if not a.dtype == b.dtype == torch.float32:
            raise InputError(f"a is {dtype_name(a.dtype)}, b {dtype_name(b.dtype)}: adapters are merged in float32")
        if not weight.device == a.device == b.device:
            raise InputError("a weight and its adapter must be on one device to be merged")
    if remainders is None:
        remainders = []
    if rounding == "remainder":
        check_remainders(weights, remainders)
    lists = weights, [a for a, _ in adapters], [b for _, b in adapters], remainders
    for merge, share in launches("merge_rank1_", weights, rounding):
        merge(*map(share, lists), scale, rounding, seed)
    count_writes(*weights, *remainders)


def new_remainders(weights: list[Tensor]) -> list[Tensor]:
    """Zeroed remainder planes for `weights`: int16, shape and strides of 16-bit weights; empty for fp32."""
    return [
        weight.new_zeros(0, dtype=torch.int16)
        if weight.dtype == torch.float32
        else torch.zeros_like(weight, dtype=torch.int16, memory_format=torch.preserve_format)
        for weight in weights
    ]


def check_rounding(rounding: str) -> None:
    """Raise InputError unless `rounding` is one of `ROUNDINGS`."""
    if rounding not in ROUNDINGS:
        raise InputError(f"rounding={rounding}: must be one of {', '.join(ROUNDINGS)}")


def check_weight(weight: Tensor) -> None:
    """Raise InputError unless `weight` is of one of `WEIGHT_DTYPES`."""
    if weight.dtype not in WEIGHT_DTYPES:
        raise InputError(f"weights must be fp32, bf16 or fp16 to be merged into, not {weight.dtype}")


def check_remainders(weights: list[Tensor], remainders: list[Tensor]) -> None:
    """Raise InputError unless there is a plane for each weight, as `new_remainders` makes them."""
    if len(remainders) != len(weights):
        raise InputError(f"rounding=remainder: {len(weights)} weights and {len(remainders)} remainders: must be equal")
    for weight, remainder in zip(weights, remainders, strict=True):
        if weight.dtype == torch.float32:
            continue
        if remainder.shape != weight.shape or remainder.dtype != torch.int16 or remainder.device != weight.device:
            found = f"{dtype_name(remainder.dtype)} {tuple(remainder.shape)} on {remainder.device}"
            raise InputError(f"a remainder must be int16 {tuple(weight.shape)} on {weight.device}, not {found}")


def running_sum(weight: Tensor, remainder: Tensor) -> Tensor:
    """The fp32 value that a 16-bit weight and its remainder stand for; fp32 of the weight's shape."""
    bits = weight.float().view(torch.int32) + remainder.to(torch.int32)
    return torch.where(weight.isfinite() | _overflowed(weight, remainder), bits.view(torch.float32), weight.float())


def _overflowed(weight: Tensor, remainder: Tensor) -> Tensor:
    # a finite sum that rounds to a bf16 infinity lies a little below it, so its remainder is negative
    return weight.isinf() & (remainder < 0)


def round_with_remainder(total: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round an fp32 sum to `dtype`, returning the weight and the int16 remainder such that `running_sum` is `total`.

    The remainder counts fp32 units in the last place, by which the bit patterns differ. For bf16 half a unit is 2^15 of
    them; an int16 holds -2^15 but not 2^15, so ties go away from zero, which makes the map exact for every finite
    sum. For fp16 the remainder is exact for sums in the normal range and clipped below and above it.
    """
    bits = total.view(torch.int32)
    if dtype == torch.bfloat16:
        upper = (bits + 0x8000) & -0x10000
        rounded = torch.where(total.isfinite(), upper, total.to(torch.bfloat16).float().view(torch.int32))
        weight = rounded.view(torch.float32).to(torch.bfloat16)
    else:
        weight = total.to(dtype)
        rounded = weight.float().view(torch.int32)
    remainder = torch.where(total.isfinite() & (weight.isfinite() | (dtype == torch.bfloat16)), bits - rounded, 0)
    return weight, remainder.clamp_(-0x8000, 0x7FFF).to(torch.int16)


def round_stochastically(total: Tensor, dtype: torch.dtype, words: Tensor) -> Tensor:
    """Round an fp32 sum to `dtype`, up in magnitude with the probability of what is cut off.

    Args:
        total: fp32.
        dtype: bf16 or fp16.
        words: int64 32-bit random words of the shape of `total`; the low 16 bits are used.
    """
    spare_bits = 16 if dtype == torch.bfloat16 else 13
    noise = (words & ((1 << spare_bits) - 1)).to(torch.int32)
    bits = total.view(torch.int32) + noise
    normal = (bits & -(1 << spare_bits)).view(torch.float32)
    if dtype == torch.float16:
        # below the normal range the spacing is 2^-24 whatever the exponent
        steps = total.abs().double() * 2.0**24 + noise.double() * 2.0**-13
        subnormal = (steps.floor() * 2.0**-24).float().copysign(total)
        normal = torch.where(total.abs() < 2.0**-14, subnormal, normal)
    return torch.where(total.isfinite(), normal, total).to(dtype)


def _merge(
    weights: list[Tensor],
    a: list[Tensor],
    b: list[Tensor],
    remainders: list[Tensor],
    scale: float,
    rounding: str,
    seed: int,
) -> None:
    start = 0
    for index, weight in enumerate(weights):
        update = (b[index].float() * scale).unsqueeze(1) * a[index].float()
        add_rounded(weight, update, remainders[index] if remainders else None, rounding, start, seed)
        start += weight.numel()


def add_rounded(weight: Tensor, update: Tensor, remainder: Tensor | None, rounding: str, start: int, seed: int) -> None:
    """Add an fp32 update to a weight and round the sum once, in place.

    Args:
        remainder: the weight's plane, for "remainder".
        start, seed: for "stochastic": the number of the weight's first element, and the seed of this merge.
    """
    if weight.dtype == torch.float32:
        weight += update
    elif rounding == "nearest":
        weight.copy_(weight.float() + update)
    elif rounding == "remainder":
        rounded, left = round_with_remainder(running_sum(weight, remainder) + update, weight.dtype)
        weight.copy_(rounded)
        remainder.copy_(left)
    else:
        words = _words_of(weight, start, seed)
        weight.copy_(round_stochastically(weight.float() + update, weight.dtype, words))


def _words_of(weight: Tensor, start: int, seed: int) -> Tensor:
    """The random words of a weight whose first element is number `start`: int64 [N, K]."""
    skipped = start % 4
    words = random_words(seed, weight.numel() + skipped, Stream.ROUNDING, device=weight.device, start=start - skipped)
    words = words[skipped:]
    return words.view(weight.T.shape).T if is_transposed(weight) else words.view(weight.shape)


def _fake(weights, a, b, remainders, scale, rounding, seed) -> None:
    return None


register(
    "merge_rank1_(Tensor(a!)[] weights, Tensor[] a, Tensor[] b, Tensor(b!)[] remainders, float scale, str rounding,"
    " int seed) -> ()",
    _merge,
    _fake,
)
