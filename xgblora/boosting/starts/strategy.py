"""The two kinds of strategies: a start is derived from what is known, or measured on the model and recorded."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xgblora.adapters import AdapterSet, Slot

Slots = tuple[Slot, ...]


@dataclass(frozen=True)
class Samples:
    """What a measured start may look at, beside the model.

    Attributes:
        objective: `(model, batch) -> losses`, what training minimises.
        agreed: what a start becomes that several processes measured: the same bits in each.
        batches: the number of rounds before, and how many examples are wanted, to batches of training, in which every
            layer sees the same positions; the same ones every time that it is asked.
    """

    objective: Callable[[nn.Module, Any], Tensor]
    batches: Callable[[int, int], Iterable[Any]]
    agreed: Callable[[Tensor], Tensor] = lambda start: start


@dataclass(frozen=True)
class Derived:
    """A start that follows from the layout, the seed, the round and the boosters before it, and from nothing else.

    A ledger and a tape find it again to the bit.

    Attributes:
        adapter: `(slots, seed, round, earlier, device)` to the adapter, fp32 [P]; `round` is 1 or more, and `earlier`
            holds the adapters of the rounds before it, fp32 [P] each, the first one first.
        starts_at_zero: whether `b` starts at zero; if not, the base takes the negative of the start.
        trains_a: whether `a` is trained; if not, it is not in the first round either.
    """

    adapter: Callable[[Slots, int, int, Sequence[Tensor], torch.device], Tensor]
    starts_at_zero: bool = True
    trains_a: bool = True


@dataclass(frozen=True)
class Measured:
    """A start that is measured on the model when a round begins.

    Nobody can find it again, so it is recorded: the ledger and the tape of a run hold every one. The first round's is
    measured too.

    Attributes:
        measure: `(adapters, samples, round)` to the adapter, fp32 [P]; `round` is 0 for the first. The weights of
            `adapters.model` hold all boosters, its adapters are fresh with `b` zero, and gradients are off. What it
            changes of the model it must put back.
        starts_at_zero, trains_a: as of `Derived`.
        needs_gradient: whether the objective must have a gradient.
    """

    measure: Callable[[AdapterSet, Samples, int], Tensor]
    starts_at_zero: bool = True
    trains_a: bool = True
    needs_gradient: bool = False


def a_of(slot: Slot, adapter: Tensor) -> Tensor:
    """View [rank, in_features] into an adapter [P]."""
    return slot.views(adapter.unsqueeze(0))[0][0]
