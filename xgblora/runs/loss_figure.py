"""The loss figure of a run: every step faint, smoothed on top, held-out losses as points, merges marked."""

from pathlib import Path

import numpy as np

from xgblora.figure_file import figure_file
from xgblora.records.step_losses import smoothed


def draw(
    path: Path,
    *,
    title: str,
    steps: np.ndarray,
    losses: np.ndarray,
    merges: list[int],
    held_out: list[tuple[int, float]],
) -> None:
    """Write the figure to `path` (PNG).

    Args:
        title: what the run is.
        steps, losses: int and float [T].
        merges: steps at which an adapter was merged.
        held_out: (step, loss) of the evaluations on the development set.
    """
    with figure_file(path, size=(8, 4.5)) as (_, axes):
        for index, step in enumerate(merges):
            axes.axvline(step, color="tab:gray", linewidth=0.8, linestyle=":", label="merge" if index == 0 else None)
        axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8, label="training loss, each step")
        window = max(1, len(losses) // 40)
        if window > 1:
            axes.plot(
                steps, smoothed(losses, window), color="tab:blue", linewidth=1.8, label=f"smoothed over {window} steps"
            )
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", markersize=4, label="development loss")
        axes.set(xlabel="optimizer step", ylabel="loss", title=title)
        axes.margins(x=0.02)
        axes.grid(alpha=0.2)
        axes.legend(loc="upper right", framealpha=0.9, edgecolor="none", fontsize="small")
