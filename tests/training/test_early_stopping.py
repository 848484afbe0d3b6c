"""--early_stopping_rounds: a run that ends when rounds bring nothing more, and keeps the best of them."""

import math

import pytest
import torch

from xgblora.boosting import Ledger

STOPPING = ("--early_stopping_rounds=2", "--save_strategy=steps", "--save_steps=2")
# steps so large that the loss rises: the best round is an early one
RISING = ("--learning_rate=1", "--max_steps=40")
CASES = {
    "steps": (*STOPPING, *RISING, "--xgblora_steps_per_iteration=2", "--eval_strategy=no"),
    "epochs": (*STOPPING, *RISING, "--xgblora_merge_frequency=1", "--eval_strategy=no"),
    "adaptive": (*STOPPING, *RISING, "--xgblora_adaptive_merge", "--eval_steps=1"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_ends_after_as_many_rounds_without_a_better_one_and_keeps_the_best(run, case):
    stopped = run(*CASES[case])
    merges = stopped.entries("merges.jsonl")
    losses = [merge["held_out_loss"] for merge in merges]
    best = losses.index(min(loss for loss in losses if math.isfinite(loss))) + 1
    assert len(losses) == best + 2
    training = stopped.metrics["training"]
    assert training["steps"] == merges[-1]["step"] < 40
    assert training["best_round"] == best
    assert len(Ledger.load(stopped.folder / "boosters.safetensors")) == best
    trained = stopped.metrics["results"]["trained"]["dev"]["loss"]
    assert trained == pytest.approx(losses[best - 1], rel=1e-5)
    (line,) = [line for line in stopped.log if line.startswith("XGBLoRA: Stopping early at step ")]
    assert line == (
        f"XGBLoRA: Stopping early at step {training['steps']}: no round after round {best} is better than its "
        f"held-out loss {losses[best - 1]:.4f}"
    )
    assert "Early stopping: after 2 round(s) without a better one" in stopped.log


@pytest.mark.parametrize(("case", "which"), [("steps", 0), ("steps", -1), ("adaptive", -1)])
def test_a_run_resumed_before_it_stopped_or_where_it_stopped_is_the_same(run, run_in, tmp_path, case, which):
    whole = run(*CASES[case])
    checkpoint = sorted(whole.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[which]
    resumed = run_in(tmp_path / "resumed", *CASES[case], f"--resume_from_checkpoint={checkpoint}")
    assert resumed.metrics["training"]["steps"] == whole.metrics["training"]["steps"]
    for name in ("merges.jsonl", "boosters.safetensors", "tape.bin"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    for name, weight in resumed.weights().items():
        assert torch.equal(weight, whole.weights()[name]), name


def test_a_run_whose_rounds_improve_is_not_stopped(run):
    flags = ("--trainer=regular", "--xgblora_steps_per_iteration=3", "--max_steps=9", "--eval_strategy=no")
    improving = run(*flags, "--early_stopping_rounds=1")
    assert improving.metrics["training"]["steps"] == 9
    assert not any("Stopping early" in line for line in improving.log)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num_dev=0"], "num_dev=0: early_stopping_rounds needs development examples"),
        (["--lora"], "early_stopping_rounds=2: plain LoRA has no rounds; use --xgblora"),
        (["--xgblora_merge_frequency=0"], "early_stopping_rounds=2: there are no rounds without merges; give"),
        (["--early_stopping_rounds=-1"], "early_stopping_rounds=-1: must be 0 or more"),
        (["--load_best_model_at_end"], "--early_stopping_rounds and --load_best_model_at_end: choose one of them"),
    ],
)
def test_flags_that_contradict_it_are_refused_in_one_line(run_in, tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit) as exit:
        run_in(tmp_path / "run", "--early_stopping_rounds=2", *flags)
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()
