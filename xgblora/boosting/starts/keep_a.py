"""`keep_a`: go on along the `a` that was learned."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xgblora.adapters.adapter_set import fresh_adapter
from xgblora.boosting.starts.strategy import Derived, Slots, a_of


def keep_a(slots: Slots, seed: int, round: int, earlier: Sequence[Tensor], device: torch.device) -> Tensor:
    """The `a` that a layer learned last, fresh where it was never trained; `b` zero."""
    adapter = fresh_adapter(slots, seed, round, device)
    for slot in slots:
        learned = next((a for a in map(lambda row: a_of(slot, row), reversed(earlier)) if bool(a.any())), None)
        if learned is not None:
            a_of(slot, adapter).copy_(learned)
    return adapter


KEEP_A = Derived(keep_a)
