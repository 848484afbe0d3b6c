"""Draw what `--report_to tensorboard` wrote, for docs/watching.md.

    xgblora-train --report_to tensorboard --output_dir runs/watched
    python scripts/tensorboard_figure.py runs/watched

writes docs/images/tensorboard.png from the event file of the run.
"""

import argparse
import sys
from pathlib import Path

from xgblora.figure_file import figure_file

ROOT = Path(__file__).parent.parent
# what is drawn below one another: the scalar, and what is said of it
PANELS = (
    ("train/loss", "loss"),
    ("train/projected_grad", "projected gradient\n(root mean square)"),
    ("train/signal_share", "signal in it\n(running share)"),
    ("train/learning_rate", "learning rate"),
    ("train/update_norm", "norm of a\nround's update"),
    ("train/cosine_to_earlier", "cosine to\nearlier rounds"),
)
OF_ROUNDS = ("train/update_norm", "train/cosine_to_earlier")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "tensorboard.png", help="the figure")
    arguments = parser.parse_args()
    files = sorted(arguments.run.glob("runs/*/events.out.tfevents.*"))
    if not files:
        sys.exit(f"error: {arguments.run}: has no event file of TensorBoard")
    draw(scalars_of(files[-1]), arguments.output)


def scalars_of(file: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every scalar in an event file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(file), size_guidance={"scalars": 0})
    events.Reload()
    entries = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    return {name: ([e.step for e in of_name], [e.value for e in of_name]) for name, of_name in entries.items()}


def draw(scalars: dict[str, tuple[list[int], list[float]]], path: Path) -> None:
    """Write the figure to `path` (PNG): a panel for each scalar that the run has."""
    panels = [(name, said) for name, said in PANELS if name in scalars]
    with figure_file(path, rows=len(panels), size=(7.5, 1.35 * len(panels)), dpi=110) as (_, rows):
        for axes, (name, said) in zip(rows, panels, strict=True):
            rounds = name in OF_ROUNDS
            steps, values = scalars[name]
            axes.plot(steps, values, "o" if rounds else "-", color="tab:green" if rounds else "tab:blue", markersize=4)
            if rounds:
                axes.vlines(steps, 0.0, values, color="tab:green", linewidth=1.0)
            axes.set_ylabel(said, fontsize="small")
            axes.grid(alpha=0.2)
            axes.margins(x=0.02)
        rows[-1].set_xlabel("optimizer step")


if __name__ == "__main__":
    main()
