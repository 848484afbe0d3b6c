"""Where the remainders of 16-bit weights lie: on the weights' device, or on the host where that has no room.

A merge reads and writes each plane once. From the host, one goes to the device, is used and comes back before the next:
the device then holds the largest of them instead of all, 2 bytes for each adapted weight. Bits are the same.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from xgblora.ops.merge_rank1 import new_remainders


class Remainders(Protocol):
    """The planes of some weights, zero at first.

    Attributes:
        planes: one a weight, as of `new_remainders`.
    """

    planes: list[Tensor]

    def __init__(self, weights: list[Tensor]): ...

    def turns(self, weights: list[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
        """Which of the weights are merged into at once, all in turn, with their planes on their device."""


class OnDevice:
    """All planes beside their weights: one launch merges every layer."""

    def __init__(self, weights: list[Tensor]):
        self.planes = new_remainders(weights)

    def turns(self, weights: list[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
        """See `Remainders`."""
        yield slice(None), self.planes


class OnHost:
    """All planes on the host, of which one at a time is on the device."""

    def __init__(self, weights: list[Tensor]):
        # made one at a time, because they may not fit into the device together
        self.planes = [plane.cpu() for weight in weights for plane in new_remainders([weight])]

    def turns(self, weights: list[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
        """See `Remainders`."""
        for index, (weight, kept) in enumerate(zip(weights, self.planes, strict=True)):
            plane = torch.empty_strided(kept.shape, kept.stride(), dtype=kept.dtype, device=weight.device).copy_(kept)
            yield slice(index, index + 1), [plane]
            kept.copy_(plane)


REMAINDERS = {"device": OnDevice, "host": OnHost}
