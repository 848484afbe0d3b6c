"""`Booster`: merge the trained adapter into the base weights, record it, start the next."""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from xgblora import ops
from xgblora.adapters import AdapterSet
from xgblora.boosting.ledger import Ledger, MergedAdapter
from xgblora.errors import InputError
from xgblora.ops.merge_rank1 import ROUNDINGS, new_remainders
from xgblora.ops.noise import derive_seed

logger = logging.getLogger("xgblora")

REINITS = ("kaiming",)


class Booster:
    """Boosting rounds over the adapters of a model (XGBLoRA, Zhang et al., 2024).

    Args:
        adapters: rank-1 adapters, from `xgblora.attach`.
        rounding: "remainder" (exact; 16-bit weights carry an int16 plane), "stochastic" or "nearest".
        reinit: how a round's adapter starts: "kaiming", `a` fresh and `b` zero.

    Attributes:
        ledger: all boosters merged so far.

    The first merge keeps a copy of the adapted base weights on the host, from which `rollback` starts again.

    Raises:
        InputError: the rank is not 1, or rounding or reinit is unknown.
    """

    def __init__(self, adapters: AdapterSet, *, rounding: str = "remainder", reinit: str = "kaiming"):
        if adapters.rank != 1:
            raise InputError(f"lora_r={adapters.rank}: boosting merges rank-1 adapters, attach with rank=1")
        if rounding not in ROUNDINGS:
            raise InputError(f"rounding={rounding}: must be one of {', '.join(ROUNDINGS)}")
        if reinit not in REINITS:
            raise InputError(f"reinit={reinit}: must be one of {', '.join(REINITS)}")
        self.adapters, self.rounding, self.reinit = adapters, rounding, reinit
        self.ledger = Ledger(adapters.arena.slots, adapters.scale, rounding, adapters.seed)
        self._base: list[Tensor] | None = None
        self._remainders: list[Tensor] | None = None
        if rounding == "nearest" and adapters.compute_dtype != torch.float32:
            logger.warning(
                "rounding=nearest loses most of a small merge into %s weights; rounding=remainder is exact",
                str(adapters.compute_dtype).removeprefix("torch."),
            )

    @property
    def round(self) -> int:
        """The round in training: 1 before the first merge."""
        return len(self.ledger) + 1

    @torch.no_grad()
    def merge(self, *, step: int = 0, epoch: float = 0.0, held_out_loss: float | None = None) -> MergedAdapter:
        """End the round: write the adapter into the weights, record it, and start the next adapter.

        The function of the model stays what it was, up to the rounding of the weights' dtype.
        """
        booster = MergedAdapter(
            round=self.round,
            step=step,
            epoch=epoch,
            # never a view: on a CPU `.cpu()` would hand back the arena itself
            adapters=self.adapters.arena.master.to("cpu", copy=True),
            held_out_loss=held_out_loss,
        )
        self._write(booster)
        self.ledger.boosters.append(booster)
        self.adapters.reinitialise(round=len(self.ledger))
        return booster

    @torch.no_grad()
    def rollback(self, *, round: int) -> None:
        """Give the weights after round `round` again (0: the base) and start the adapter of the round after it.

        Raises:
            InputError: there is no such round.
        """
        if not 0 <= round <= len(self.ledger):
            raise InputError(f"round={round}: must be from 0 to {len(self.ledger)}, the number of boosters")
        self.replay(replace(self.ledger, boosters=self.ledger.boosters[:round]))

    @torch.no_grad()
    def replay(self, ledger: Ledger) -> None:
        """Set the weights to base + `ledger`, whatever was merged before, and start the adapter of the next round.

        Raises:
            InputError: the ledger belongs to other adapters (layout, scale, rounding or seed).
        """
        for name in ("slots", "scale", "rounding", "seed"):
            ours, theirs = getattr(self.ledger, name), getattr(ledger, name)
            if ours != theirs:
                detail = "the adapted layers differ" if name == "slots" else f"{name} is {theirs}, here it is {ours}"
                raise InputError(f"the ledger belongs to another run: {detail}")
        if self._base is not None:
            for weight, base in zip(self.adapters.weights(), self._base, strict=True):
                weight.copy_(base)
            self._remainders = self._zero_remainders()
        for booster in ledger.boosters:
            self._write(booster)
        self.ledger = replace(ledger, boosters=list(ledger.boosters))
        self.adapters.reinitialise(round=len(self.ledger))

    def _write(self, booster: MergedAdapter) -> None:
        weights = self.adapters.weights()
        if self._base is None:
            self._base = [weight.detach().to("cpu", copy=True) for weight in weights]
            self._remainders = self._zero_remainders()
        rows = booster.adapters.to(weights[0].device).unsqueeze(0)
        pairs = [(a[0, 0], b[0, 0]) for a, b in (slot.views(rows) for slot in self.ledger.slots)]
        ops.merge_rank1_(
            weights,
            pairs,
            self.ledger.scale,
            self.rounding,
            remainders=self._remainders,
            seed=derive_seed(self.ledger.seed, booster.round),
        )

    def _zero_remainders(self) -> list[Tensor] | None:
        return new_remainders(self.adapters.weights()) if self.rounding == "remainder" else None
