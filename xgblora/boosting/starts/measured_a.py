"""From directions that were measured to the adapter that a round starts with."""

from collections.abc import Mapping

import torch
from torch import Tensor

from xgblora.adapters import AdapterSet
from xgblora.adapters.adapter_set import fresh_adapter
from xgblora.boosting.starts.strategy import a_of

# positions by which the length of `a` is judged: of a forward, and of all
POSITIONS = 64
MOST_POSITIONS = 256


def some_of(x: Tensor, there: Tensor | None) -> Tensor:
    """About `POSITIONS` of the rows of `x` [M, K] that are `there`, evenly spread."""
    numbers = torch.arange(len(x), device=x.device) if there is None else there.to(x.device).nonzero().squeeze(1)
    return x[numbers[:: -(-len(numbers) // POSITIONS) or 1]]


def by_layer(of_readers: Mapping[tuple[str, ...], Tensor]) -> dict[str, Tensor]:
    """What was found for the readers of each input, by the name of every one of them."""
    return {name: found for layers, found in of_readers.items() for name in layers}


def adapter_of(
    adapters: AdapterSet, round: int, directions: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> Tensor:
    """The adapter, fp32 [P], whose `a` point where `directions` say, and whose `b` are zero.

    Over a layer's inputs the mean of `(x . a)^2` is what it is on average for a fresh `a`, so that learning rates mean
    the same. Without a direction a layer starts fresh, or what is left of its rank. The numbers of a measured `a`
    are those that bf16 has: they will be recorded, and a direction needs no more.

    Args:
        directions: fp64 [rank, K] on the host, by layer, or fewer rows.
        inputs: [m, K] on the host, by layer.
    """
    adapter = fresh_adapter(adapters.arena.slots, adapters.seed, round, adapters.arena.master.device)
    for slot in adapters.arena.slots:
        if slot.name in directions:
            a, x = directions[slot.name], inputs[slot.name].double()
            # the variance of a uniform number in +-1/sqrt(K) is 1 / 3K
            wanted = x.square().sum(dim=1).mean() / (3 * slot.in_features)
            length = (wanted / (x @ a.T).square().mean(dim=0)).sqrt()
            place = a_of(slot, adapter)[: len(a)]
            scaled = (a * length.unsqueeze(1)).to(torch.bfloat16).to(place)
            place.copy_(torch.where(length.isfinite().unsqueeze(1).to(place.device), scaled, place))
    return adapter
