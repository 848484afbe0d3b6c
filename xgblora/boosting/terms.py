"""What is written into the weights after the base, one term after the other.

A kind of term is a class of one shape: `write` does it to the weights, `stack` to their update as rows of rank-1
adapters, `count` says how many rows it adds, and `reach` how far a pass over the weights moves one of them at most.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xgblora import ops
from xgblora.adapters import AdapterSet
from xgblora.adapters.arena import arena_size
from xgblora.boosting.base_copy import BaseCopy
from xgblora.boosting.remainders import Remainders
from xgblora.ops.merge_rank1 import round_with_remainder, running_sum
from xgblora.ops.noise import derive_seed, normal

# of two numbers of noise, each under sqrt(2 * 32 * log 2); sums in fp32 are off by less than the rest
_MOST_OF_NOISE = 50.0


@dataclass(frozen=True)
class Target:
    """The weights of a run.

    Attributes:
        adapters: their adapters.
        rounding: how they are merged.
        base: the weights that merges write into as they were before the first one.
        remainders: where their planes are, for "remainder".
    """

    adapters: AdapterSet
    rounding: str
    base: BaseCopy
    remainders: Remainders | None

    def turns(self) -> Iterator[tuple[slice, list[Tensor] | None]]:
        """Which of the weights are written into at once, all in turn, with their planes."""
        return (
            iter([(slice(None), None)]) if self.remainders is None else self.remainders.turns(self.adapters.weights())
        )

    def seed(self, round: int, row: int) -> int:
        """Seed of stochastic rounding: another for each round, and for each of the rank-1 terms of an adapter."""
        return derive_seed(self.adapters.seed, round, row) if row else derive_seed(self.adapters.seed, round)


@dataclass(frozen=True)
class Term:
    """`scale * outer(b, a)` for every layer.

    Attributes:
        round: 1 for the first.
        adapters: fp32 [P].
        scale: negative for the start of a round that the base takes back.
    """

    round: int
    adapters: Tensor
    scale: float
    count = 1

    @property
    def is_start(self) -> bool:
        """Whether it is the negative start of its round, and not the round's booster."""
        return self.scale < 0

    @property
    def reach(self) -> float:
        return abs(self.scale) * float(self.adapters.abs().max()) ** 2

    def write(self, target: Target) -> None:
        """Merge it into the weights; a layer whose weight cannot be written keeps it in its bank."""
        adapters, merged = target.adapters, []
        rows = {device: self.adapters.to(device).unsqueeze(0) for device in adapters.arena.devices}
        for slot, layer in zip(adapters.arena.slots, adapters.layers.values(), strict=True):
            a, b = (part[0] for part in slot.views(rows[layer.device]))
            if layer.mergeable:
                # of every matrix of the layer its own rows
                merged.extend(zip(*(part.unflatten(0, (-1, adapters.rank)) for part in (a, b)), strict=True))
            elif bool(b.any()):
                layer.extend_bank(a, b * self.scale)
        for row in range(adapters.rank if merged else 0):
            for part, planes in target.turns():
                ops.merge_rank1_(
                    adapters.weights()[part],
                    [(a[row], b[row]) for a, b in merged[part]],
                    self.scale,
                    target.rounding,
                    remainders=planes,
                    seed=target.seed(self.round, row + adapters.rank * self.is_start),
                )

    def stack(self, rows: list[Tensor], scales: list[float], slots: tuple) -> None:
        """Add its rows, fp32 [P], and what each of their `outer(b, a)` is multiplied with."""
        rows.append(self.adapters)
        scales.append(self.scale)


@dataclass(frozen=True)
class NoiseTerm:
    """`sum_i coefficient_i * outer(b_i, a_i)` for every layer, `a_i` and `b_i` noise of seed i, see `merge_noise_`.

    Attributes:
        round: 1 for the first.
        seeds: int64 [T].
        coefficients: fp32 [T].
    """

    round: int
    seeds: Tensor
    coefficients: Tensor

    @property
    def count(self) -> int:
        return len(self.seeds)

    @property
    def reach(self) -> float:
        return _MOST_OF_NOISE * float(self.coefficients.abs().sum())

    def write(self, target: Target) -> None:
        """Merge it into the weights, all of which must be writable, and have adapters of rank 1."""
        adapters = target.adapters
        starts = [
            (slot.a_start + number * slot.in_features, slot.b_start + number * slot.out_features)
            for slot in adapters.arena.slots
            for number in range(slot.rank)
        ]
        for part, planes in target.turns():
            ops.merge_noise_(
                adapters.weights()[part],
                starts[part],
                self.seeds,
                self.coefficients,
                target.rounding,
                remainders=planes,
                seed=target.seed(self.round, 0),
            )

    def stack(self, rows: list[Tensor], scales: list[float], slots: tuple) -> None:
        """As of `Term`."""
        size = arena_size(slots)
        rows.extend(normal(seed, size, device=self.seeds.device) for seed in self.seeds)
        scales.extend(self.coefficients.tolist())


@dataclass(frozen=True)
class Fade:
    """All that was written before is multiplied: `W = base + factor * (W - base)`.

    On the fp32 running sum: three fp32 operations, each rounded once, so that the weights after it are a function of
    base and ledger. It costs one more pass over the weights and a look at the copy of the base on the host.

    Attributes:
        factor: above 0 and below 1.
    """

    factor: float
    count = 0
    # where the weights lay is not known of the base
    reach = math.nan

    def write(self, target: Target) -> None:
        """Fade the weights, all of which must be writable, and hold the running sum."""
        bases = target.base.weights()
        for part, planes in target.turns():
            weights = target.adapters.weights()[part]
            for weight, plane in zip(weights, planes or [None] * len(weights), strict=True):
                base = next(bases).to(weight.device, torch.float32)
                if weight.dtype == torch.float32:
                    weight.copy_(base + (weight - base) * self.factor)
                    continue
                total = base + (running_sum(weight, plane) - base) * self.factor
                for kept, new in zip((weight, plane), round_with_remainder(total, weight.dtype), strict=True):
                    kept.copy_(new)

    def stack(self, rows: list[Tensor], scales: list[float], slots: tuple) -> None:
        """As of `Term`."""
        scales[:] = [scale * self.factor for scale in scales]
