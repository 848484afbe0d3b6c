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
        keep_rows(self.cache, index)
        return LiveRows(tuple(self.numbers[place] for place in places), self.cache, self.mask[index])

    def trimmed(self) -> "LiveRows":
        """Without the cells on the left that are padding in every row; layers must keep all tokens."""
        first = int(self.mask.any(dim=0).long().argmax())
        if not first:
            return self
        kept = [(layer.keys[..., first:, :], layer.values[..., first:, :]) for layer in self.cache.layers]
        return LiveRows(self.numbers, DynamicCache(kept), self.mask[:, first:])


def keep_rows(cache: DynamicCache, index: Tensor) -> None:
    """Keep the rows `index` of every layer, each on the device where it lies."""
    for layer in cache.layers:
        keys = getattr(layer, "keys", None)
        layer.batch_select_indices(index if keys is None else index.to(keys.device))


def joined(parts: Sequence[LiveRows]) -> LiveRows:
    """The rows of all `parts` in one; layers must keep all tokens."""
    if len(parts) == 1:
        return parts[0]
    width = max(rows.mask.shape[1] for rows in parts)
    masks = [pad(rows.mask, (width - rows.mask.shape[1], 0)) for rows in parts]
    of_layers = zip(*(rows.cache.layers for rows in parts), strict=True)
    cache = _cache_of([_joined_layer(layers, width) for layers in of_layers])
    numbers = tuple(number for rows in parts for number in rows.numbers)
    return LiveRows(numbers, cache, torch.cat(masks))


def _joined_layer(layers: Sequence[DynamicLayer], width: int) -> "_LayerWithRoom":
    """The rows of all `layers`, padded on the left to `width` cells: each is copied once."""

    def joined_part(parts: list[Tensor]) -> Tensor:
        count, first = sum(len(part) for part in parts), parts[0]
        room = first.new_zeros(count, *first.shape[1:-2], width + _ROOM, first.shape[-1])
        for rows, part in zip(room.split([len(part) for part in parts]), parts, strict=True):
            rows[..., width - part.shape[-2] : width, :] = part
        return room

    return _LayerWithRoom(
        joined_part([layer.keys for layer in layers]), joined_part([layer.values for layer in layers]), width
    )


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
        more = max(map(len, ends)) + _ROOM
        cache = _cache_of([_LayerWithRoom.rows_of(layer, index, more) for layer in beginnings.cache.layers])
        return self._run(tuple(numbers), ends, cache, beginnings.mask[index])

    def step(self, rows: LiveRows, tokens: Sequence[int]) -> tuple[LiveRows, Tensor]:
        """The rows with one token more each, and the logits of what follows."""
        return self._run(rows.numbers, [[token] for token in tokens], _roomy(rows.cache), rows.mask)

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
    """A layer's part of a cache that writes a token where there is room for it.

    Args:
        keys, values: [B, ..., R, D], of which the first `filled` of R cells are taken.
        filled: those cells.
    """

    def __init__(self, keys: Tensor, values: Tensor, filled: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self._put(keys, values, filled)

    @classmethod
    def rows_of(cls, layer: DynamicLayer, indices: Tensor, more: int) -> "_LayerWithRoom":
        """The rows at `indices` of a layer, with room for `more` cells: they are copied once."""
        keys, values = (_with_room(part, indices, more) for part in (layer.keys, layer.values))
        return cls(keys, values, layer.keys.shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        filled = self.keys.shape[-2]
        end = filled + key_states.shape[-2]
        if end > self._rooms[0].shape[-2]:
            more = max(_ROOM, end - filled)
            self._rooms = tuple(pad(part, (0, 0, 0, more)) for part in (self.keys, self.values))
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., filled:end, :] = states
        self._put(*self._rooms, end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        filled = self.keys.shape[-2]
        self._put(*(_with_room(part, indices, _ROOM) for part in (self.keys, self.values)), filled)

    def _put(self, keys: Tensor, values: Tensor, filled: int) -> None:
        self._rooms = keys, values
        self.keys, self.values = (room[..., :filled, :] for room in self._rooms)


def _with_room(part: Tensor, indices: Tensor, more: int) -> Tensor:
    """Rows of `part` [B, ..., P, D] with `more` cells after their own, which hold anything."""
    *middle, cells, size = part.shape[1:]
    room = part.new_empty(len(indices), *middle, cells + more, size)
    torch.index_select(part, 0, indices.to(part.device), out=room[..., :cells, :])
    return room


def _cache_of(layers: list[DynamicLayer]) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = layers
    return cache


def _roomy(cache: DynamicCache) -> DynamicCache:
    """The same keys and values with room for more, where a cache keeps those of all tokens and nothing else."""
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return cache
    return _cache_of([_LayerWithRoom(layer.keys, layer.values, layer.keys.shape[-2]) for layer in cache.layers])


def left_padded(texts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids of B texts and their attention mask, int64 [B, T]."""
    longest = max(map(len, texts))
    padding = [longest - len(text) for text in texts]
    ids = torch.tensor([[pad] * more + list(text) for text, more in zip(texts, padding, strict=True)])
    return ids, torch.tensor([[0] * more + [1] * (longest - more) for more in padding])
