"""`--trainer population` on a task: what a run says and leaves, and that it goes on to the bit."""

import torch
from safetensors.torch import load_file

from xgblora.boosting import Ledger
from xgblora.boosting.merged import MergedNoise
from xgblora.cli.export import main as export

FLAGS = (
    *("--trainer=population", "--members=4", "--sigma=0.1", "--sigma_end=0.05", "--lr_scheduler_type=linear"),
    *("--objective=accuracy", "--max_steps=6", "--eval_steps=3", "--save_strategy=steps", "--save_steps=2"),
)


def test_what_it_says_and_leaves(run):
    whole = run(*FLAGS, "--dtype=bfloat16")
    assert "Method: evolution, rank-1 perturbations of the weights" in whole.log
    assert "Merge rule in force: each step is a booster, merged at once" in whole.log
    assert "Members: 4, in pairs, sigma 0.1 to 0.05" in whole.log
    assert "Loss: 1 - accuracy (no gradient)" in whole.log
    assert [step for step, _ in whole.losses] == [str(step) for step in range(1, 7)]
    training, ledger = whole.metrics["training"], Ledger.load(whole.folder / "boosters.safetensors")
    assert training["estimator"] == {
        "name": "population",
        "forwards": 4,
        "members": 4,
        "sigma": 0.1,
        "sigma_end": 0.05,
        "learning_rate": 0.01,
    }
    assert training["merges"] + training["skipped_steps"] == 6
    assert training["merges"] == len(whole.entries("merges.jsonl")) == len(ledger) > 0
    assert all(isinstance(booster, MergedNoise) and len(booster.seeds) == 2 for booster in ledger.boosters)
    assert not (whole.folder / "tape.bin").exists()
    # each member gives each example 0 or 1
    assert all((float(loss) * 4 * 4).is_integer() for _, loss in whole.losses)


def test_seeds_and_fitness_give_its_weights(run, tmp_path):
    whole = run(*FLAGS, "--dtype=bfloat16")
    export([str(whole.folder), "--output_dir", str(tmp_path / "again"), "--use_cpu"])
    ours = load_file(tmp_path / "again" / "model.safetensors")
    for name, weight in whole.weights().items():
        assert torch.equal(ours[name], weight), name


def test_it_goes_on_to_the_bit(run, run_in, tmp_path):
    whole = run(*FLAGS, "--dtype=bfloat16")
    resumed = run_in(
        tmp_path / "r", *FLAGS, "--dtype=bfloat16", f"--resume_from_checkpoint={whole.folder / 'checkpoint-4'}"
    )
    assert resumed.losses == whole.losses[4:]
    assert resumed.metrics["training"]["skipped_steps"] == whole.metrics["training"]["skipped_steps"]
    for name, weight in whole.weights().items():
        assert torch.equal(resumed.weights()[name], weight), name


def test_a_dry_run_counts_forwards_and_boosters(train_tiny, tmp_path, capsys):
    train_tiny(tmp_path / "dry", *FLAGS, "--dry_run")
    said = capsys.readouterr().out
    assert "Forwards a step: 4" in said
    assert "Merges to come: 6 (step 1, step 2, step 3, ...)" in said
    assert not (tmp_path / "dry").exists()
