"""`warm`: `b` is not zero either, so that both have a gradient from the first step on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xgblora.adapters.adapter_set import fresh_adapter
from xgblora.boosting.starts.strategy import Derived, Slots

# `b` lies in +-WARM_SIZE / sqrt(out_features), beside `a` in +-1 / sqrt(in_features)
WARM_SIZE = 0.1


def warm(slots: Slots, seed: int, round: int, earlier: Sequence[Tensor], device: torch.device) -> Tensor:
    """`a` and `b` fresh."""
    return fresh_adapter(slots, seed, round, device, b_size=WARM_SIZE)


WARM = Derived(warm, starts_at_zero=False)
