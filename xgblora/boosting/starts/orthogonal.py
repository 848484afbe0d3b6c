"""`orthogonal`: no direction is looked in twice."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xgblora.adapters.adapter_set import fresh_adapter
from xgblora.boosting.starts.strategy import Derived, Slots, a_of


def orthogonal(slots: Slots, seed: int, round: int, earlier: Sequence[Tensor], device: torch.device) -> Tensor:
    """`a` fresh, made orthogonal to those of the layer's earlier boosters, as long as it was drawn; `b` zero.

    Of a layer with K inputs at most K - 1 earlier `a` leave a direction free: after every K of them it starts again
    with none to be orthogonal to. T boosters cost O(T^2 K) a layer.
    """
    adapter = fresh_adapter(slots, seed, round, device)
    for slot in slots:
        rows = [row for booster in earlier for row in a_of(slot, booster).double().cpu().numpy()]
        past = [row for row in rows if row.any() and np.isfinite(row).all()]
        a = a_of(slot, adapter)
        a.copy_(torch.from_numpy(_orthogonal_to(past[len(past) - len(past) % slot.in_features :], a)))
    return adapter


ORTHOGONAL = Derived(orthogonal)


def _orthogonal_to(past: list[np.ndarray], a: Tensor) -> np.ndarray:
    """The rows of `a` [r, K] without what lies in the span of `past` and of each other, as long as before, fp64.

    Gram-Schmidt, twice, which is enough (Giraud et al., 2005). Sums have a fixed order and nothing is left to a BLAS,
    so that the bits are the same on every machine. A row of which nothing would be left stays as it is.
    """
    fresh = a.double().cpu().numpy().copy()
    basis = np.empty((0, fresh.shape[1]))
    for number, row in enumerate([*past, *fresh]):
        rest = row
        for _ in range(2):
            shares = _sum(basis * rest)
            rest = rest - _sum((shares[:, None] * basis).T)
        length, left = (np.sqrt(_sum(values * values)) for values in (row, rest))
        if left <= 1e-6 * length:
            continue
        basis = np.vstack((basis, rest / left))
        if number >= len(past):
            fresh[number - len(past)] = rest / left * length
    return fresh


def _sum(values: np.ndarray) -> np.ndarray:
    """Sum over the last dimension, by halves: elementwise additions alone."""
    if values.shape[-1] == 0:
        return np.zeros(values.shape[:-1])
    while (count := values.shape[-1]) > 1:
        pairs, middle = count // 2, count - count // 2
        sums = values[..., :pairs] + values[..., middle:]
        values = np.concatenate((sums, values[..., pairs:middle]), axis=-1)
    return values[..., 0]
