"""`merge_noise_`: write a weighted sum of rank-1 noise into the base weights of every layer in one pass.

    W += sum_i c_i outer(b_i, a_i), where `a_i` and `b_i` are noise of seed i at the layer's own places in the arena

The step of evolution strategies with rank-1 members (EGGROLL, Sarkar et al., arXiv 2511.16652): the noise is made again
from its seeds, and no sum of matrices is stored for more than one layer. The arithmetic is fixed: the sum begins with 0
and takes the terms in order, `sum + (c_i * b_i) * a_i`, three fp32 operations each rounded once, none fused; then it is
added to the weight, or with `remainder` to the fp32 running sum, and rounded once, as `merge_rank1_` does.
"""

import torch
from torch import Tensor

from xgblora.errors import InputError
from xgblora.ops.library import count_writes, register
from xgblora.ops.merge_rank1 import add_rounded, check_remainders, check_rounding, check_weight
from xgblora.ops.noise import normal
from xgblora.ops.perturb import as_device_vector, as_seeds
from xgblora.ops.several_devices import launches


def merge_noise_(
    weights: list[Tensor],
    starts: list[tuple[int, int]],
    seeds: Tensor,
    coefficients: Tensor,
    rounding: str,
    *,
    remainders: list[Tensor] | None = None,
    seed: int = 0,
) -> None:
    """Merge the same T terms of noise into each weight, in place.

    Args:
        weights: tensors [N_l, K_l] of fp32, bf16 or fp16, as of `merge_rank1_`.
        starts: for each weight the places of its `a` and its `b` in a noise vector: `a` is elements
            `a_start .. a_start + K_l - 1`, `b` likewise. Places that overlap would be the same noise.
        seeds: int64 [T].
        coefficients: fp32 [T].
        rounding: "nearest", "stochastic" or "remainder".
        remainders: for "remainder", as of `merge_rank1_`.
        seed: for "stochastic", as of `merge_rank1_`.

    Raises:
        InputError: the rounding is unknown, or lists, shapes or dtypes do not fit together.
    """
    check_rounding(rounding)
    if len(weights) != len(starts):
        raise InputError(f"{len(weights)} weights and {len(starts)} starts: must be equal")
    for weight, places in zip(weights, starts, strict=True):
        check_weight(weight)
        if weight.ndim != 2 or min(places) < 0:
            raise InputError(f"a weight {tuple(weight.shape)} at {places}: must be [N, K] at places of 0 or more")
    if remainders is None:
        remainders = []
    if rounding == "remainder":
        check_remainders(weights, remainders)
    if not weights:
        return
    seeds, coefficients = as_seeds(seeds, weights[0].device), torch.atleast_1d(torch.as_tensor(coefficients))
    if seeds.numel() != coefficients.numel():
        raise InputError(f"{seeds.numel()} seeds and {coefficients.numel()} coefficients: must be equal")
    lists = weights, remainders, [a for a, _ in starts], [b for _, b in starts]
    for merge, share in launches("merge_noise_", weights, rounding):
        of_launch = list(map(share, lists))
        device = of_launch[0][0].device
        terms = as_device_vector(seeds, torch.int64, device), as_device_vector(coefficients, torch.float32, device)
        merge(*of_launch, *terms, rounding, seed)
    count_writes(*weights, *remainders)


def noise_sum(shape: torch.Size, a_start: int, b_start: int, seeds: Tensor, coefficients: Tensor) -> Tensor:
    """The fp32 sum that is added to a weight of `shape` [N, K]."""
    total = torch.zeros(shape, device=seeds.device)
    for seed, coefficient in zip(seeds, coefficients, strict=True):
        a = normal(seed, shape[1], device=seeds.device, start=a_start)
        b = normal(seed, shape[0], device=seeds.device, start=b_start)
        total += (b * coefficient).unsqueeze(1) * a
    return total


def _merge_noise(
    weights: list[Tensor],
    remainders: list[Tensor],
    a_starts: list[int],
    b_starts: list[int],
    seeds: Tensor,
    coefficients: Tensor,
    rounding: str,
    rounding_seed: int,
) -> None:
    start = 0
    for index, weight in enumerate(weights):
        terms = seeds.to(weight.device), coefficients.to(weight.device)
        update = noise_sum(weight.shape, a_starts[index], b_starts[index], *terms)
        add_rounded(weight, update, remainders[index] if remainders else None, rounding, start, rounding_seed)
        start += weight.numel()


def _fake(weights, remainders, a_starts, b_starts, seeds, coefficients, rounding, rounding_seed) -> None:
    return None


register(
    "merge_noise_(Tensor(a!)[] weights, Tensor(b!)[] remainders, int[] a_starts, int[] b_starts, Tensor seeds,"
    " Tensor coefficients, str rounding, int rounding_seed) -> ()",
    _merge_noise,
    _fake,
)
