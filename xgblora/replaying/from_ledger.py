"""The trained model again, bit for bit, from its ledger: base + boosters."""

import torch
from torch import nn

from xgblora.adapters import Origin, attach
from xgblora.boosting import Booster, Ledger, RoundStart
from xgblora.errors import InputError


@torch.no_grad()
def rebuild(model: nn.Module, ledger: Ledger) -> Booster:
    """Give `model` the adapters and the boosters of `ledger`: base + ledger = the trained model.

    Args:
        model: the base model, without adapters; it is changed in place and keeps the adapters, which are zero.

    Returns:
        The booster, as it was when training ended; `rollback(round=len(ledger))` starts the round after it.

    Raises:
        InputError: the ledger belongs to another model.
    """
    booster = booster_of(model, ledger.origin, ledger.rounding, ledger.start, "the ledger belongs to another model")
    booster.replay(ledger)
    booster.end()
    return booster


def booster_of(model: nn.Module, origin: Origin, rounding: str, start: RoundStart, complaint: str) -> Booster:
    """A booster over `model`, adapted as `origin` says; an InputError beginning with `complaint` if it does not fit."""
    # the parameters of a mixture of experts are layers too
    names = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
    missing = [name for name in origin.layers if name not in names]
    if missing:
        raise InputError(f"{complaint}: this one has no layer {missing[0]}")
    adapters = attach(model, origin.layers, alpha=origin.alpha, rank=origin.rank, seed=origin.seed, trial=False)
    adapters.labels = origin.labels
    booster = Booster(adapters, rounding=rounding, reinit=start.reinit, colsample=start.colsample)
    booster.adapters.origin.refuse_other(origin, complaint)
    return booster
