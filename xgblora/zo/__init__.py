"""Zeroth-order training: the estimator, and the optimizers over the arena."""

from xgblora.zo.update_rule import ArenaOptimizer, UpdateRule
from xgblora.zo.zero_order import PAIRINGS, StepResult, ZeroOrder

__all__ = ["PAIRINGS", "ArenaOptimizer", "StepResult", "UpdateRule", "ZeroOrder"]
