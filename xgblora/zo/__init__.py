"""Zeroth-order training: the estimator, the optimizers over the arena, and the tape of what was decided."""

from xgblora.zo.tape import Tape
from xgblora.zo.update_rule import ArenaOptimizer, UpdateRule
from xgblora.zo.zero_order import PAIRINGS, StepResult, ZeroOrder

__all__ = ["PAIRINGS", "ArenaOptimizer", "StepResult", "Tape", "UpdateRule", "ZeroOrder"]
