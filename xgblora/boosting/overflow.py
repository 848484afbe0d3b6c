"""Merges that pass the range of a weight's dtype: fp16 ends at 65,504, and what is beyond becomes infinite."""

import math

import torch

from xgblora.adapters import AdapterSet
from xgblora.boosting.terms import Fade, NoiseTerm, Term
from xgblora.errors import InputError
from xgblora.spelling import dtype_name


class MergeOverflow(InputError):
    """A merge would make a weight infinite. It was not made: weights, adapter and ledger are as they were."""


class Reach:
    """How far from zero weights are at most, kept from merge to merge, so that a merge need not look at all of them.

    A term says how far it moves a weight at most, and the sum is rounded: that bounds the weights after it. They are
    looked at where nothing is known of them, and where the bound comes to the end of their dtype; from then on it is
    what they are.

    Args:
        adapters: those whose weights are merged into.
    """

    def __init__(self, adapters: AdapterSet):
        self._adapters = adapters
        self._most = math.nan

    def add(self, term: Term | NoiseTerm | Fade) -> None:
        """`term` is written into the weights."""
        if math.isnan(self._most):
            return
        # two roundings are those of fp32; the last is to a neighbour of the sum in the weights' dtype
        rounding = 1.0 + 2.0 * max(torch.finfo(weight.dtype).eps for weight in self._adapters.weights())
        for _ in range(self._adapters.rank):
            self._most = (self._most + term.reach) * rounding

    def forget(self) -> None:
        """The weights were set to others."""
        self._most = math.nan

    def refuse_overflow(self, what: str) -> None:
        """Raise MergeOverflow if a weight that merges write into is not finite; the message begins with `what`."""
        weights = self._adapters.weights()
        if not weights or self._most < min(torch.finfo(weight.dtype).max for weight in weights):
            return
        # one pass over each, without a copy, and one wait for the device
        device = weights[0].device
        ends = torch.stack([torch.stack(one.aminmax()).abs().max().double().to(device) for one in weights]).tolist()
        if all(map(math.isfinite, ends)):
            self._most = max(ends)
            return
        self._most = math.nan
        matrices = [
            (name, one) for name, layer in self._adapters.layers.items() if layer.mergeable for one in layer.matrices
        ]
        name, matrix = next(named for named, end in zip(matrices, ends, strict=True) if not math.isfinite(end))
        dtype = matrix.dtype
        raise MergeOverflow(
            f"{what}: the weight of {name} would pass the range of {dtype_name(dtype)}, which ends at "
            f"{torch.finfo(dtype).max:g}; load the model in another dtype (--dtype bfloat16)"
        )
