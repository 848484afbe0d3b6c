"""Runs of `xgblora-train` that several tests look at, each made once, and how to read what they leave."""

import csv
import json
from pathlib import Path

import pytest


class Run:
    """The folder of a run, with its files read."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def losses(self) -> list[tuple[str, str]]:
        """(step, loss) as they are written."""
        with open(self.folder / "step_loss.csv", encoding="utf-8", newline="") as file:
            return [(row["step"], row["loss"]) for row in csv.DictReader(file)]

    @property
    def metrics(self) -> dict:
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))

    @property
    def log(self) -> list[str]:
        """The lines of train.log without their times."""
        return [line[20:] for line in (self.folder / "train.log").read_text(encoding="utf-8").splitlines()]

    @property
    def merge_lines(self) -> list[str]:
        """Where the log says that it merged: "step 10"."""
        start = "XGBLoRA: Merging and reinitializing at "
        return [line.removeprefix(start) for line in self.log if line.startswith(start)]

    def entries(self, name: str) -> list[dict]:
        """The objects of a .jsonl file."""
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]

    def weights(self) -> dict:
        """The tensors of the saved model."""
        from safetensors.torch import load_file

        return load_file(self.folder / "model" / "model.safetensors")


@pytest.fixture(scope="session")
def run(tmp_path_factory, train_tiny):
    """A function `(*flags)` that trains in a new folder, once for the same flags, and gives the `Run`."""
    done: dict[tuple[str, ...], Run] = {}

    def once(*flags: object) -> Run:
        key = tuple(map(str, flags))
        if key not in done:
            done[key] = Run(train_tiny(tmp_path_factory.mktemp("runs") / "run", *flags))
        return done[key]

    return once


@pytest.fixture(scope="session")
def run_in(train_tiny):
    """A function `(folder, *flags)` that trains into `folder` and gives the `Run`."""
    return lambda folder, *flags: Run(train_tiny(folder, *flags))


@pytest.fixture(scope="session")
def merged_by_steps(run) -> Run:
    """40 zeroth-order steps, merged after every 10, evaluated after every 10."""
    return run("--xgblora", "--xgblora_steps_per_iteration=10", "--max_steps=40")


@pytest.fixture(scope="session")
def merged_by_epochs(run) -> Run:
    """10 zeroth-order steps of 3 an epoch: three epochs and a third, merged at the end of each, evaluated there."""
    return run("--xgblora", "--xgblora_merge_frequency=1", "--max_steps=10", "--eval_strategy=epoch")
