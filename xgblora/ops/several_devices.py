"""Merges into weights that lie on several devices: one launch a device."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from xgblora.ops.eager import eager

# gives of a list with an entry a weight those of one launch
Share = Callable[[Sequence], list]


def launches(operation: str, weights: Sequence[Tensor], rounding: str) -> Iterator[tuple[Callable, Share]]:
    """What merges into `weights`, and which of them it takes: all at once where they lie on one device.

    Random numbers of stochastic rounding are numbered through all weights, so that a launch of some would draw others;
    on several devices the eager reference merges them all, one after the other.
    """
    parts: dict[torch.device, list[int]] = {}
    for number, weight in enumerate(weights):
        parts.setdefault(weight.device, []).append(number)
    if len(parts) > 1 and rounding == "stochastic":
        yield eager(operation), list
        return
    for numbers in parts.values():
        yield getattr(torch.ops.xgblora, operation), list if len(parts) == 1 else _picked(numbers)


def _picked(numbers: list[int]) -> Share:
    def pick(of_weights: Sequence) -> list:
        return [of_weights[number] for number in numbers] if of_weights else []

    return pick
