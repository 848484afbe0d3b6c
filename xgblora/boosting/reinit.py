"""How a round starts: which layers it trains, and with what adapter.

A strategy is one small function in `REINITS`: it computes the adapter from the arena's layout, the seed, the number of
the round and the adapters of the rounds before it, and from nothing else, so that a ledger and a tape find it again to
the bit. The first round starts like plain LoRA whatever the strategy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from xgblora.adapters import Slot
from xgblora.adapters.adapter_set import fresh_adapter
from xgblora.errors import InputError
from xgblora.ops.noise import Stream, derive_seed, random_words

# `b` of a warm start lies in +-WARM_SIZE / sqrt(out_features), beside `a` in +-1 / sqrt(in_features)
WARM_SIZE = 0.1

Slots = tuple[Slot, ...]


@dataclass(frozen=True)
class Strategy:
    """A way to start.

    Attributes:
        adapter: `(slots, seed, round, earlier, device)` to the adapter, fp32 [P]; `round` is 1 or more, and `earlier`
            holds the adapters of the rounds before it, fp32 [P] each, the first one first.
        starts_at_zero: whether `b` starts at zero; if not, the base takes the negative of the start.
        trains_a: whether `a` is trained; if not, it is not in the first round either.
    """

    adapter: Callable[[Slots, int, int, Sequence[Tensor], torch.device], Tensor]
    starts_at_zero: bool = True
    trains_a: bool = True


def kaiming(slots: Slots, seed: int, round: int, earlier: Sequence[Tensor], device: torch.device) -> Tensor:
    """`a` fresh, `b` zero."""
    return fresh_adapter(slots, seed, round, device)


def keep_a(slots: Slots, seed: int, round: int, earlier: Sequence[Tensor], device: torch.device) -> Tensor:
    """The `a` that a layer learned last, fresh where it was never trained; `b` zero."""
    adapter = fresh_adapter(slots, seed, round, device)
    for slot in slots:
        learned = next((a for a in map(lambda row: _a(slot, row), reversed(earlier)) if bool(a.any())), None)
        if learned is not None:
            _a(slot, adapter).copy_(learned)
    return adapter


def orthogonal(slots: Slots, seed: int, round: int, earlier: Sequence[Tensor], device: torch.device) -> Tensor:
    """`a` fresh, made orthogonal to those of the layer's earlier boosters, as long as it was drawn; `b` zero.

    Of a layer with K inputs at most K - 1 earlier `a` leave a direction free: after every K of them it starts again
    with none to be orthogonal to. T boosters cost O(T^2 K) a layer.
    """
    adapter = fresh_adapter(slots, seed, round, device)
    for slot in slots:
        rows = [row for booster in earlier for row in _a(slot, booster).double().cpu().numpy()]
        past = [row for row in rows if row.any() and np.isfinite(row).all()]
        a = _a(slot, adapter)
        a.copy_(torch.from_numpy(_orthogonal_to(past[len(past) - len(past) % slot.in_features :], a)))
    return adapter


def warm(slots: Slots, seed: int, round: int, earlier: Sequence[Tensor], device: torch.device) -> Tensor:
    """`a` and `b` fresh, so that both have a gradient from the first step on."""
    return fresh_adapter(slots, seed, round, device, b_size=WARM_SIZE)


REINITS = {
    "kaiming": Strategy(kaiming),
    "keep_a": Strategy(keep_a),
    "orthogonal": Strategy(orthogonal),
    # LoRA-FA (Zhang et al., 2023, arXiv:2308.03303), with another `a` every round
    "frozen_a": Strategy(kaiming, trains_a=False),
    "warm": Strategy(warm, starts_at_zero=False),
}


@dataclass(frozen=True)
class RoundStart:
    """How the rounds of a run start.

    Attributes:
        reinit: one of `REINITS`.
        colsample: share of the layers that a round trains, above 0 and at most 1; which, is drawn for every round
            (XGBoost's colsample_bytree, Chen & Guestrin 2016; XGBLoRA, Zhang et al. 2024, trains random layers too).

    Raises:
        InputError: the strategy is unknown or the share out of range.
    """

    reinit: str = "kaiming"
    colsample: float = 1.0

    def __post_init__(self):
        if self.reinit not in REINITS:
            raise InputError(f"reinit={self.reinit}: must be one of {', '.join(REINITS)}")
        check_share("colsample", self.colsample)

    def __str__(self) -> str:
        return f"{self.reinit} with colsample {self.colsample:g}"

    @property
    def strategy(self) -> Strategy:
        """What `reinit` names."""
        return REINITS[self.reinit]

    def count(self, layers: int) -> int:
        """How many of so many layers a round trains."""
        # of the decimal number that was given: 0.14 * 50 is 7.000000000000001 in fp64
        return math.ceil(Fraction(str(self.colsample)) * layers)

    def layers(self, slots: Slots, seed: int, round: int) -> frozenset[str] | None:
        """Names of the layers that round `round` (0 for the first) trains, noise of (seed, round); None for all."""
        if self.colsample == 1.0:
            return None
        words = random_words(derive_seed(seed, round), len(slots), Stream.LAYERS, device=torch.device("cpu"))
        drawn = sorted(zip(words.tolist(), slots, strict=True), key=lambda pair: pair[0])[: self.count(len(slots))]
        return frozenset(slot.name for _, slot in drawn)

    def takes_from_base(self, round: int) -> bool:
        """Whether the base takes the negative of the adapter that round `round` (0 for the first) starts with."""
        return round > 0 and not self.strategy.starts_at_zero

    def adapter(
        self, slots: Slots, seed: int, round: int, earlier: Sequence[Tensor], device: torch.device | str = "cpu"
    ) -> Tensor:
        """The adapter that round `round` (0 for the first) starts with, fp32 [P], zero in layers not trained."""
        start = self.strategy.adapter if round else kaiming
        adapter = start(slots, seed, round, earlier, torch.device(device))
        trained = self.layers(slots, seed, round)
        for slot in slots:
            if trained is not None and slot.name not in trained:
                for part in slot.views(adapter.unsqueeze(0)):
                    part.zero_()
        return adapter


def check_share(name: str, value: float) -> None:
    """Raise InputError, by the `name` of the flag or argument, unless `value` is above 0 and at most 1."""
    if not 0.0 < value <= 1.0:
        raise InputError(f"{name}={value}: must be above 0 and at most 1")


def _a(slot: Slot, adapter: Tensor) -> Tensor:
    """View [rank, in_features] into an adapter [P]."""
    return slot.views(adapter.unsqueeze(0))[0][0]


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
