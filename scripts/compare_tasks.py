"""Put the comparisons of several tasks side by side: a table, and a figure of accuracy and of loss on the way.

    python scripts/compare_tasks.py docs/comparison/boost-*.json --output docs/comparison/boost.png

reads what `xgblora-compare` left for each task, all with the same methods. The first method is compared with the best
of the others, by held-out accuracy, on the seeds that both have.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from xgblora.atomic_file import replacing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparisons", type=Path, nargs="+", help="comparison.json of each task")
    parser.add_argument("--output", type=Path, required=True, help="figure")
    arguments = parser.parse_args()
    for path in arguments.comparisons:
        if not path.is_file():
            sys.exit(f"error: comparisons={path}: there is no such file; `xgblora-compare` writes one")
    tasks = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in arguments.comparisons}
    names = list(dict.fromkeys(name for task in tasks.values() for name in task["methods"]))
    print("\n".join(table(tasks, names)))
    draw(tasks, names, arguments.output)
    print(f"figure: {arguments.output}")


def accuracies(task: dict, name: str) -> dict[int, float]:
    """Held-out accuracy by seed, in percent, of the setting that was chosen for the method."""
    chosen = task["methods"].get(name, {}).get("setting")
    runs = [run for run in task["runs"] if run["method"] == name and run["setting"] == chosen and "results" in run]
    return {run["seed"]: 100 * run["results"]["trained"]["eval"][task["metric"]] for run in runs}


def error(values: list[float]) -> float:
    """Standard error of the mean; 0 for one value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def table(tasks: dict[str, dict], names: list[str]) -> list[str]:
    """Rows of methods, columns of tasks: mean, standard error, seeds; and the lead of the first method, paired."""
    lines = [f"| | {' | '.join(task['title'] for task in tasks.values())} |", "| --- |" + " --- |" * len(tasks)]
    for name in names:
        cells = []
        for task in tasks.values():
            values = list(accuracies(task, name).values())
            loss = task["methods"].get(name, {}).get("held_out_loss")
            mean = f"{statistics.mean(values):.1f} ± {error(values):.1f}% ({len(values)})" if values else ""
            cells.append(f"{mean}, loss {loss['mean']:.3f}" if values and loss else mean)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    leads = []
    for task in tasks.values():
        ours = accuracies(task, names[0])
        others = {name: accuracies(task, name) for name in names[1:]}
        best = max((name for name in others if others[name]), key=lambda name: statistics.mean(others[name].values()))
        gains = [ours[seed] - other for seed, other in others[best].items() if seed in ours]
        leads.append(f"{statistics.mean(gains):+.1f} ± {error(gains):.1f} over {best}")
    return [*lines, f"| {names[0]} leads by | {' | '.join(leads)} |"]


def draw(tasks: dict[str, dict], names: list[str], path: Path) -> None:
    """Above, held-out accuracy with standard errors; below, the development loss by forwards, the mean over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors = {name: f"C{number}" for number, name in enumerate(names)}
    figure, axes = pyplot.subplots(2, len(tasks), figsize=(4 * len(tasks), 6.5), layout="constrained", squeeze=False)
    for (above, below), task in zip(axes.T, tasks.values(), strict=True):
        for number, name in enumerate(names):
            values = list(accuracies(task, name).values())
            if values:
                above.barh(number, statistics.mean(values), xerr=error(values), color=colors[name], capsize=3)
            losses = losses_by_forwards(task, name)
            below.plot(losses.keys(), losses.values(), color=colors[name], marker="o", markersize=3)
        above.set_yticks(range(len(names)), names if task is next(iter(tasks.values())) else [""] * len(names))
        above.invert_yaxis()
        above.set_title(task["title"], fontsize=10)
        above.set_xlabel("held-out accuracy, %")
        below.set_xlabel("forwards")
    axes[1][0].set_ylabel("development loss")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)


def losses_by_forwards(task: dict, name: str) -> dict[float, float]:
    """Mean development loss over the seeds, by forwards of training."""
    chosen = task["methods"].get(name, {}).get("setting")
    found: dict[float, list[float]] = {}
    for run in task["runs"]:
        if run["method"] == name and run["setting"] == chosen and "evaluations" in run:
            for entry in run["evaluations"]:
                found.setdefault(entry["step"] * run["forwards"] / run["steps"], []).append(entry["loss"])
    return {forwards: statistics.mean(losses) for forwards, losses in sorted(found.items())}


if __name__ == "__main__":
    main()
