"""When a run merges, and that a run without a merge is a LoRA run."""

from itertools import pairwise

import pytest
import torch

from xgblora.boosting import Ledger

TRAINERS = ("zo", "regular")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_xgblora_without_a_merge_inside_the_run_has_the_losses_of_lora_of_rank_1_to_the_character(run, trainer):
    boosted = run("--xgblora", "--xgblora_steps_per_iteration=12", "--max_steps=12", f"--trainer={trainer}")
    lora = run("--lora", "--lora_r=1", "--max_steps=12", f"--trainer={trainer}")
    assert len(lora.losses) == 12
    assert boosted.losses == lora.losses
    assert len(set(lora.losses)) == 12


@pytest.mark.parametrize("trainer", TRAINERS)
def test_steps_per_iteration_silences_the_epochs_even_with_a_merge_frequency(run, trainer):
    boosted = run("--xgblora", "--xgblora_steps_per_iteration=12", "--max_steps=12", f"--trainer={trainer}")
    assert boosted.metrics["training"]["epochs"] == 4.0
    assert boosted.merge_lines == ["step 12"]
    assert "Merge rule in force: merge every 12 steps" in boosted.log
    assert sum("xgblora_merge_frequency=1 is ignored" in line for line in boosted.log) == 1


def test_the_block_says_the_rank_the_scale_and_the_rule(run):
    log = run("--xgblora", "--xgblora_steps_per_iteration=12", "--max_steps=12", "--trainer=zo").log
    for line in (
        "Actual rank used: 1 (forced to 1 for XGBLoRA)",
        "Alpha: 16.0",
        "Scaling (alpha/r): 16.0",
        "Steps per iteration: 12",
        "Merge frequency (epochs): 1",
    ):
        assert log.count(line) == 1


def test_merging_by_steps_merges_after_each_nth_step_and_nowhere_else(merged_by_steps):
    assert merged_by_steps.metrics["training"]["epochs"] > 13
    assert merged_by_steps.merge_lines == ["step 10", "step 20", "step 30", "step 40"]


def test_merging_by_epochs_merges_once_an_epoch_and_not_inside_the_last_one(merged_by_epochs):
    assert merged_by_epochs.metrics["training"]["epochs"] == pytest.approx(10 / 3)
    assert merged_by_epochs.merge_lines == ["epoch 1", "epoch 2", "epoch 3"]
    assert not any("ignored" in line for line in merged_by_epochs.log)


def test_merging_every_second_epoch(run):
    assert run("--xgblora_merge_frequency=2", "--max_steps=15", "--num_dev=0").merge_lines == ["epoch 2", "epoch 4"]


def test_no_merge_during_training_when_both_flags_are_0(run):
    unmerged = run("--xgblora", "--xgblora_merge_frequency=0", "--max_steps=6")
    assert unmerged.merge_lines == []
    assert unmerged.entries("merges.jsonl") == []
    assert "Merge rule in force: no merge during training" in unmerged.log
    assert len(Ledger.load(unmerged.folder / "boosters.safetensors")) == 1


def test_plain_lora_never_merges_and_leaves_its_adapter_as_the_only_booster(run):
    lora = run("--lora", "--lora_r=2", "--max_steps=12", "--trainer=zo")
    assert lora.merge_lines == []
    assert lora.entries("merges.jsonl") == []
    ledger = Ledger.load(lora.folder / "boosters.safetensors")
    (booster,) = ledger.boosters
    assert (booster.round, booster.step, booster.scale) == (1, 12, 8.0)
    assert ledger.slots[0].rank == 2


@pytest.mark.parametrize("trainer", TRAINERS)
def test_an_epoch_of_an_odd_number_of_batches_ends_with_its_last_step_under_gradient_accumulation(run, trainer):
    accumulated = run("--gradient_accumulation_steps=2", "--max_steps=5", f"--trainer={trainer}", "--num_dev=0")
    # 3 batches an epoch are a step of two batches and one of a single batch
    assert [(entry["step"], entry["epoch"]) for entry in accumulated.entries("merges.jsonl")] == [(2, 1.0), (4, 2.0)]
    assert accumulated.merge_lines == ["epoch 1", "epoch 2"]
    assert [step for step, _ in accumulated.losses] == ["1", "2", "3", "4", "5"]


def test_accumulated_steps_merge_by_optimizer_steps(run):
    flags = ("--gradient_accumulation_steps=2", "--xgblora_steps_per_iteration=3", "--max_steps=7", "--num_dev=0")
    assert run(*flags).merge_lines == ["step 3", "step 6"]


def test_log_merges_file_and_ledger_agree(merged_by_steps):
    entries = merged_by_steps.entries("merges.jsonl")
    boosters = Ledger.load(merged_by_steps.folder / "boosters.safetensors").boosters
    assert [f"step {entry['step']}" for entry in entries] == merged_by_steps.merge_lines
    assert [entry["round"] for entry in entries] == [1, 2, 3, 4]
    assert {entry["rule"] for entry in entries} == {"merge every 10 steps"}
    for entry, booster in zip(entries, boosters, strict=True):
        assert entry["round"] == booster.round
        assert entry["step"] == booster.step
        assert entry["epoch"] == booster.epoch
        assert entry["held_out_loss"] == booster.held_out_loss


def test_the_adapter_left_inside_an_epoch_is_the_last_booster(merged_by_epochs):
    boosters = Ledger.load(merged_by_epochs.folder / "boosters.safetensors").boosters
    assert [booster.step for booster in boosters] == [3, 6, 9, 10]
    assert [entry["step"] for entry in merged_by_epochs.entries("merges.jsonl")] == [3, 6, 9]


@pytest.mark.parametrize("fixture", ["merged_by_steps", "merged_by_epochs"])
def test_held_out_loss_of_a_merge_is_the_evaluation_at_its_step(request, fixture):
    run = request.getfixturevalue(fixture)
    evaluated = {entry["step"]: entry["eval_loss"] for entry in run.entries("eval_loss.jsonl")}
    for entry in run.entries("merges.jsonl"):
        assert entry["held_out_loss"] == evaluated[entry["step"]]


def test_a_merge_without_an_evaluation_has_no_held_out_loss(run):
    flags = ("--gradient_accumulation_steps=2", "--xgblora_steps_per_iteration=3", "--max_steps=7", "--num_dev=0")
    assert [entry["held_out_loss"] for entry in run(*flags).entries("merges.jsonl")] == [None, None]


def test_an_evaluation_after_the_merge_s_step_is_not_its_held_out_loss(run):
    entries = run("--xgblora_steps_per_iteration=3", "--max_steps=7", "--eval_steps=5").entries("merges.jsonl")
    assert [(entry["step"], entry["held_out_loss"]) for entry in entries] == [(3, None), (6, None)]


def test_a_merge_leaves_the_held_out_loss_as_it_was_until_the_next_step(run):
    """Evaluated right after the merge of step 6, and at step 6 of the same run without merges before it."""
    merging = run("--xgblora_steps_per_iteration=6", "--max_steps=6", "--eval_steps=6")
    plain = run("--lora", "--max_steps=6", "--eval_steps=6")
    after, before = (run.entries("eval_loss.jsonl")[-1]["eval_loss"] for run in (merging, plain))
    assert after == pytest.approx(before, rel=1e-5)


def test_each_round_starts_from_another_adapter(merged_by_steps):
    boosters = Ledger.load(merged_by_steps.folder / "boosters.safetensors").boosters
    for earlier, later in pairwise(boosters):
        assert not torch.allclose(earlier.adapters, later.adapters, atol=1e-2)
