"""A long run and what grows in it: 20,000 steps, 200 rounds, a checkpoint every 500, and a resume at 19,900.

    python scripts/long_run.py ../shared/models/stories260K --data_dir ../shared/data/sst2

trains for 1,000 steps, in another process for 19,900, and goes on from there to 20,000 in a third; and prints the table
of docs/reliability.md. `--steps 200 --short 100 --rest 20 --round 20 --every 50` tries it in a minute or two.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TRAIN = "from xgblora.cli.train import main; main()"
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Measured:
    """What a run came to: seconds of its process, milliseconds of a step, and bytes."""

    steps: int
    seconds: float
    step_ms: float
    memory: int
    log: int
    folder: int
    checkpoint: int


def main() -> None:
    """Run all of it, and print the table."""
    args = parse()
    root = Path(tempfile.mkdtemp(prefix="long-run-", dir=args.folder))
    short = measure(args, root / "short", args.short)
    long = measure(args, root / "long", args.steps - args.rest)
    last = measure(args, root / "long", args.steps, "--resume_from_checkpoint=last")
    print("\n".join(table(short, long)))
    log = (root / "long" / "train.log").read_text(encoding="utf-8")
    if f"checkpoint-{long.steps}" not in log:
        sys.exit(f"error: the last {args.rest} steps did not go on from step {long.steps}")
    print(f"resumed at step {long.steps:,}: {args.rest} steps in {last.seconds:.1f} s, start and end included")
    shutil.rmtree(root)


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with SST-2")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--short", type=int, default=1_000, help="steps of the run that is compared with")
    parser.add_argument("--rest", type=int, default=100, help="steps that are left when the run is resumed")
    parser.add_argument("--round", type=int, default=100, help="steps of a round")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    return parser.parse_args()


def measure(args: argparse.Namespace, folder: Path, steps: int, *flags: str) -> Measured:
    """A run into `folder` that ends after so many steps."""
    seconds = train(args, folder, steps, *flags)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return Measured(
        steps,
        seconds,
        1000 / metrics["training"]["steps_per_second"],
        metrics["peak_memory_bytes"],
        (folder / "train.log").stat().st_size,
        size(folder),
        size(folder / f"checkpoint-{steps}"),
    )


def train(args: argparse.Namespace, folder: Path, steps: int, *flags: str) -> float:
    """Run `xgblora-train` in a process of its own; the seconds that it took."""
    words = [
        *(f"--model_name={args.model}", "--task_name=SST2", f"--data_dir={args.data_dir}", "--dtype=float32"),
        *("--num_train=1000", "--num_dev=100", "--num_eval=100", "--per_device_train_batch_size=4", "--seed=0"),
        *(f"--max_steps={steps}", f"--xgblora_steps_per_iteration={args.round}", f"--eval_steps={args.every}"),
        *("--logging_steps=100", "--save_strategy=steps", f"--save_steps={args.every}", "--save_total_limit=1"),
        *("--disable_tqdm=true", "--use_cpu=true"),
        *(f"--output_dir={folder}", *flags),
    ]
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", TRAIN, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(short: Measured, long: Measured) -> list[str]:
    """The table, a line each."""
    rows = [
        ("a step, ms", short.step_ms, long.step_ms, ".2f"),
        ("peak memory, MiB", short.memory / MEBIBYTE, long.memory / MEBIBYTE, ".0f"),
        ("train.log, KiB", short.log / 1024, long.log / 1024, ".1f"),
        ("train.log, bytes a step", short.log / short.steps, long.log / long.steps, ".1f"),
        ("a checkpoint, KiB", short.checkpoint / 1024, long.checkpoint / 1024, ".0f"),
        ("the folder, MiB", short.folder / MEBIBYTE, long.folder / MEBIBYTE, ".1f"),
        ("the whole process, s", short.seconds, long.seconds, ".0f"),
    ]
    return [
        f"| | {short.steps:,} steps | {long.steps:,} steps |",
        "| --- | --- | --- |",
        *(f"| {name} | {format(one, form)} | {format(other, form)} |" for name, one, other, form in rows),
    ]


if __name__ == "__main__":
    main()
