"""Accuracy over candidates: the best-scored candidate is the answer."""

import numpy as np


def candidate_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples whose right candidate has the highest score.

    Args:
        scores: float [E, C]; the first of equal scores counts.
        labels: int [E].
    """
    return float((scores.argmax(axis=1) == labels).mean())
