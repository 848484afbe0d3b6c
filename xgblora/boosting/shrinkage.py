"""Shrinkage: a booster is merged at a share of its adapter's scale, as XGBoost's eta (Chen & Guestrin, 2016)."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from xgblora.adapters import AdapterSet
from xgblora.errors import InputError

logger = logging.getLogger("xgblora")

LINE_SEARCH = "line_search"
# what a line search tries
FACTORS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Shrinkage:
    """How much of an adapter is merged.

    Attributes:
        factor: above 0 and at most 1; None for that of `FACTORS` with the lowest held-out loss.
    """

    factor: float | None = 1.0

    @classmethod
    def from_flag(cls, name: str, value: str | float) -> "Shrinkage":
        """A number, or "line_search".

        Raises:
            InputError: by the `name` of the flag, it is neither or out of range.
        """
        if value == LINE_SEARCH:
            return cls(None)
        try:
            factor = float(value)
        except ValueError:
            factor = math.nan
        if not 0.0 < factor <= 1.0:
            raise InputError(f"{name}={value}: must be a number above 0 and at most 1, or {LINE_SEARCH}")
        return cls(factor)

    def __str__(self) -> str:
        if self.factor is None:
            return f"line search over {', '.join(map(str, FACTORS))} by held-out loss"
        return f"{self.factor:g}"

    def choose(self, adapters: AdapterSet, held_out_loss: Callable[[], float]) -> tuple[float, float | None]:
        """The factor for a merge of `adapters` as they are now, and the held-out loss with it if it was measured.

        A factor other than 1 is logged: such a merge changes the function of the model.
        """
        factor, loss = self.factor, None
        if factor is None:
            losses = losses_by_factor(adapters, held_out_loss)
            known = {factor: loss for factor, loss in losses.items() if math.isfinite(loss)}
            # with nothing to go by, what was trained stays as it is
            factor = min(known, key=known.get) if known else 1.0
            loss = losses[factor]
            tried = ", ".join(f"{factor:g}: {loss:.4f}" for factor, loss in losses.items())
            logger.info("XGBLoRA: Held-out loss by shrinkage: %s", tried)
        if factor != 1.0:
            scales = f"scale {factor * adapters.scale:g} instead of {adapters.scale:g}"
            logger.info("XGBLoRA: Shrinkage %g: merging at %s, which changes the model's function", factor, scales)
        return factor, loss


@torch.no_grad()
def losses_by_factor(adapters: AdapterSet, held_out_loss: Callable[[], float]) -> dict[float, float]:
    """The held-out loss with `b` multiplied by each of `FACTORS`; afterwards the adapters are what they were."""
    arena, losses = adapters.arena, {}
    trained = arena.master.clone()
    try:
        for factor in FACTORS:
            for slot in arena.slots:
                arena.a_and_b(slot)[1].mul_(factor)
            arena.restore()
            losses[factor] = held_out_loss()
            arena.master.copy_(trained)
    finally:
        arena.master.copy_(trained)
        arena.restore()
    return losses
