"""The loss of each step of a run: read from `step_loss.csv`, and smoothed to be seen."""

import csv
from pathlib import Path

import numpy as np


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The steps, int [T], and their losses, float [T], in the file at `path`."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    return np.array([step for step, _ in rows]), np.array([loss for _, loss in rows])


def smoothed(losses: np.ndarray, window: int) -> np.ndarray:
    """Exponential moving average with a time constant of `window` steps, corrected for its start; NaN is passed over.

    Args:
        losses: float [T].
        window: steps, 1 or more.
    """
    decay = 1.0 - 1.0 / window
    total = weight = 0.0
    average = np.empty_like(losses)
    for index, loss in enumerate(losses):
        if np.isfinite(loss):
            total, weight = decay * total + loss, decay * weight + 1.0
        average[index] = total / weight if weight else np.nan
    return average
