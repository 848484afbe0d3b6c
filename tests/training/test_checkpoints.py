"""A run that is stopped and resumed goes on as if it had not been stopped."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from xgblora.boosting import Ledger
from xgblora.training import XGBLoRATrainer
from xgblora.training.run_folder import RunFolder

SAVING = ("--save_strategy=steps", "--save_steps=10")
# 3 batches an epoch: the checkpoint at step 10 lies inside an epoch and right after a merge at step 10 or 9
CASES = {
    "zo, merged by steps": ("--trainer=zo", "--xgblora_steps_per_iteration=5"),
    "zo, merged by epochs": ("--trainer=zo", "--xgblora_merge_frequency=1"),
    "zo, LoRA": ("--trainer=zo", "--lora", "--lora_r=2"),
    "regular, merged by steps": ("--trainer=regular", "--xgblora_steps_per_iteration=4"),
    "regular, merged by epochs": ("--trainer=regular", "--xgblora_merge_frequency=1"),
}


@pytest.fixture(scope="session")
def whole(run):
    """A function that gives the uninterrupted run of a case: 16 steps, a checkpoint at step 10."""
    return lambda case: run(*CASES[case], *SAVING, "--max_steps=16")


def assert_same_run(resumed, whole, after: int) -> None:
    assert [row for row in resumed.losses if int(row[0]) > after] == whole.losses[after:]
    expected = whole.weights()
    for name, weight in resumed.weights().items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("case", CASES)
def test_resuming_in_a_new_folder_repeats_the_rest_of_the_run_exactly(whole, run_in, tmp_path, case):
    checkpoint = whole(case).folder / "checkpoint-10"
    resumed = run_in(
        tmp_path / "resumed", *CASES[case], *SAVING, "--max_steps=16", f"--resume_from_checkpoint={checkpoint}"
    )
    assert [step for step, _ in resumed.losses] == [str(step) for step in range(11, 17)]
    assert_same_run(resumed, whole(case), after=10)
    if "LoRA" not in case:
        ours, theirs = (Ledger.load(run.folder / "boosters.safetensors").boosters for run in (resumed, whole(case)))
        assert [booster.step for booster in ours] == [booster.step for booster in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine.adapters, other.adapters)


def test_resuming_at_the_end_of_an_epoch_with_another_accumulation_of_batches(run, run_in, tmp_path):
    flags = (
        "--gradient_accumulation_steps=2",
        "--max_steps=7",
        "--num_dev=0",
        "--save_strategy=steps",
        "--save_steps=4",
    )
    whole = run(*flags)
    resumed = run_in(tmp_path / "r", *flags, f"--resume_from_checkpoint={whole.folder / 'checkpoint-4'}")
    assert_same_run(resumed, whole, after=4)
    assert resumed.merge_lines == ["epoch 3"]


def test_resuming_in_the_killed_run_s_folder_leaves_the_files_of_the_whole_run(whole, run_in, tmp_path):
    """The folder as a kill right after the checkpoint of step 10 leaves it, the step of a torn line included."""
    case = "zo, merged by steps"
    complete = whole(case)
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copytree(complete.folder / "checkpoint-10", killed / "checkpoint-10")
    rows = (complete.folder / "step_loss.csv").read_text().splitlines()
    (killed / "step_loss.csv").write_text("\n".join(rows[:13]) + "\n1")
    entries = (complete.folder / "training_loss.jsonl").read_text().splitlines()
    (killed / "training_loss.jsonl").write_text("\n".join(entries[:2]) + '\n{"step": 15, "lo')
    (killed / "eval_loss.jsonl").write_text((complete.folder / "eval_loss.jsonl").read_text())
    # the merge of step 10 was not written yet: it waited for an evaluation
    (killed / "merges.jsonl").write_text((complete.folder / "merges.jsonl").read_text().splitlines()[0] + "\n")

    resumed = run_in(
        killed, *CASES[case], *SAVING, "--max_steps=16", f"--resume_from_checkpoint={killed / 'checkpoint-10'}"
    )
    for name in ("step_loss.csv", "training_loss.jsonl", "merges.jsonl"):
        assert (killed / name).read_text() == (complete.folder / name).read_text(), name
    ours, theirs = (
        [(entry["step"], entry["eval_loss"]) for entry in run.entries("eval_loss.jsonl")] for run in (resumed, complete)
    )
    assert ours == theirs
    assert_same_run(resumed, complete, after=0)


@pytest.mark.parametrize(
    "when, rows", [(("--save_strategy=epoch",), [3, 6, 7]), (("--save_strategy=steps", "--save_steps=2"), [2, 4, 6, 7])]
)
def test_losses_are_on_disk_when_the_checkpoint_is(run_in, tmp_path, monkeypatch, when, rows):
    """However seldom transformers logs, the rows before a checkpoint are there to resume to."""
    rows_at_checkpoint = []
    save = XGBLoRATrainer._save_checkpoint

    def observed(self, model, trial):
        path = RunFolder(Path(self.args.output_dir)).step_loss
        rows_at_checkpoint.append(len(path.read_text().splitlines()) - 1)
        return save(self, model, trial)

    monkeypatch.setattr(XGBLoRATrainer, "_save_checkpoint", observed)
    run_in(tmp_path / "run", "--max_steps=7", "--logging_steps=100", "--num_dev=0", *when)
    assert rows_at_checkpoint == rows


def test_resuming_a_finished_run_trains_no_further(whole, run_in, tmp_path):
    complete = whole("zo, merged by steps")
    checkpoint = complete.folder / "checkpoint-16"
    assert checkpoint.is_dir()
    resumed = run_in(
        tmp_path / "r",
        *CASES["zo, merged by steps"],
        *SAVING,
        "--max_steps=16",
        f"--resume_from_checkpoint={checkpoint}",
    )
    assert resumed.losses == []
    for name, weight in complete.weights().items():
        assert torch.equal(weight, resumed.weights()[name])


def test_speed_of_a_resumed_run_counts_its_own_steps(whole, run_in, tmp_path):
    case = "zo, merged by steps"
    checkpoint = whole(case).folder / "checkpoint-10"
    resumed = run_in(tmp_path / "r", *CASES[case], "--max_steps=16", f"--resume_from_checkpoint={checkpoint}")
    training = resumed.metrics["training"]
    assert training["steps"] == 16
    assert training["steps_per_second"] * training["seconds"] == pytest.approx(6)


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


@pytest.mark.parametrize(
    "changed, said",
    [
        (("--lora_alpha=8",), "alpha is 16.0 there and 8.0 in this run"),
        (("--seed=4",), "seed is 3 there and 4 in this run"),
        (("--target_modules", "fc1"), "layers is"),
        (("--lora",), "method is xgblora there and lora in this run"),
        (("--lora", "--lora_r=2"), "method is xgblora there and lora in this run"),
        (("--trainer=regular",), "trainer is zo there and regular in this run"),
    ],
)
def test_resuming_another_run_is_refused_in_one_line(whole, run_in, tmp_path, capsys, changed, said):
    checkpoint = whole("zo, merged by steps").folder / "checkpoint-10"
    with pytest.raises(SystemExit) as exit:
        run_in(tmp_path / "r", "--max_steps=16", f"--resume_from_checkpoint={checkpoint}", *changed)
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"resume_from_checkpoint={checkpoint}" in line
    assert said in line
    assert not (tmp_path / "r").exists()


def test_resuming_lora_with_another_rank_is_refused(whole, run_in, tmp_path, capsys):
    checkpoint = whole("zo, LoRA").folder / "checkpoint-10"
    with pytest.raises(SystemExit):
        run_in(tmp_path / "r", "--lora", "--lora_r=4", f"--resume_from_checkpoint={checkpoint}")
    (line,) = capsys.readouterr().err.splitlines()
    assert "rank is 2 there and 4 in this run" in line


@pytest.mark.parametrize("state", ["missing", "empty", "torn", "without trainer_state.json"])
def test_a_checkpoint_that_is_none_is_refused_in_one_line(whole, run_in, tmp_path, capsys, state):
    checkpoint = tmp_path / "checkpoint-10"
    if state == "empty":
        checkpoint.mkdir()
    elif state != "missing":
        shutil.copytree(whole("zo, merged by steps").folder / "checkpoint-10", checkpoint)
    if state == "torn":
        content = (checkpoint / "adapters.safetensors").read_bytes()
        (checkpoint / "adapters.safetensors").write_bytes(content[: len(content) // 2])
    if state == "without trainer_state.json":
        (checkpoint / "trainer_state.json").unlink()
    with pytest.raises(SystemExit) as exit:
        run_in(tmp_path / "r", "--max_steps=16", f"--resume_from_checkpoint={checkpoint}")
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"resume_from_checkpoint={checkpoint}" in line
    assert not (tmp_path / "r").exists()


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


def test_old_checkpoints_go_with_save_total_limit(run_in, tmp_path):
    run = run_in(
        tmp_path / "run", "--max_steps=9", "--num_dev=0", "--save_strategy=epoch", "--save_total_limit=1"
    )  # fmt: skip
    assert [path.name for path in run.folder.glob("checkpoint-*")] == ["checkpoint-9"]
    state = json.loads((run.folder / "checkpoint-9" / "trainer_state.json").read_text())
    assert state["global_step"] == 9
