"""Measures of a model on a task: zero-shot, in context, calibrated or by generated answers."""

from xgblora.evaluation.demonstrations import draw_demonstrations
from xgblora.evaluation.evaluation import Evaluation, Record, evaluate

__all__ = ["Evaluation", "Record", "draw_demonstrations", "evaluate"]
