"""The rows of a forward that are read, and what all the others can be spared.

A forward over N sequences of T tokens computes N T hidden states, of which the options of a batch need a handful. The
projection to a vocabulary of 50,000 words costs more than a layer of a small model, so only those rows go through it:
a pre-hook on the output embeddings gathers them into one contiguous matrix (a strided three-dimensional slice sent a
bf16 CPU product down a path 28 times slower). And in the last layer the other rows have to give keys and values, and
nothing more: attention, output projection and feed-forward part, 3/4 of its products, run for the rows that are read.
Where a choice among a few tokens is all that is wanted of a row, no other word of the vocabulary is computed.

That needs no knowledge of the architecture. The last layer is called twice: what stands in place of its cache the
first time takes the keys and values and ends the call; the second time it hands them to the rows that are read.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xgblora.scoring.blocks import blocks_of

# of the rows that the last layer computes; with more, taking them out and putting them back costs what it saves
MOST_SPARED = 0.5


@dataclass(frozen=True)
class Rows:
    """Which rows of a forward over N sequences of T tokens are read.

    Attributes:
        rows: int64 [R], among the N * T, in the order in which logits are wanted.
        places: int64 [N, Q], the same rows by sequence, each once; N * T where a sequence has fewer than Q. None: the
            last layer computes all rows.
        tokens: int64 [R, C], whose logits are wanted of each row; None: those of the whole vocabulary.
    """

    rows: Tensor
    places: Tensor | None = None
    tokens: Tensor | None = None


def places_of(columns: Sequence[Sequence[int]], length: int) -> list[list[int]] | None:
    """`Rows.places` of the columns that are read in each of N sequences of `length`; None: they are too many."""
    most = max(map(len, columns))
    if most > MOST_SPARED * length:
        return None
    filler = [len(columns) * length]
    return [
        [number * length + column for column in of_one] + filler * (most - len(of_one))
        for number, of_one in enumerate(columns)
    ]


class OptionRows:
    """Runs a causal language model for some of its rows.

    Args:
        model: a model with output embeddings.

    Attributes:
        layer: the last layer, which computes no other rows; None: it computes all.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self.layer: nn.Module | None = None

    @property
    def _head(self) -> nn.Module:
        """The output embeddings as they are now: an adapter may have come round them, or gone."""
        return self._model.get_output_embeddings()

    @contextmanager
    def only(self, rows: Rows) -> Iterator[None]:
        """Within the block a forward gives the logits of `rows` alone, [1, R, V] or [1, R, C]; no hook stays."""
        head = self._head
        hooks = [head.register_forward_pre_hook(partial(_gather, rows.rows))]
        if rows.tokens is not None:
            words = _Words(rows.tokens)
            hooks.append(head.register_forward_pre_hook(words.before))
            hooks.append(head.register_forward_hook(words.after))
        if self.layer is not None and rows.places is not None:
            turn = _LastLayer(rows.places)
            hooks.append(self.layer.register_forward_pre_hook(turn.before, with_kwargs=True))
            hooks.append(self.layer.register_forward_hook(turn.after))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def knows_words(self) -> bool:
        """Whether the output embeddings are a plain product, so that `Rows.tokens` may be given."""
        head = self._head
        return type(head) is nn.Linear and "forward" not in vars(head)

    def few(self, tokens: Tensor) -> bool:
        """Whether `tokens` may be given, and take less than the whole vocabulary: their rows are copied."""
        return self.knows_words() and 2 * tokens.numel() < self._head.out_features

    def spare(self, model: nn.Module, trial: Callable[[], str | None]) -> str | None:
        """Let the last layer compute rows that are read and no others, if `trial` finds the scores to be right then.

        Args:
            model: the model.
            trial: why the scores are not right; None: they are.

        Returns:
            Why the last layer computes all rows; None: it does not.
        """
        self.layer = last_layer(model)
        if self.layer is None:
            return "the model has no list of layers"
        reason = trial()
        if reason is not None:
            self.layer = None
        return reason


def _gather(rows: Tensor, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    hidden = inputs[0]
    # of a model on several devices the last ones lie elsewhere than its inputs
    return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows.to(hidden.device)).unsqueeze(0), *inputs[1:])


