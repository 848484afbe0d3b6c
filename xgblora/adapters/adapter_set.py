"""`AdapterSet`: the adapters of one model, their arena, and how they start."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from xgblora.adapters.arena import Arena, Slot, arena_size
from xgblora.adapters.base_layer import rest_tensors, stored_tensors
from xgblora.adapters.depth import first_block
from xgblora.adapters.identity import origin_of
from xgblora.adapters.origin import Origin
from xgblora.adapters.rank1_linear import Rank1Linear, scale_of, starting_a
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
        known_rest: the digest of the rest of the model where a record says it (`Origin.rest`), so that it need not be
            taken again; to be set before `identify`.
        labels: of a classification head that `seed` may have drawn, for the record; to be set before `identify`.
        arena: the storage of all `a` and `b`.
    """

    model: nn.Module
    layers: dict[str, Rank1Linear]
    alpha: float
    rank: int
    seed: int
    known_rest: str | None = None
    labels: tuple[str, ...] | None = None
    arena: Arena = field(init=False)
    _origin: Origin | None = field(init=False, default=None, repr=False)
    _first_blocks: dict[tuple[str, ...], str] = field(init=False, default_factory=dict, repr=False)

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
        first = next(iter(self.layers.values()))
        if first.kind.has_dense_weight(first.base):
            return first.weight.dtype
        if isinstance(getattr(first.base, "compute_dtype", None), torch.dtype):
            return first.base.compute_dtype
        ours = {id(parameter) for layer in self.layers.values() for parameter in (layer.a, layer.b)}
        theirs = [parameter for parameter in self.model.parameters() if id(parameter) not in ours]
        known = [parameter.dtype for parameter in theirs if parameter.dtype in WEIGHT_DTYPES]
        return known[0] if known else next((p.dtype for p in theirs if p.is_floating_point()), torch.float32)

    @property
    def origin(self) -> Origin:
        """Which base model this is, adapted how: as it was when `identify` was called last, or this asked first."""
        return self._origin or self.identify()

    def identify(self) -> Origin:
        """Take the weights as they are now for the base that `origin` says; to be called before the first merge.

        Raises:
            InputError: a layer has no bytes (it is on the meta device).
        """
        self._origin = origin_of(self)
        return self._origin

    def first_block(self, *, in_use: bool = True) -> str:
        """The name of the model's first block that holds an adapter, see `xgblora.adapters.depth.first_block`.

        Args:
            in_use: count the adapters alone that the round trains; those of other layers are not read.
        """
        names = tuple(name for name, layer in self.layers.items() if layer.active or not in_use)
        # looking through the modules takes a hundredth of a small model's step
        if names not in self._first_blocks:
            self._first_blocks[names] = first_block(self.model, names)
        return self._first_blocks[names]

    def num_parameters(self) -> int:
        """Trainable numbers: rank * (in + out features), summed over the layers."""
        return sum(layer.a.numel() + layer.b.numel() for layer in self.layers.values())

    def weights(self) -> list[Tensor]:
        """The frozen base weights [out_features, in_features] that merges write into, in model order.

        Those of the layers that are `mergeable`, and no others; views, where they are stored in another layout.
        """
        return [matrix for layer in self.layers.values() if layer.mergeable for matrix in layer.matrices]

    def base_tensors(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(layer, all that its base stores by name), in model order, without adapters and banks."""
        return ((name, stored_tensors(layer.base)) for name, layer in self.layers.items())

    def rest_tensors(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(module, tensors by name) of all of the model beside the adapted layers."""
        return rest_tensors(self.model, self.layers)

    def trained_tensors(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """`base_tensors` with everything that was merged: a layer's bank is part of it, where there is one."""
        for name, layer in self.layers.items():
            bank = {} if layer.bank is None else {"bank of a": layer.bank[0], "bank of b": layer.bank[1]}
            yield name, stored_tensors(layer.base) | bank

    @torch.no_grad()
    def reinitialise(self, round: int) -> None:
        """Start round `round` with the fresh adapter of (seed, round), see `fresh_adapter`, and train all of it."""
        self.start(fresh_adapter(self.arena.slots, self.seed, round, self.arena.master.device))

    @torch.no_grad()
    def start(self, adapter: Tensor, *, trained: Collection[str] | None = None, trains_a: bool = True) -> None:
        """Start a round with `adapter`, fp32 [P]; what an optimizer kept of the last one is forgotten.

        Args:
            adapter: laid out as the arena; zero for layers that are not trained.
            trained: names of the layers that are, None for all; the others run without their adapters.
            trains_a: False trains `b` alone.
        """
        self.arena.forget_moments()
        self.arena.master.copy_(adapter)
        self.arena.train(trained, trains_a=trains_a)
        self.arena.restore()


def fresh_adapter(
    slots: tuple[Slot, ...], seed: int, round: int, device: torch.device, *, b_size: float = 0.0
) -> Tensor:
    """A fresh adapter, fp32 [P]: `a` Kaiming-uniform, `b` zero unless `b_size` says otherwise.

    `a` is as `starting_a` has it, `b` lies in +-b_size/sqrt(out_features). It is noise of (seed, round), the same on
    every device.
    """
    noise = uniform(derive_seed(seed, round), arena_size(slots), device=device, stream=Stream.INITIALISATION)
    adapter = torch.zeros_like(noise)
    for slot in slots:
        (a, b), (a_noise, b_noise) = (slot.views(rows.unsqueeze(0)) for rows in (adapter, noise))
        a.copy_(starting_a(a_noise))
        if b_size:
            b.copy_(b_noise * (b_size / math.sqrt(max(slot.out_features, 1))))
    return adapter
