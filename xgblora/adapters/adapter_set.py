"""`AdapterSet`: the adapters of one model, their arena, and how they start."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from xgblora.adapters.arena import Arena
from xgblora.adapters.base_layer import has_dense_weight, stored_tensors
from xgblora.adapters.rank1_linear import Rank1Linear, scale_of
from xgblora.ops.merge_rank1 import WEIGHT_DTYPES
from xgblora.ops.noise import Stream, derive_seed, uniform


@dataclass(eq=False)
class AdapterSet:
    """The adapters of a model.

    Attributes:
        model: the model that carries them.
        layers: the adapted layers by module name, in model order.
        alpha, rank: their scale is `alpha / rank`.
        seed: seed of the initialisation; round r of a boosting run draws from (seed, r).
        arena: the storage of all `a` and `b`.
    """

    model: nn.Module
    layers: dict[str, Rank1Linear]
    alpha: float
    rank: int
    seed: int
    arena: Arena = field(init=False)

    def __post_init__(self):
        self.arena = Arena(self.layers)
        self.reinitialise(round=0)

    @property
    def scale(self) -> float:
        return scale_of(self.alpha, self.rank)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype in which activations run, and in which `live` is kept.

        That of the adapted weights. Beside quantised weights, what the layer says it computes in (`compute_dtype`, as
        bitsandbytes has it); else that of the first fp32, bf16 or fp16 parameter of the model.
        """
        base = next(iter(self.layers.values())).base
        if has_dense_weight(base):
            return base.weight.dtype
        if isinstance(getattr(base, "compute_dtype", None), torch.dtype):
            return base.compute_dtype
        ours = {id(parameter) for layer in self.layers.values() for parameter in (layer.a, layer.b)}
        theirs = [parameter for parameter in self.model.parameters() if id(parameter) not in ours]
        known = [parameter.dtype for parameter in theirs if parameter.dtype in WEIGHT_DTYPES]
        return known[0] if known else next((p.dtype for p in theirs if p.is_floating_point()), torch.float32)

    def change_the_function(self) -> bool:
        """Whether a `b` is not zero, as every one is where a round starts; reads from the device."""
        return any(bool(torch.any(layer.b != 0)) for layer in self.layers.values())

    def num_parameters(self) -> int:
        """Trainable numbers: rank * (in + out features), summed over the layers."""
        return sum(layer.a.numel() + layer.b.numel() for layer in self.layers.values())

    def weights(self) -> list[Tensor]:
        """The frozen base weights [out_features, in_features] that merges write into, in model order.

        Those of the layers that are `mergeable`, and no others; for `Conv1D` transposed views.
        """
        return [layer.weight for layer in self.layers.values() if layer.mergeable]

    def base_tensors(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(layer, all that its base stores by name), in model order, without adapters and banks."""
        return ((name, stored_tensors(layer.base)) for name, layer in self.layers.items())

    def trained_tensors(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """`base_tensors` with everything that was merged: a layer's bank is part of it, where there is one."""
        for name, layer in self.layers.items():
            bank = {} if layer.bank is None else {"bank of a": layer.bank[0], "bank of b": layer.bank[1]}
            yield name, stored_tensors(layer.base) | bank

    @torch.no_grad()
    def reinitialise(self, round: int) -> None:
        """Start round `round` with a fresh adapter: `a` Kaiming-uniform, `b` zero, so that the function is the base's.

        `a` lies in +-1/sqrt(in_features), as `nn.Linear` and LoRA start it (He et al., 2015, with a = sqrt(5)); it is
        noise of (seed, round), the same on every device. What an optimizer kept of the last adapter is forgotten.
        """
        self.arena.forget_moments()
        master = self.arena.master
        seed = derive_seed(self.seed, round)
        noise = uniform(seed, master.numel(), device=master.device, stream=Stream.INITIALISATION)
        master.zero_()
        for slot in self.arena.slots:
            a, _ = self.arena.a_and_b(slot)
            fresh, _ = slot.views(noise.unsqueeze(0))
            a.copy_(fresh[0] * (1.0 / math.sqrt(max(slot.in_features, 1))))
        self.arena.restore()
