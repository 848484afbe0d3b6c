"""`start_tape`: let a zeroth-order run record what it decides."""

from dataclasses import asdict

from xgblora.boosting import Booster, FullFineTuning
from xgblora.tape import RoundsHeader, StepHeader, Tape, TapeHeader
from xgblora.zo import ZeroOrder


def start_tape(zo: ZeroOrder, booster: Booster | FullFineTuning) -> Tape:
    """Record from now on what `zo` and `booster` do; to be called before the first step.

    Returns:
        The tape; `tape.save(path)` writes it.
    """
    optimizer = zo.optimizer
    step = StepHeader(zo.directions, optimizer.distribution, optimizer.weight_decay, **asdict(optimizer.rule))
    rounds = RoundsHeader(booster.rounding, booster.start.reinit, booster.start.colsample)
    zo.tape = booster.tape = Tape(TapeHeader(booster.adapters.origin, step, rounds))
    for start in booster.measured_starts:
        # of the first round, which began before there was a tape
        zo.tape.record_start(start)
    return zo.tape
