"""The trained model again, bit for bit, without data and without a forward pass: from its tape or from its ledger."""

from collections.abc import Iterable

import torch
from torch import nn

from xgblora.adapters import FullParameters, Origin, attach
from xgblora.adapters.identity import trained_hash
from xgblora.boosting.adaptive import take_back
from xgblora.boosting.booster import Booster
from xgblora.boosting.full_fine_tuning import FullFineTuning
from xgblora.boosting.ledger import Ledger
from xgblora.boosting.reinit import RoundStart
from xgblora.errors import InputError
from xgblora.zo import ArenaOptimizer, Tape, ZeroOrder
from xgblora.zo.tape import (
    EndRecord,
    KeepRecord,
    MergeRecord,
    Record,
    RollbackRecord,
    StepRecord,
    TakeRecord,
    TapeHeader,
    checksum,
)
from xgblora.zo.zero_order import direction_seeds


def start_tape(zo: ZeroOrder, booster: Booster | FullFineTuning) -> Tape:
    """Record from now on what `zo` and `booster` do; to be called before the first step.

    Returns:
        The tape; `tape.save(path)` writes it.
    """
    optimizer = zo.optimizer
    header = TapeHeader(
        booster.adapters.origin,
        zo.directions,
        optimizer.distribution,
        optimizer.weight_decay,
        booster.rounding,
        optimizer.rule,
        booster.start.reinit,
        booster.start.colsample,
    )
    zo.tape = booster.tape = Tape(header)
    return zo.tape


@torch.no_grad()
def replay(
    model: nn.Module, tape: Tape, records: Iterable[Record] | None = None
) -> tuple[Booster | FullFineTuning, bool]:
    """Train `model` as the tape says.

    Any device will do: noise, updates and merges have the same bits everywhere.

    Args:
        model: the base model, without adapters; it is changed in place and keeps the adapters.
        tape: of a finished run, or of one that was stopped.
        records: those of the tape, if the caller wants to look at them as they go by (a progress bar).

    Returns:
        The booster with its ledger (for full parameters what stands in its place), and whether the tape held the digest
        of the trained layers, which was compared.

    Raises:
        InputError: the tape belongs to another model, or the replay did not come out as the tape says.
    """
    header, complaint = tape.header, "the tape was recorded on another model"
    if header.origin.full_parameters:
        booster = _full_parameters_of(model, header.origin, complaint)
    else:
        start = RoundStart(header.reinit, header.colsample)
        booster = _booster_of(model, header.origin, header.rounding, start, complaint)
    adapters = booster.adapters
    optimizer = ArenaOptimizer(
        adapters.arena, header.rule, distribution=header.distribution, weight_decay=header.weight_decay
    )
    verified, kept = False, None
    for record in tape.records() if records is None else records:
        if isinstance(record, StepRecord):
            _step(optimizer, header.directions, record)
        elif isinstance(record, MergeRecord):
            _refuse_difference(f"the adapter of round {record.round}", checksum(adapters.arena.master), record.checksum)
            booster.merge(step=record.step, shrinkage=record.shrinkage)
        elif isinstance(record, RollbackRecord):
            booster.rollback(round=record.round)
        elif isinstance(record, KeepRecord):
            kept = adapters.arena.master.clone()
        elif isinstance(record, TakeRecord):
            if kept is None:
                raise InputError("the tape takes an adapter back that it never kept")
            take_back(booster, kept)
        elif isinstance(record, EndRecord):
            booster.end()
            adapters.arena.restore()
            _refuse_difference("the trained weights", trained_hash(adapters), record.sha256.hex())
        verified = isinstance(record, EndRecord)
    adapters.arena.restore()
    return booster, verified


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
    booster = _booster_of(model, ledger.origin, ledger.rounding, ledger.start, "the ledger belongs to another model")
    booster.replay(ledger)
    booster.end()
    return booster


def _booster_of(model: nn.Module, origin: Origin, rounding: str, start: RoundStart, complaint: str) -> Booster:
    """A booster over `model`, adapted as `origin` says; an InputError beginning with `complaint` if it does not fit."""
    names = {name for name, _ in model.named_modules()}
    missing = [name for name in origin.layers if name not in names]
    if missing:
        raise InputError(f"{complaint}: this one has no layer {missing[0]}")
    adapters = attach(model, origin.layers, alpha=origin.alpha, rank=origin.rank, seed=origin.seed)
    booster = Booster(adapters, rounding=rounding, reinit=start.reinit, colsample=start.colsample)
    booster.adapters.origin.refuse_other(origin, complaint)
    return booster


def _full_parameters_of(model: nn.Module, origin: Origin, complaint: str) -> FullFineTuning:
    """The parameters of `model`, ready to be trained; an InputError beginning with `complaint` if it does not fit."""
    booster = FullFineTuning(FullParameters(model, seed=origin.seed))
    booster.adapters.origin.refuse_other(origin, complaint)
    return booster


def _step(optimizer: ArenaOptimizer, directions: int, record: StepRecord) -> None:
    device = optimizer.arena.master.device
    optimizer.step(
        torch.tensor(direction_seeds(record.seed, directions), device=device),
        torch.tensor(record.projected_grads, dtype=torch.float32, device=device),
        torch.tensor([record.lr], dtype=torch.float32, device=device),
        torch.tensor(record.applied, device=device),
    )


def _refuse_difference(what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise InputError(f"{what} came out different from what the tape says ({ours}, not {theirs})")
