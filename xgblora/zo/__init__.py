"""Zeroth-order training: the estimator and its step over the arena, and the tape of what it decided."""

from xgblora.zo.tape import Tape
from xgblora.zo.zero_order import PAIRINGS, StepResult, ZeroOrder

__all__ = ["PAIRINGS", "StepResult", "Tape", "ZeroOrder"]
