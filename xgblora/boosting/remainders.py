"""Where the remainders of 16-bit weights lie: on the weights' device, or on the host where that has no room.

A merge reads and writes each plane once. From the host, one goes to the device, is used and comes back before the next:
the device then holds the largest of them instead of all, 2 bytes for each adapted weight. Bits are the same.
"""

from typing import Protocol

import torch
from torch import Tensor

from xgblora import ops
from xgblora.ops.merge_rank1 import new_remainders


class Remainders(Protocol):
    """The planes of some weights, zero at first."""

    def __init__(self, weights: list[Tensor]): ...

    def merge(self, weights: list[Tensor], adapters: list[tuple[Tensor, Tensor]], scale: float) -> None:
        """Merge as `xgblora.ops.merge_rank1_` does with the rounding "remainder"."""


class OnDevice:
    """All planes beside their weights: one launch merges every layer."""

    def __init__(self, weights: list[Tensor]):
        self._planes = new_remainders(weights)

    def merge(self, weights: list[Tensor], adapters: list[tuple[Tensor, Tensor]], scale: float) -> None:
        """See `Remainders`."""
        ops.merge_rank1_(weights, adapters, scale, "remainder", remainders=self._planes)


class OnHost:
    """All planes on the host, of which one at a time is on the device."""

    def __init__(self, weights: list[Tensor]):
        # made one at a time, because they may not fit into the device together
        self._planes = [plane.cpu() for weight in weights for plane in new_remainders([weight])]

    def merge(self, weights: list[Tensor], adapters: list[tuple[Tensor, Tensor]], scale: float) -> None:
        """See `Remainders`."""
        for weight, adapter, kept in zip(weights, adapters, self._planes, strict=True):
            plane = torch.empty_strided(kept.shape, kept.stride(), dtype=kept.dtype, device=weight.device).copy_(kept)
            ops.merge_rank1_([weight], [adapter], scale, "remainder", remainders=[plane])
            kept.copy_(plane)


REMAINDERS = {"device": OnDevice, "host": OnHost}
