"""`kaiming`: `a` fresh, `b` zero, as LoRA starts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xgblora.adapters.adapter_set import fresh_adapter
from xgblora.boosting.starts.strategy import Derived, Slots


def kaiming(slots: Slots, seed: int, round: int, earlier: Sequence[Tensor], device: torch.device) -> Tensor:
    """The fresh adapter of (seed, round)."""
    return fresh_adapter(slots, seed, round, device)


KAIMING = Derived(kaiming)
