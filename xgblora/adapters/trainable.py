"""What a zeroth-order run can train: the interface that `AdapterSet` and `FullParameters` share, in one place.

`ZeroOrder`, `ArenaOptimizer`, the tape, checkpoints and the trainer ask for nothing else, so that what is trained is
chosen once, where the object is made.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xgblora.adapters.origin import Origin


class TrainableArena(Protocol):
    """The storage of what is trained.

    Attributes:
        master: fp32 [P], what the optimizer moves; perturbing never writes it, so that restoring is exact.
        live: [G, P] in the compute dtype, what the model computes with; None before `allocate_live`.
        moments: what an optimizer keeps, by name.
        slots: dataclasses that say what lies where.
        stacks: whether the model can read several rows in one forward, each with its share of the batch.
    """

    master: Tensor
    live: Tensor | None
    moments: dict[str, Tensor]
    slots: tuple[Any, ...]
    stacks: bool

    def allocate_live(self, groups: int, dtype: torch.dtype) -> Tensor:
        """Make room for steps of `groups` forwards; every row of `live` is then the cast of `master`."""

    def perturb(self, seeds: Tensor, eps: Tensor, signs: Tensor, distribution: str) -> None:
        """Let row g be `master + signs[g] * eps * z(its seed)` until `restore`; arguments as of `ops.perturb`."""

    def read_live(self, start: int, stop: int) -> None:
        """Let the model compute with rows `start .. stop - 1`, one group of its input rows each."""

    def while_unchanged(self) -> AbstractContextManager[None]:
        """While this lasts, what the model computes with stays as it is: layers may compute for one another."""

    def read_one_row(self) -> None:
        """Let the model take its input as one group; which row it computes with matters only after `restore`."""

    def restore(self) -> None:
        """Let every row be the cast of `master` again."""

    def kept(self) -> AbstractContextManager[None]:
        """While this lasts, `master` and the moments may be written anywhere; what is not trained comes back after."""

    def forget_moments(self) -> None:
        """Set the moments to zero, in place."""


class Trainable(Protocol):
    """What is trained of a model.

    Attributes:
        model: the model.
        arena: the storage of what is trained.
        layers: the adapted layers by name; empty where the model's own parameters are trained.
        alpha, rank: of the adapters; 0 where there are none.
        seed: of the initialisation.
        known_rest: the digest of `rest_tensors`, where it is known already.
        labels: of a classification head; None where there is none.
        compute_dtype: in which activations run, and `live` is kept.
    """

    model: nn.Module
    arena: TrainableArena
    layers: dict[str, nn.Module]
    alpha: float
    rank: int
    seed: int
    known_rest: str | None
    labels: tuple[str, ...] | None
    compute_dtype: torch.dtype

    @property
    def origin(self) -> Origin:
        """Which base model this is, adapted how: as it was when `identify` was called last, or this asked first."""

    def identify(self) -> Origin:
        """Take the model as it is now for the base that `origin` says; to be called before it is trained."""

    def first_block(self, *, in_use: bool = True) -> str:
        """The name of the model's first block that holds an adapter (`in_use`: one that is read); "" if none is known.

        The blocks before it give the same whatever row of `live` is read.
        """

    def num_parameters(self) -> int:
        """Trainable numbers."""

    def weights(self) -> list[Tensor]:
        """The frozen weights that merges write into."""

    def base_tensors(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """(name, tensors by name) of all that the fingerprint of the base is over."""

    def rest_tensors(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """(name, tensors by name) of all of the model that `base_tensors` leaves out."""

    def trained_tensors(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """(name, tensors by name) of all that the digest of the trained weights is over."""
