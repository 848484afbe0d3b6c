"""The trained model again, bit for bit, without data and without a forward pass, from its tape."""

from collections.abc import Iterable

import torch
from torch import nn

from xgblora.adapters import FullParameters, Origin
from xgblora.adapters.identity import trained_hash
from xgblora.boosting import Booster, FullFineTuning, RoundStart
from xgblora.boosting.adaptive import take_back
from xgblora.errors import InputError
from xgblora.replaying.from_ledger import booster_of
from xgblora.tape import (
    EndRecord,
    KeepRecord,
    MergeRecord,
    Record,
    RollbackRecord,
    StartRecord,
    StepHeader,
    StepRecord,
    TakeRecord,
    Tape,
    TapeHeader,
    checksum,
)
from xgblora.zo import ArenaOptimizer, UpdateRule
from xgblora.zo.estimator import direction_seeds


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
    booster = _booster_of(model, tape.header)
    adapters, step = booster.adapters, tape.header.step
    rule = UpdateRule(step.optimizer, step.beta1, step.beta2, step.epsilon)
    optimizer = ArenaOptimizer(adapters.arena, rule, distribution=step.distribution, weight_decay=step.weight_decay)
    verified, kept = False, None
    for record in tape.records() if records is None else records:
        if isinstance(record, StepRecord):
            _step(optimizer, step, record)
        elif isinstance(record, MergeRecord):
            _refuse_difference(f"the adapter of round {record.round}", checksum(adapters.arena.master), record.checksum)
            booster.merge(step=record.step, shrinkage=record.shrinkage, begins=False)
        elif isinstance(record, StartRecord):
            booster.begin(record.adapter.to(adapters.arena.master.device))
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


def _booster_of(model: nn.Module, header: TapeHeader) -> Booster | FullFineTuning:
    """What the run began with; an InputError if `model` is not its base."""
    complaint = "the tape was recorded on another model"
    if header.origin.full_parameters:
        return _full_parameters_of(model, header.origin, complaint)
    rounds = header.rounds
    return booster_of(model, header.origin, rounds.rounding, RoundStart(rounds.reinit, rounds.colsample), complaint)


def _full_parameters_of(model: nn.Module, origin: Origin, complaint: str) -> FullFineTuning:
    adapters = FullParameters(model, seed=origin.seed)
    adapters.labels = origin.labels
    booster = FullFineTuning(adapters)
    booster.adapters.origin.refuse_other(origin, complaint)
    return booster


def _step(optimizer: ArenaOptimizer, header: StepHeader, record: StepRecord) -> None:
    device = optimizer.arena.master.device
    optimizer.step(
        torch.tensor(direction_seeds(record.seed, header.directions), device=device),
        torch.tensor(record.projected_grads, dtype=torch.float32, device=device),
        torch.tensor([record.lr], dtype=torch.float32, device=device),
        torch.tensor(record.applied, device=device),
    )


def _refuse_difference(what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise InputError(f"{what} came out different from what the tape says ({ours}, not {theirs})")
