"""`adapter`: members are the adapter in training plus `sigma * sign * z`, `z` noise over `a` and `b` of every layer.

The step moves the adapter; it becomes a booster when it is merged (`Booster.merge`), like any other.
"""

import torch
from torch import Tensor

from xgblora import ops
from xgblora.boosting import Booster
from xgblora.errors import InputError


class AdapterNoise:
    """Perturbations of the adapter's own parameters."""

    merges = False

    def check(self, booster: Booster, decay: float) -> None:
        """Raise InputError where `booster` cannot take such members."""
        if decay != 1.0:
            raise InputError(
                f"decay={decay}: boosters fade with kind=weights, where each step is one; must be 1.0 here"
            )

    def fill(self, booster: Booster, live: Tensor, seeds: Tensor, signs: Tensor, sigma: float) -> None:
        """Write the adapters of members into `live` [G, P]."""
        arena = booster.adapters.arena
        ops.perturb(arena.master, live, seeds, sigma, signs)
        if arena.untrained is not None:
            torch.where(arena.untrained, arena.master.to(live.dtype), live, out=live)

    @torch.no_grad()
    def step(self, booster: Booster, seeds: Tensor, coefficients: Tensor, *, step: int, decay: float) -> None:
        """Move the adapter in training."""
        arena = booster.adapters.arena
        # the operation descends, and divides by the number of seeds
        slopes = coefficients * -float(len(coefficients))
        with arena.kept():
            ops.update_(arena.master, seeds.to(arena.master.device), slopes.to(arena.master.device), lr=1.0)
        arena.restore()
