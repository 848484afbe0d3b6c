"""Counting the memory of a computation by its tensors: what it makes, while it is alive."""

import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class TensorBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while this is in force, until they are freed.

    What an operation uses inside itself (the scratch space of a matrix product) is not seen, nor are tensors that were
    there before.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at once.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        # a view, or an argument written in place
        given = {_storage(value)._cdata for value in tree_iter((arguments, keywords)) if isinstance(value, Tensor)}
        for value in tree_iter(result):
            if isinstance(value, Tensor) and _storage(value)._cdata not in given | self._alive:
                self._add(_storage(value))
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
