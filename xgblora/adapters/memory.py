"""What adapters and their merges cost in memory."""

from dataclasses import dataclass

import torch

from xgblora.adapters.adapter_set import AdapterSet
from xgblora.adapters.base_layer import stored_tensors
from xgblora.adapters.rank1_linear import Rank1Linear
from xgblora.spelling import memory_size


@dataclass(frozen=True)
class Memory:
    """Bytes that adapters need, and that merging needs at most: how it rounds, and where, is decided later.

    Attributes:
        weights: of the adapted weights as they are stored (quantised ones with their scales and tables).
        adapters: of the arena's `master`, fp32.
        remainders: 2 for each element of a 16-bit weight that is merged into with rounding "remainder"; on the device,
            or where `Booster(remainders="host")` has them.
        host_copy: on the host, the copy of the mergeable weights that rolling back starts from, unless a file has them.
    """

    weights: int
    adapters: int
    remainders: int
    host_copy: int

    def __str__(self) -> str:
        sizes = (self.weights, self.adapters, self.remainders, self.host_copy)
        weights, adapters, remainders, host_copy = map(memory_size, sizes)
        return (
            f"{weights} of adapted weights, {adapters} of adapters; merging adds at most {remainders} of remainders, "
            f"on the device or the host, and {host_copy} on the host (copy of the base, where no file has it)"
        )


def memory_of(adapters: AdapterSet) -> Memory:
    """The memory of `adapters` and of the merges to come, from shapes and dtypes alone."""
    mergeable = adapters.weights()
    return Memory(
        weights=sum(_weight_bytes(layer) for layer in adapters.layers.values()),
        adapters=adapters.arena.master.nbytes,
        remainders=sum(2 * weight.numel() for weight in mergeable if weight.dtype != torch.float32),
        host_copy=sum(weight.nbytes for weight in mergeable),
    )


def _weight_bytes(layer: Rank1Linear) -> int:
    if layer.mergeable:
        return layer.weight.nbytes
    tensors = stored_tensors(layer.base)
    return sum(tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if name != "bias")
