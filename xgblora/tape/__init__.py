"""The tape: the record of what a zeroth-order run decided, and nothing that acts on it."""

from xgblora.tape.header import RoundsHeader, StepHeader, TapeHeader
from xgblora.tape.records import (
    EndRecord,
    KeepRecord,
    MergeRecord,
    Record,
    RollbackRecord,
    StartRecord,
    StepRecord,
    TakeRecord,
    checksum,
)
from xgblora.tape.tape import Tape

__all__ = [
    "EndRecord",
    "KeepRecord",
    "MergeRecord",
    "Record",
    "RollbackRecord",
    "RoundsHeader",
    "StartRecord",
    "StepHeader",
    "StepRecord",
    "TakeRecord",
    "Tape",
    "TapeHeader",
    "checksum",
]
