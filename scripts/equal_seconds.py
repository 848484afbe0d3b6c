"""What each method of a comparison had learned after the same seconds: its runs replayed to the step they had reached.

    for seeds in "0" "0 1" "0 1 2"; do
        xgblora-compare ... --max_steps 100 --num_dev 0 --num_eval 16 --seeds $seeds --output_root runs/timed
    done
    python scripts/equal_seconds.py runs/boost-trec --timed runs/timed/comparison.json --output equal.json -- \
        --task_file docs/comparison/trec.yaml --objective classification --num_train 1000 --num_dev 500

The first commands, on a machine that does nothing else, take the methods by turns: the least over the seeds is what a
step of each costs, starts and merges counted, since what a machine does beside it can only add. The seconds are those
in which the fastest method does all of its steps.
What follows `--` are the flags of the comparison that say what is measured; its runs must have tapes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from xgblora.atomic_file import write_text


def main() -> None:
    arguments, flags = parsed(sys.argv[1:])
    comparison, timed = (json.loads(path.read_text()) for path in (arguments.runs / "comparison.json", arguments.timed))
    seconds = {name: seconds_a_step(timed, name) for name in comparison["methods"]}
    reached = steps_reached(seconds, max(run["steps"] for run in comparison["runs"]))
    found = {
        name: {
            "seconds_a_step": seconds[name],
            "step": reached[name],
            "held_out": {
                seed: held_out(arguments.runs / f"{name}-seed{seed}", seed, reached[name], flags)
                for seed in comparison["seeds"]
            },
        }
        for name in comparison["methods"]
    }
    write_text(arguments.output, json.dumps(found, indent=1) + "\n")
    print("\n".join(table(found)))


def parsed(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and the flags of the task behind `--`: argparse gives what follows options to no positional."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage="%(prog)s RUNS [options] -- FLAGS")
    parser.add_argument("runs", type=Path, help="output_root of the comparison, its comparison.json in it")
    parser.add_argument("--timed", type=Path, required=True, help="comparison.json of the short runs")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    end = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:end]), words[end + 1 :]


def seconds_a_step(timed: dict, name: str) -> float:
    """The least over the runs of a method, of the seconds of training a step."""
    return min(1 / run["measured"]["steps_per_second"] for run in timed["runs"] if run["method"] == name)


def steps_reached(seconds: dict[str, float], steps: int) -> dict[str, int]:
    """The step of each method when the fastest has done `steps`."""
    fastest = min(seconds.values())
    return {name: round(steps * fastest / one) for name, one in seconds.items()}


def held_out(run: Path, seed: int, step: int, flags: list[str]) -> dict:
    """Metrics and loss of the held-out examples, of the run after `step`."""
    with tempfile.TemporaryDirectory() as folder:
        model, measured = Path(folder, "model"), Path(folder, "measured")
        command("replay", run, f"--step={step}", f"--output_dir={model}")
        command(
            "train", "--trainer=none", f"--model_name={model}", f"--seed={seed}", f"--output_dir={measured}", *flags
        )
        return json.loads((measured / "metrics.json").read_text())["results"]["zero_shot"]["eval"]


def command(name: str, *arguments: object) -> None:
    program = f"from xgblora.cli.{name} import main; main()"
    ended = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"error: xgblora-{name}: {(ended.stderr or ended.stdout).strip().splitlines()[-1]}")


def table(found: dict[str, dict]) -> list[str]:
    """A row a method: what a step costs, the step that it reached, mean and standard error of the held-out accuracy."""
    lines = ["| | ms a step | steps | held-out accuracy | loss |", "| --- | --- | --- | --- | --- |"]
    for name, one in found.items():
        values = [100 * seed["accuracy"] for seed in one["held_out"].values()]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        loss = statistics.mean(seed["loss"] for seed in one["held_out"].values())
        accuracy = f"{statistics.mean(values):.1f} ± {error:.1f}% ({len(values)})"
        lines.append(f"| {name} | {1000 * one['seconds_a_step']:.0f} | {one['step']:,} | {accuracy} | {loss:.3f} |")
    return lines


if __name__ == "__main__":
    main()
