"""A run that is stopped and resumed goes on as if it had not been stopped."""

import shutil

import pytest
import torch

from tests.records.resumed_runs import CASES, SAVING, SCHEDULES, assert_same_run, copy_as_killed
from xgblora.boosting import Ledger
from xgblora.records import checkpoint


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


@pytest.mark.parametrize(
    "changed, said",
    [
        (("--lora_alpha=8",), "alpha is 16.0 there and 8.0 here"),
        (("--seed=4",), "seed is 3 there and 4 here"),
        (
            ("--target_modules", "fc1"),
            "the adapted layers are model.decoder.layers.0.self_attn.v_proj, model.decoder.layers.0.self_attn.q_proj, "
            "... (4) there and model.decoder.layers.0.fc1, model.decoder.layers.1.fc1 (2) here",
        ),
        (("--learning_rate=1e-3",), "learning_rate is 0.01 there and 0.001 here"),
        (("--zo_optimizer=adam",), "zo_optimizer is sgd there and adam here"),
        (("--lora",), "method is xgblora there and lora here"),
        (("--lora", "--lora_r=2"), "method is xgblora there and lora here"),
        (("--trainer=regular",), "trainer is zo there and regular here"),
    ],
)
def test_resuming_another_run_is_refused_in_one_line(whole, run_in, tmp_path, capsys, changed, said):
    checkpoint = whole("zo, merged by steps").folder / "checkpoint-10"
    flags = (*CASES["zo, merged by steps"], "--max_steps=16")
    with pytest.raises(SystemExit) as exit:
        run_in(tmp_path / "r", *flags, f"--resume_from_checkpoint={checkpoint}", *changed)
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
    assert "rank is 2 there and 4 here" in line


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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_file_goes_on_from_every_checkpoint(run, run_in, tmp_path, schedule):
    flags = ("--xgblora_merge_frequency=1", "--max_steps=7", *SCHEDULES[schedule])
    whole = run(*flags)
    for folder in checkpoint.checkpoints_in(whole.folder)[1:]:
        step = int(folder.name.removeprefix("checkpoint-"))
        killed = copy_as_killed(whole, tmp_path / folder.name, step)
        resumed = run_in(killed, *flags, "--resume_from_checkpoint=last")
        assert f"resuming from {killed / folder.name}" in resumed.log
        assert_same_run(resumed, whole, after=0)
        for name in ("step_loss.csv", "training_loss.jsonl", "merges.jsonl", "boosters.safetensors"):
            assert (killed / name).read_bytes() == (whole.folder / name).read_bytes(), f"{name} from step {step}"
        ours, theirs = ([untimed(entry) for entry in run.entries("eval_loss.jsonl")] for run in (resumed, whole))
        assert ours == theirs


def untimed(entry: dict) -> dict:
    timing = ("_runtime", "_per_second", "_time")
    return {name: value for name, value in entry.items() if not name.endswith(timing)}


def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused(run, run_in, tmp_path, capsys):
    flags = ("--max_steps=4", "--num_dev=0", "--save_strategy=steps", "--save_steps=2")
    folder = run(*flags, "--save_only_model").folder
    with pytest.raises(SystemExit):
        run_in(tmp_path / "r", *flags, f"--resume_from_checkpoint={folder / 'checkpoint-2'}")
    (line,) = capsys.readouterr().err.splitlines()
    assert "was written with --save_only_model" in line
    assert not (tmp_path / "r").exists()


def test_lines_that_a_crash_left_unreadable_after_the_checkpoint_are_dropped(run, run_in, tmp_path):
    """A file system may leave blocks of zeros where a machine lost its power."""
    flags = ("--max_steps=6", "--logging_steps=1", "--eval_steps=2", "--save_strategy=steps", "--save_steps=2")
    whole = run(*flags)
    killed = copy_as_killed(whole, tmp_path / "run", 4)
    for name, rows in (("step_loss.csv", 5), ("training_loss.jsonl", 4), ("eval_loss.jsonl", 2)):
        kept = (killed / name).read_bytes().splitlines(keepends=True)[:rows]
        (killed / name).write_bytes(b"".join(kept) + b"\0" * 99 + b"\n\xff\xfe\n")
    resumed = run_in(killed, *flags, "--resume_from_checkpoint=last")
    assert_same_run(resumed, whole, after=0)
    assert (killed / "training_loss.jsonl").read_bytes() == (whole.folder / "training_loss.jsonl").read_bytes()
