"""Rows that are being written: prompts with the keys and values of their tokens, which a model goes on with.

Prompts are padded on the left. Those that begin alike may be given the keys and values of their beginning, so that in
the cache there is padding between it and the rest; the mask and the positions, which are given too, step over it. Rows
may leave, and rows of other widths may join them.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from xgblora.scoring.option_rows import OptionRows, Rows, last_layer

# what stands in padding changes nothing
_FILLER = 0
# tokens that a cache has room for when it is copied: transformers' copies all that it holds for each
_ROOM = 16


@dataclass(frozen=True)
class LiveRows:
    """B rows of P cells each.

    Attributes:
        numbers: of the prompts, B of them.
        cache: keys and values of the cells, of every layer. A row's own step and its leaving write in it.
        mask: int64 [B, P], 0 where a cell holds padding.
    """

    numbers: tuple[int, ...]
    cache: DynamicCache
    mask: Tensor

    def only(self, places: Sequence[int]) -> "LiveRows":
        """The rows at `places`; the others are gone."""
        index = torch.tensor(places, device=self.mask.device)
        self.cache.batch_select_indices(index)
        return LiveRows(tuple(self.numbers[place] for place in places), self.cache, self.mask[index])

    def trimmed(self) -> "LiveRows":
        """Without the cells on the left that are padding in every row; layers must keep all tokens."""
        first = int(self.mask.any(dim=0).long().argmax())
        if not first:
            return self
        kept = [(layer.keys[..., first:, :], layer.values[..., first:, :]) for layer in self.cache.layers]
        return LiveRows(self.numbers, DynamicCache(kept), self.mask[:, first:])

    def _as_wide_as(self, width: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Keys and values of every layer, and the mask, with more padding on the left."""
        more = width - self.mask.shape[1]
        cells = [(layer.keys, layer.values) for layer in self.cache.layers]
        if more:
            cells = [tuple(pad(part, (0, 0, more, 0)) for part in parts) for parts in cells]
        return cells, pad(self.mask, (more, 0))


def joined(parts: Sequence[LiveRows]) -> LiveRows:
    """The rows of all `parts` in one; layers must keep all tokens."""
    if len(parts) == 1:
        return parts[0]
    width = max(rows.mask.shape[1] for rows in parts)
    cells, masks = zip(*(rows._as_wide_as(width) for rows in parts), strict=True)
    layers = [
        tuple(torch.cat(of_parts) for of_parts in zip(*of_layer, strict=True)) for of_layer in zip(*cells, strict=True)
    ]
    numbers = tuple(number for rows in parts for number in rows.numbers)
    return LiveRows(numbers, DynamicCache(layers), torch.cat(masks))


class Writer:
    """Runs a causal language model over prompts, and token by token after them.

    Args:
        model: in eval mode.
        spares: whether the last layer computes no more rows of a prompt than are read.
    """

    def __init__(self, model: nn.Module, *, spares: bool):
        self._model, self._rows = model, OptionRows(model)
        self._rows.layer = last_layer(model) if spares else None
        self._device = next(model.parameters()).device
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def begin(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> tuple[LiveRows, Tensor]:
        """The rows of some prompts, and fp32 [B, V], the logits of what follows each."""
        nothing = torch.zeros(len(prompts), 0, dtype=torch.long, device=self._device)
        return self._run(tuple(numbers), prompts, DynamicCache(config=self._model.config), nothing)

    def begin_after(
        self, beginnings: LiveRows, which: Sequence[int], ends: Sequence[Sequence[int]], numbers: Sequence[int]
    ) -> tuple[LiveRows, Tensor]:
        """As `begin`, of prompts of which the beginnings were run: prompt i is row `which[i]` of them and `ends[i]`."""
        index = torch.tensor(which, device=self._device)
        cache = DynamicCache([(layer.keys[index], layer.values[index]) for layer in beginnings.cache.layers])
        return self._run(tuple(numbers), ends, cache, beginnings.mask[index])

    def step(self, rows: LiveRows, tokens: Sequence[int]) -> tuple[LiveRows, Tensor]:
        """The rows with one token more each, and the logits of what follows."""
        return self._run(rows.numbers, [[token] for token in tokens], _with_room(rows.cache), rows.mask)

    def _run(
        self, numbers: tuple[int, ...], texts: Sequence[Sequence[int]], cache: DynamicCache, before: Tensor
    ) -> tuple[LiveRows, Tensor]:
        ids, there = left_padded(texts, _FILLER)
        count, length = ids.shape
        mask = torch.cat([before, there.to(self._device)], dim=1)
        arguments = {"input_ids": ids.to(self._device), "attention_mask": mask}
        if self._takes_positions:
            arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_(min=0)[:, -length:]
        # what is padded on the left ends in the last column
        last = torch.arange(1, count + 1, device=self._device).unsqueeze(1) * length - 1
        with self._rows.only(Rows(last[:, 0], last if length > 1 else None)):
            logits = self._model(**arguments, past_key_values=cache, use_cache=True).logits
        return LiveRows(numbers, cache, mask), logits[0].float()


class _LayerWithRoom(DynamicLayer):
    """A layer's part of a cache that writes a token where there is room for it."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        filled = self.keys.shape[-2]
        end = filled + key_states.shape[-2]
        if self._rooms is None or end > self._rooms[0].shape[-2]:
            more = max(_ROOM, end - filled)
            self._rooms = tuple(pad(part, (0, 0, 0, more)) for part in (self.keys, self.values))
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., filled:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._rooms = None


def _with_room(cache: DynamicCache) -> DynamicCache:
    """The same keys and values with room for more, where a cache keeps those of all tokens and nothing else."""
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return cache
    roomy = DynamicCache()
    roomy.layers = [_LayerWithRoom(layer.keys, layer.values) for layer in cache.layers]
    return roomy


def left_padded(texts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids of B texts and their attention mask, int64 [B, T]."""
    longest = max(map(len, texts))
    padding = [longest - len(text) for text in texts]
    ids = torch.tensor([[pad] * more + list(text) for text, more in zip(texts, padding, strict=True)])
    return ids, torch.tensor([[0] * more + [1] * (longest - more) for more in padding])
