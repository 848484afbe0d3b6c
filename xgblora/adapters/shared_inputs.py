"""Adapted layers that read the same input: one launch makes `x . a` for all of them, and x is read once.

Query, key and value projections of an attention block are called one after the other with the very same tensor. Which
layers do so is observed, not guessed from names: those that followed the first reader of an input the last time are
expected to follow it again, and the first makes their dots with its own. A layer takes what was made for it only if

- it is called with the same tensor object, in the same place and unchanged by torch's own count of writes, and on the
  same stream;
- its adapter is the one that was read, unchanged by the same count;

and makes its own otherwise. The count is the one by which autograd judges what it saved, with the same blind spot:
writes through `.data`, or by a kernel that torch knows nothing of, between two projections of one x. Nothing is kept
past `while_unchanged`, and x is never kept.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from xgblora.ops.row_dots import reads_dots, row_dots


class Reader(Protocol):
    """A layer that reads inputs, known by its identity; `Rank1Linear` is one.

    Attributes:
        live: the pair of tensors ([G, rank, K], [G, rank, N]) that it computes with; None for its own parameters.
        active: whether it computes with them at all.
    """

    live: tuple[Tensor, Tensor] | None
    active: bool


@dataclass(frozen=True)
class _Dots:
    """What was made for one layer: `t` [M] of the adapter `a`, as it was when it had been written `version` times."""

    a: Tensor
    version: int
    t: Tensor


@dataclass(frozen=True)
class _Read:
    """One input, as its first reader found it.

    Attributes:
        x: the input; weak, so that it may go as soon as the model lets it.
        state: see `_state_of`.
        readers: the layers that read it so far, in order.
        made: the dots made by the first of them.
    """

    x: weakref.ref[Tensor]
    state: tuple[int, int, int]
    readers: list[Reader]
    made: dict[Reader, _Dots]


class SharedInputs:
    """Which layers of a model read the same input, and the dots that are under way from the first to the others.

    A read is replaced whole and never changed but for its list of readers, so threads that run the same layers at most
    lose the sharing.
    """

    def __init__(self):
        # by the first reader of an input: all that read it the last time
        self._readers: dict[Reader, list[Reader]] = {}
        self._last: _Read | None = None
        self._shares = False

    @contextmanager
    def while_unchanged(self) -> Iterator[None]:
        """Share while this lasts; only what torch counts may write adapters or inputs meanwhile."""
        self._shares, self._last = True, None
        try:
            yield
        finally:
            self._shares, self._last = False, None

    def dots_for(self, layer: Reader, x: Tensor, weight: Tensor) -> Tensor | None:
        """The dots [M] of the rows of `x` with the live adapter of `layer`, or None: the layer makes them itself.

        `weight` [N, K] is that of the layer, which has it at hand: to ask for it again took a fifth of the time here.
        """
        if not self._shares or layer.live is None or not _may_be_shared(x, weight):
            return None
        read, state = self._last, _state_of(x)
        if read is None or read.x() is not x or read.state != state:
            made = _made_for(self._readers.get(layer, []), x)
            read = _Read(weakref.ref(x), state, [layer], made)
            self._last, self._readers[layer] = read, read.readers
        elif layer not in read.readers:
            read.readers.append(layer)
        dots = read.made.get(layer)
        return dots.t if dots is not None and (dots.a is layer.live[0] and dots.version == dots.a._version) else None


def _may_be_shared(x: Tensor, weight: Tensor) -> bool:
    """Whether sharing can be right, and pays.

    Under autograd each layer saves what it needs itself; autocast computes with another x; tensors of inference mode do
    not count their writes; tensors of other kinds may stand for several.
    """
    return (
        type(x) is Tensor
        and not torch.is_grad_enabled()
        and not x.is_inference()
        and reads_dots(x, weight)
        # after `reads_dots`: on tensors without storage the question is an error
        and not torch.is_autocast_enabled(x.device.type)
    )


def _state_of(x: Tensor) -> tuple[int, int, int]:
    """How often `x` was written, where it lies, and the stream: dots made on another one may not be there yet."""
    return x._version, x.data_ptr(), torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


def _made_for(layers: list[Reader], x: Tensor) -> dict[Reader, _Dots]:
    """The dots of `x` for the adapters of `layers`, in one launch; none for a layer that reads alone."""
    adapters = {layer: layer.live[0] for layer in layers if layer.live is not None and layer.active}
    if len(adapters) < 2 or len({(a.shape, a.device) for a in adapters.values()}) > 1:
        return {}
    made = row_dots(x, [a[:, 0] for a in adapters.values()])
    return {layer: _Dots(a, a._version, t) for (layer, a), t in zip(adapters.items(), made.unbind(), strict=True)}
