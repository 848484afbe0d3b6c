"""`RoundStart`: how the rounds of a run start: which layers a round trains, and with what adapter.

The first round starts like plain LoRA, unless starts are measured: then as measured, and plain LoRA may start so too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from xgblora.adapters import AdapterSet
from xgblora.boosting.starts.kaiming import kaiming
from xgblora.boosting.starts.registry import REINITS
from xgblora.boosting.starts.strategy import Derived, Measured, Samples, Slots
from xgblora.errors import InputError
from xgblora.ops.noise import Stream, derive_seed, random_words


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
    def strategy(self) -> Derived | Measured:
        """What `reinit` names."""
        return REINITS[self.reinit]

    @property
    def measures(self) -> bool:
        """Whether starts are measured, and have to be recorded."""
        return isinstance(self.strategy, Measured)

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
        return (round > 0 or self.measures) and not self.strategy.starts_at_zero

    def adapter(
        self, slots: Slots, seed: int, round: int, earlier: Sequence[Tensor], device: torch.device | str = "cpu"
    ) -> Tensor:
        """The adapter that round `round` (0 for the first) starts with, fp32 [P], zero in layers not trained.

        Where starts are measured it is that of a round that was not measured yet: fresh.
        """
        strategy = self.strategy
        start = strategy.adapter if round and isinstance(strategy, Derived) else kaiming
        return self._in_trained_layers(start(slots, seed, round, earlier, torch.device(device)), slots, seed, round)

    def measure(self, adapters: AdapterSet, samples: Samples, round: int) -> Tensor:
        """The measured adapter that round `round` (0 for the first) starts with, fp32 [P], zero in layers not trained.

        Args:
            adapters: fresh, over weights that hold all boosters.
            samples: what the strategy may look at.

        Raises:
            InputError: the strategy gave something that is no start.
        """
        arena, strategy = adapters.arena, self.strategy
        adapter = strategy.measure(adapters, samples, round)
        if adapter.shape != arena.master.shape or adapter.dtype != torch.float32 or not adapter.isfinite().all():
            raise InputError(f"reinit={self.reinit}: a start must be finite fp32 {tuple(arena.master.shape)}")
        if strategy.starts_at_zero and any(slot.views(adapter.unsqueeze(0))[1].any() for slot in arena.slots):
            raise InputError(f"reinit={self.reinit}: says that b starts at zero, and gave one that does not")
        return self._in_trained_layers(adapter, arena.slots, adapters.seed, round)

    def _in_trained_layers(self, adapter: Tensor, slots: Slots, seed: int, round: int) -> Tensor:
        """`adapter` with zeros wherever there is no adapter that round `round` trains."""
        trained = self.layers(slots, seed, round)
        kept = torch.zeros_like(adapter)
        for slot in slots:
            if trained is None or slot.name in trained:
                for place, part in zip(*(slot.views(row.unsqueeze(0)) for row in (kept, adapter)), strict=True):
                    place.copy_(part)
        return kept


def check_share(name: str, value: float) -> None:
    """Raise InputError, by the `name` of the flag or argument, unless `value` is above 0 and at most 1."""
    if not 0.0 < value <= 1.0:
        raise InputError(f"{name}={value}: must be above 0 and at most 1")
