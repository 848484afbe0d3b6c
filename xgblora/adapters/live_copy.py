"""`LiveCopy`: what the layers on one further device read of the arena, where a model lies on several.

The arena lies on the device of its first layer and is the one truth: noise is addressed by position in it, and update,
moments, records and digests are those of a model on one device, bit for bit. The layers elsewhere read copies of their
part of `live`. What is copied is what was written, so that no device makes noise of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor


class LiveCopy:
    """Rows of `live` on one device, as far as layers there read them.

    Args:
        device: where those layers lie.
        numbers: their places among the layers of the arena.
        slots: theirs, in order.
        layers: themselves.
        stop: where the arena's part of them ends.

    Attributes:
        device: as given.
        rows: [G, S], columns `slots[0].a_start .. stop - 1` of `live`; None before the first `write`.
    """

    def __init__(
        self, device: torch.device, numbers: Sequence[int], slots: Sequence[Any], layers: Sequence[Any], stop: int
    ):
        start = slots[0].a_start
        self.device, self.rows = device, None
        self._numbers, self._layers, self._part = numbers, layers, slice(start, stop)
        self._slots = [replace(slot, a_start=slot.a_start - start, b_start=slot.b_start - start) for slot in slots]

    def write(self, live: Tensor) -> None:
        """Take over what `live` [G, P] holds, in place as long as its rows are as many and of the same dtype."""
        part = live[:, self._part]
        if self.rows is None or (self.rows.shape, self.rows.dtype) != (part.shape, part.dtype):
            self.rows = torch.empty(part.shape, dtype=part.dtype, device=self.device)
        self.rows.copy_(part)

    def views(self, start: int, stop: int) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Of each layer its place in the arena, and its views of rows `start .. stop - 1`."""
        rows = self.rows[start:stop]
        return ((number, slot.views(rows)) for number, slot in zip(self._numbers, self._slots, strict=True))

    def assign_groups(self, group_of_row: Tensor) -> None:
        """Give the layers `group_of_row` on their own device."""
        moved = group_of_row.to(self.device)
        for layer in self._layers:
            layer.group_of_row = moved
