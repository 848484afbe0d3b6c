"""Seconds of training until two methods of a comparison have the same development loss, seed by seed.

    python scripts/seconds_to_loss.py ROOT BASELINE OTHER

reads the runs that `xgblora-compare --output_root ROOT` has left. The loss of a seed is the lowest that both of its
runs reach. Seconds are those of training, evaluations between rounds and whatever is filled at its start among them, at
the run's mean rate: both methods should evaluate equally often.
"""

import argparse
import json
import statistics
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="output folder of the comparison")
    parser.add_argument("methods", nargs=2, metavar="METHOD", help="the baseline, and what is compared with it")
    arguments = parser.parse_args()
    baseline, other = arguments.methods
    ratios = []
    for folder in sorted(arguments.root.glob(f"{baseline}-seed*")):
        seed = folder.name.removeprefix(f"{baseline}-")
        curves = [curve_of(arguments.root / f"{method}-{seed}") for method in arguments.methods]
        loss = max(min(losses) for losses, _ in curves)
        first, second = (seconds_to(loss, *curve) for curve in curves)
        ratios.append(second / first)
        print(f"{seed}: loss {loss:.4f}, {baseline} {first:.1f} s, {other} {second:.1f} s, {second / first:.2f}")
    print(f"median {statistics.median(ratios):.2f}")


def curve_of(folder: Path) -> tuple[list[float], list[float]]:
    """Development losses of a run in their order, and the seconds of training until each."""
    training = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["training"]
    lines = (folder / "eval_loss.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    of_step = training["seconds"] / training["steps"]
    return [entry["eval_loss"] for entry in entries], [entry["step"] * of_step for entry in entries]


def seconds_to(loss: float, losses: list[float], seconds: list[float]) -> float:
    """Those until a curve is at `loss` or below it for the first time."""
    return next(second for value, second in zip(losses, seconds, strict=True) if value <= loss)


if __name__ == "__main__":
    main()
