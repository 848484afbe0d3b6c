"""What a checkpoint holds, which of them stay, and which is loaded at the end."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from tests.records.resumed_runs import SCHEDULES
from xgblora.boosting import Ledger
from xgblora.records import checkpoint
from xgblora.records.run_folder import RunFolder


@pytest.mark.parametrize(
    "when, rows", [(("--save_strategy=epoch",), [3, 6, 7]), (("--save_strategy=steps", "--save_steps=2"), [2, 4, 6, 7])]
)
def test_losses_are_on_disk_when_the_checkpoint_is(run_in, tmp_path, monkeypatch, when, rows):
    """However seldom transformers logs, the rows before a checkpoint are there to resume to."""
    rows_at_checkpoint = []
    seal = checkpoint.seal

    def observed(folder, *arguments, **keywords):
        path = RunFolder(folder.parent).step_loss
        rows_at_checkpoint.append(len(path.read_text().splitlines()) - 1)
        return seal(folder, *arguments, **keywords)

    monkeypatch.setattr(checkpoint, "seal", observed)
    run_in(tmp_path / "run", "--max_steps=7", "--logging_steps=100", "--num_dev=0", *when)
    assert rows_at_checkpoint == rows


def test_the_files_that_a_run_needs_to_go_on_are_called_as_transformers_calls_them():
    ours = set(checkpoint.NEEDED_BY_TRANSFORMERS) - {"rng_state.pth"}
    assert ours == {OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME}


def test_a_checkpoint_holds_adapters_and_ledger_but_no_base_weights(whole, tiny_model_folder):
    checkpoint = whole("zo, merged by steps").folder / "checkpoint-10"
    tensors = {}
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors[path.name] = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118
    assert set(tensors) == {"adapters.safetensors", "boosters.safetensors"}
    # 4 layers of 32 x 32, and two boosters of them
    assert sum(tensors["adapters.safetensors"].values()) == 4 * 64
    assert sum(tensors["boosters.safetensors"].values()) == 2 * 4 * 64
    weights = (tiny_model_folder / "model.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < weights / 2


def test_the_best_checkpoint_is_loaded_at_the_end(run_in, tmp_path):
    # the loss falls, so the largest one belongs to an early checkpoint
    best = ("--load_best_model_at_end", "--metric_for_best_model=eval_loss", "--greater_is_better=true")
    flags = ("--save_strategy=steps", "--save_steps=4", "--eval_steps=4", "--xgblora_steps_per_iteration=4")
    run = run_in(tmp_path / "run", *flags, *best, "--max_steps=12", "--trainer=regular")
    evaluated = {entry["step"]: entry["eval_loss"] for entry in run.entries("eval_loss.jsonl")}
    best = max(evaluated, key=evaluated.get)
    assert best < 12
    assert run.metrics["results"]["trained"]["dev"]["loss"] == pytest.approx(evaluated[best], rel=1e-5)
    assert len(Ledger.load(run.folder / "boosters.safetensors")) == best // 4
    # what happened is still told whole
    assert [entry["step"] for entry in run.entries("merges.jsonl")] == [4, 8, 12]
    assert run.merge_lines == ["step 4", "step 8", "step 12"]


@pytest.mark.parametrize("step", [8, 12])
def test_the_best_checkpoint_is_loaded_after_a_run_was_moved_and_resumed(run_in, tmp_path, step):
    best = ("--load_best_model_at_end", "--metric_for_best_model=eval_loss", "--greater_is_better=true")
    flags = ("--save_strategy=steps", "--save_steps=4", "--eval_steps=4", "--xgblora_steps_per_iteration=4", *best)
    whole = run_in(tmp_path / "run", *flags, "--max_steps=12", "--trainer=regular")
    weights, ledger = whole.weights(), (whole.folder / "boosters.safetensors").read_bytes()
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    checkpoint.remove_newer(moved, step)
    resumed = run_in(moved, *flags, "--max_steps=12", "--trainer=regular", "--resume_from_checkpoint=last")
    assert (moved / "boosters.safetensors").read_bytes() == ledger
    for name, weight in resumed.weights().items():
        assert torch.equal(weight, weights[name])


def test_old_checkpoints_go_with_save_total_limit(run_in, tmp_path):
    run = run_in(
        tmp_path / "run", "--max_steps=9", "--num_dev=0", "--save_strategy=epoch", "--save_total_limit=1"
    )  # fmt: skip
    assert [path.name for path in run.folder.glob("checkpoint-*")] == ["checkpoint-9"]
    state = json.loads((run.folder / "checkpoint-9" / "trainer_state.json").read_text())
    assert state["global_step"] == 9


def test_the_checkpoint_of_an_epoch_s_last_step_holds_its_evaluation(run):
    whole = run("--xgblora_merge_frequency=1", "--max_steps=7", *SCHEDULES["saved by steps, the rest by epochs"])
    (booster,) = Ledger.load(whole.folder / "checkpoint-3" / "boosters.safetensors").boosters
    assert booster.held_out_loss == whole.entries("eval_loss.jsonl")[0]["eval_loss"]
