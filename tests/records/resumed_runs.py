"""Runs to be resumed, and what is asked of one that was."""

import shutil
from pathlib import Path

import torch

from xgblora.records import checkpoint

SAVING = ("--save_strategy=steps", "--save_steps=10")


# 3 batches an epoch: the checkpoint at step 10 lies inside an epoch and right after a merge at step 10 or 9
CASES = {
    "zo, merged by steps": ("--trainer=zo", "--xgblora_steps_per_iteration=5"),
    "zo, merged by epochs": ("--trainer=zo", "--xgblora_merge_frequency=1"),
    # the checkpoint at step 10 lies inside a round, whose moments it must hold
    "zo, Adam, merged by steps": ("--trainer=zo", "--xgblora_steps_per_iteration=4", "--zo_optimizer=adam"),
    "zo, upper half, merged by steps": ("--xgblora_layers=0.5:1.0", "--xgblora_steps_per_iteration=5"),
    "zo, LoRA": ("--trainer=zo", "--lora", "--lora_r=2"),
    "regular, merged by steps": ("--trainer=regular", "--xgblora_steps_per_iteration=4"),
    "regular, merged by epochs": ("--trainer=regular", "--xgblora_merge_frequency=1"),
}


def assert_same_run(resumed, whole, after: int) -> None:
    assert [row for row in resumed.losses if int(row[0]) > after] == whole.losses[after:]
    expected = whole.weights()
    for name, weight in resumed.weights().items():
        assert torch.equal(weight, expected[name]), name


def copy_as_killed(whole, folder: Path, step: int) -> Path:
    """`folder` as a kill leaves it: the files go on past the checkpoint of `step`, but there is no later checkpoint."""
    shutil.copytree(whole.folder, folder, ignore=shutil.ignore_patterns("metrics.json", "model"))
    checkpoint.remove_newer(folder, step)
    return folder


# what is written beside a step lies in the checkpoint or after it, whatever is logged, evaluated and saved how often
SCHEDULES = {
    "logged between checkpoints": ("--logging_steps=5", "--save_strategy=steps", "--save_steps=3"),
    "saved by steps, the rest by epochs": (
        *("--save_strategy=steps", "--save_steps=1"),
        *("--logging_strategy=epoch", "--eval_strategy=epoch"),
    ),
    "saved by epochs, the rest by steps": ("--save_strategy=epoch", "--logging_steps=2", "--eval_steps=2"),
    "everything by epochs": ("--save_strategy=epoch", "--logging_strategy=epoch", "--eval_strategy=epoch"),
    "cosine with warm-up": (
        *("--save_strategy=steps", "--save_steps=3", "--eval_steps=3", "--logging_steps=2"),
        *("--lr_scheduler_type=cosine", "--warmup_steps=4", "--trainer=regular"),
    ),
    # the checkpoint of step 3 lies at a merge that is not evaluated
    "evaluated at the start": ("--save_strategy=steps", "--save_steps=3", "--eval_steps=2", "--eval_on_start"),
    "bf16, rounded stochastically": (
        *("--save_strategy=steps", "--save_steps=3", "--dtype=bfloat16"),
        *("--rounding=stochastic", "--xgblora_steps_per_iteration=2"),
    ),
}
