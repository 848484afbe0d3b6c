"""Zeroth-order training: estimators, the step, and the optimizers over the arena."""

from xgblora.zo.estimator import Estimator
from xgblora.zo.one_sided import OneSided
from xgblora.zo.two_sided import TwoSided
from xgblora.zo.update_rule import ArenaOptimizer, UpdateRule
from xgblora.zo.zero_order import PAIRINGS, StepResult, ZeroOrder

__all__ = [
    "PAIRINGS",
    "ArenaOptimizer",
    "Estimator",
    "OneSided",
    "StepResult",
    "TwoSided",
    "UpdateRule",
    "ZeroOrder",
]
