"""`weights`: members are `W + sigma * sign * outer(b, a)`, `a` and `b` both noise of the member's seed.

The sign is on `b` alone. On both it would cancel, and the two of a pair would be the same weights. The step
`W += sum_i c_i outer(b_i, a_i)` is one booster, made of seeds and coefficients (EGGROLL, arXiv 2511.16652).
"""

import math

import torch
from torch import Tensor

from xgblora import ops
from xgblora.boosting import Booster
from xgblora.boosting.booster import refuse_noise
from xgblora.errors import InputError


class WeightNoise:
    """Perturbations of rank 1 in weight space; the adapter in training stays empty."""

    merges = True

    def check(self, booster: Booster, decay: float) -> None:
        """Raise InputError where `booster` cannot take such members."""
        refuse_noise(booster, decay)
        if booster.is_trained():
            raise InputError("kind=weights: the adapter in training is not empty; merge it first, or use kind=adapter")

    def fill(self, booster: Booster, live: Tensor, seeds: Tensor, signs: Tensor, sigma: float) -> None:
        """Write the adapters of members into `live` [G, P]; their scale times `outer(b, a)` is the perturbation.

        `a` and `b` have half of it each, so that fp16 holds both.
        """
        arena = booster.adapters.arena
        size = math.sqrt(sigma / booster.adapters.scale)
        ops.perturb(torch.zeros_like(arena.master), live, seeds, size, torch.ones_like(signs))
        for slot in arena.slots:
            # exact in every dtype
            slot.views(live)[1].mul_(signs.to(live.dtype).view(-1, 1, 1))

    def step(self, booster: Booster, seeds: Tensor, coefficients: Tensor, *, step: int, decay: float) -> int:
        """Enter the step into weights and ledger; the number of its round."""
        return booster.merge_noise(seeds, coefficients, step=step, decay=decay).round
