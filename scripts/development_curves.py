"""Draw development loss and accuracy by step of several runs into one figure: a long run beside another.

python scripts/development_curves.py --output curves.png "the recipe=runs/long-recipe" "LoRA r = 1=runs/long-lora"
"""

import argparse
import sys
from pathlib import Path

from xgblora.atomic_file import replacing
from xgblora.records.run_folder import RunFolder, entries_of

PANELS = (("eval_loss", "development loss"), ("eval_accuracy", "development accuracy"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="what it is called=its folder")
    parser.add_argument("--output", type=Path, required=True, help="figure")
    arguments = parser.parse_args()
    curves = {}
    for one in arguments.runs:
        name, _, folder = one.rpartition("=")
        if not (path := RunFolder(Path(folder)).eval_loss).is_file():
            sys.exit(f"error: runs={one}: there is no {path}; give NAME=FOLDER of a run with --eval_steps")
        curves[name or folder] = entries_of(path)
    draw(curves, arguments.output)


def draw(curves: dict[str, list[dict]], path: Path) -> None:
    """A line a run, of the entries of its `eval_loss.jsonl`, in two panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(9, 3.5), layout="constrained")
    for axis, (key, label) in zip(axes, PANELS, strict=True):
        for name, entries in curves.items():
            axis.plot([entry["step"] for entry in entries], [entry[key] for entry in entries], label=name)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0 if key == "eval_accuracy" else None)
    axes[0].legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