class _Words:
    """One forward of the output embeddings for a few tokens a row: hooks before and after it.

    Args:
        tokens: int64 [R, C], see `Rows`.
    """

    def __init__(self, tokens: Tensor):
        self._tokens = tokens
        self._hidden: Tensor | None = None

    def before(self, head: nn.Linear, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keep the hidden states [1, R, D], and leave the product nothing to do."""
        self._hidden = inputs[0]
        return (inputs[0][:, :0], *inputs[1:])

    def after(self, head: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The logits [1, R, C]."""
        logits = torch.matmul(head.weight[self._tokens], self._hidden[0].unsqueeze(-1)).squeeze(-1)
        if head.bias is not None:
            logits = logits + head.bias[self._tokens]
        return logits.unsqueeze(0)


def last_layer(model: nn.Module) -> nn.Module | None:
    """The last of the layers of `model`, if there is one list of them."""
    return next(reversed(blocks_of(model).values()), None)


class _LastLayer:
    """One forward of the last layer: hooks before and after it.

    Args:
        places: int64 [N, Q], see `Rows`.
    """

    def __init__(self, places: Tensor):
        self._places = places
        self._shape: tuple[int, int] | None = None

    def before(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Take the keys and values of all rows, and give the call the rows that are read."""
        if layer.training and layer.gradient_checkpointing:
            # its forward drops whatever stands in place of a cache
            return None
        hidden, named = _named(layer, args, kwargs)
        states = _States(named.pop("past_key_values", None))
        try:
            layer.forward(hidden, past_key_values=states, **named)
        except _Taken:
            pass
        else:
            raise TypeError("the last layer reads no cache")
        self._shape = hidden.shape[:2]
        queries = self._places % self._shape[1]
        mask = _rows_of_mask(named.pop("attention_mask", None), queries, self._shape[1], states.keys.shape[-2])
        named = {name: _rows_of(value, queries, self._shape) for name, value in named.items()}
        return (_rows_of(hidden, queries, self._shape),), {**named, "attention_mask": mask, "past_key_values": states}

    def after(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Put the rows back where they belong, among zeros that nobody reads."""
        if self._shape is None:
            return None
        filled = output.new_zeros(self._shape.numel() + 1, output.shape[-1])
        filled = filled.index_copy(0, self._places.flatten().to(output.device), output.flatten(0, 1))
        return filled[:-1].view(*self._shape, -1)


class _Taken(Exception):
    """The keys and values of the last layer are there."""


class _States:
    """Stands in place of the last layer's cache: takes the keys and values in the first call, gives them in the second.

    Args:
        cache: the one that stood there, which keeps them too; or None.
    """

    def __init__(self, cache: Any):
        self._cache, self.keys, self.values = cache, None, None

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.keys is not None:
            return self.keys, self.values
        if self._cache is not None:
            keys, values = self._cache.update(keys, values, *args, **kwargs)
        self.keys, self.values = keys, values
        raise _Taken


def _named(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The hidden states that a call of a layer starts with, and all its other arguments by name."""
    signature = inspect.signature(type(layer).forward)
    if "past_key_values" not in signature.parameters:
        raise TypeError("the last layer takes no cache")
    bound = signature.bind(layer, *args, **kwargs).arguments
    gathered = [name for name, kind in signature.parameters.items() if kind.kind is kind.VAR_KEYWORD]
    named = {**bound, **{key: value for name in gathered for key, value in bound.get(name, {}).items()}}
    for name in (*gathered, next(iter(signature.parameters))):
        named.pop(name, None)
    return named.pop(next(iter(named))), named


def _rows_of(value: Any, queries: Tensor, shape: tuple[int, int]) -> Any:
    """Of what has a value for each of N x T (or 1 x T) positions those at `queries` [N, Q]; the rest as it is."""
    if isinstance(value, tuple):
        return tuple(_rows_of(part, queries, shape) for part in value)
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != shape[1]:
        return value
    of_all = value.expand(shape[0], *value.shape[1:])
    index = queries.view(*queries.shape, *[1] * (value.ndim - 2)).expand(*queries.shape, *value.shape[2:])
    return of_all.gather(1, index.to(value.device))


def _rows_of_mask(mask: Tensor | None, queries: Tensor, length: int, keys: int) -> Tensor:
    """[N, 1, Q, K] of a mask [N, 1, T, K], or of the causal one where None stands for it."""
    if mask is None:
        last = queries + (keys - length)
        return (torch.arange(keys, device=queries.device) <= last.unsqueeze(-1)).unsqueeze(1)
    if mask.ndim != 4:
        raise TypeError(f"the last layer takes a mask of {mask.ndim} dimensions, not 4")
    index = queries[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
    return mask.expand(len(queries), -1, -1, -1).gather(2, index.to(mask.device))
