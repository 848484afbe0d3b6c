"""Zeroth-order training: the estimator and its step over the arena."""

from xgblora.zo.zero_order import PAIRINGS, StepResult, ZeroOrder

__all__ = ["PAIRINGS", "StepResult", "ZeroOrder"]
