"""The figure of a run by rewards: mean and best of each step's members, held-out rewards as points."""

from pathlib import Path

import numpy as np

from xgblora.figure_file import figure_file
from xgblora.records.step_losses import smoothed


def draw(path: Path, *, title: str, steps: dict[str, list[float]], held_out: list[tuple[int, float]]) -> None:
    """Write the figure to `path` (PNG).

    Args:
        title: what the run is.
        steps: the columns of `step_reward.csv`, see `xgblora.records.reward_files.read_steps`.
        held_out: (step, mean reward) of the evaluations.
    """
    mean, best = np.array(steps["mean"]), np.array(steps["best"])
    with figure_file(path, size=(8, 4.5)) as (_, axes):
        axes.plot(steps["step"], best, color="tab:green", alpha=0.35, linewidth=0.8, label="best member")
        axes.plot(steps["step"], mean, color="tab:blue", alpha=0.25, linewidth=0.8, label="mean of members, each step")
        window = max(1, len(mean) // 40)
        if window > 1:
            axes.plot(steps["step"], smoothed(mean, window), color="tab:blue", label=f"smoothed over {window} steps")
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", markersize=4, label="held-out prompts")
        axes.set(xlabel="step", ylabel="reward", title=title)
        axes.margins(x=0.02)
        axes.grid(alpha=0.2)
        axes.legend(loc="lower right", framealpha=0.9, edgecolor="none", fontsize="small")
