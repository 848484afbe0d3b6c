"""Measures of a model on a task: zero-shot, in context, calibrated or by generated answers."""

from xgblora.evaluation.demonstrations import draw_demonstrations
from xgblora.evaluation.evaluation import Evaluation, Record, evaluate
from xgblora.evaluation.generation import generate_answers
from xgblora.evaluation.likelihood import log_probabilities

__all__ = [
    "Evaluation",
    "Record",
    "draw_demonstrations",
    "evaluate",
    "generate_answers",
    "log_probabilities",
]
