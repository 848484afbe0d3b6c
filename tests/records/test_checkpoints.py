"""A run that is stopped and resumed goes on as if it had not been stopped."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from xgblora.boosting import Ledger
from xgblora.errors import InputError
from xgblora.records import checkpoint
from xgblora.records.run_folder import RunFolder
from xgblora.training import XGBLoRAArguments, XGBLoRATrainer

SAVING = ("--save_strategy=steps", "--save_steps=10")
# 3 batches an epoch: the checkpoint at step 10 lies inside an epoch and right after a merge at step 10 or 9
CASES = {
    "zo, merged by steps": ("--trainer=zo", "--xgblora_steps_per_iteration=5"),
    "zo, merged by epochs": ("--trainer=zo", "--xgblora_merge_frequency=1"),
    # the checkpoint at step 10 lies inside a round, whose moments it must hold
    "zo, Adam, merged by steps": ("--trainer=zo", "--xgblora_steps_per_iteration=4", "--zo_optimizer=adam"),
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
    seal = checkpoint.seal

    def observed(folder, *arguments, **keywords):
        path = RunFolder(folder.parent).step_loss
        rows_at_checkpoint.append(len(path.read_text().splitlines()) - 1)
        return seal(folder, *arguments, **keywords)

    monkeypatch.setattr(checkpoint, "seal", observed)
    run_in(tmp_path / "run", "--max_steps=7", "--logging_steps=100", "--num_dev=0", *when)
    assert rows_at_checkpoint == rows


def test_the_files_that_a_run_needs_to_go_on_are_called_as_transformers_calls_them():
    ours = set(checkpoint._NEEDED_TO_GO_ON) - {"rng_state.pth"}
    assert ours == {OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME}


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
    "evaluated at the start": ("--save_strategy=steps", "--save_steps=3", "--eval_steps=3", "--eval_on_start"),
    "bf16, rounded stochastically": (
        *("--save_strategy=steps", "--save_steps=3", "--dtype=bfloat16"),
        *("--rounding=stochastic", "--xgblora_steps_per_iteration=2"),
    ),
}


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


def test_the_checkpoint_of_an_epoch_s_last_step_holds_its_evaluation(run):
    whole = run("--xgblora_merge_frequency=1", "--max_steps=7", *SCHEDULES["saved by steps, the rest by epochs"])
    (booster,) = Ledger.load(whole.folder / "checkpoint-3" / "boosters.safetensors").boosters
    assert booster.held_out_loss == whole.entries("eval_loss.jsonl")[0]["eval_loss"]


class TestLast:
    """--resume_from_checkpoint last."""

    FLAGS = ("--max_steps=6", "--num_dev=0", "--save_strategy=steps", "--save_steps=2")

    def test_it_begins_a_new_run_in_an_empty_folder(self, run, run_in, tmp_path):
        begun = run_in(tmp_path / "run", *self.FLAGS, "--resume_from_checkpoint=last")
        assert "no whole checkpoint: starting from the beginning" in begun.log
        assert_same_run(begun, run(*self.FLAGS), after=0)

    def test_it_begins_again_where_a_run_was_killed_before_its_first_checkpoint(self, run, run_in, tmp_path):
        killed = tmp_path / "run"
        killed.mkdir()
        (killed / "step_loss.csv").write_text("step,loss\n1,5.0\n")
        (killed / "merges.jsonl").write_text('{"round": 1')
        assert_same_run(run_in(killed, *self.FLAGS, "--resume_from_checkpoint=last"), run(*self.FLAGS), after=0)

    def test_a_finished_run_gives_the_same_results_again_and_again(self, run, run_in, tmp_path):
        folder = tmp_path / "run"
        shutil.copytree(run(*self.FLAGS).folder, folder)
        for _ in range(2):
            resumed = run_in(folder, *self.FLAGS, "--resume_from_checkpoint=last")
            assert_same_run(resumed, run(*self.FLAGS), after=0)
            assert (folder / "tape.bin").read_bytes() == (run(*self.FLAGS).folder / "tape.bin").read_bytes()

    def test_leftovers_of_killed_writes_are_removed(self, run, run_in, tmp_path):
        killed = copy_as_killed(run(*self.FLAGS), tmp_path / "run", 4)
        for name in (".checkpoint-6.x1", ".model.x1"):
            (killed / name / "checkpoint-6").mkdir(parents=True)
        for name in (".tape.bin.x1.bin", ".metrics.json.x1.json", ".loss.png.x1.png"):
            (killed / name).write_text("half")
        run_in(killed, *self.FLAGS, "--resume_from_checkpoint=last")
        assert [path.name for path in killed.iterdir() if path.name.startswith(".")] == []

    def test_a_finished_run_without_a_checkpoint_is_refused(self, run, run_in, tmp_path, capsys):
        folder = tmp_path / "run"
        shutil.copytree(run("--max_steps=3", "--num_dev=0").folder, folder)
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        self.assert_refused(run_in, capsys, [folder], "holds a finished run and no checkpoint", "--overwrite")
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    def test_it_needs_the_folder_of_the_run(self, run_in, train_tiny, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        self.assert_refused(lambda *flags: train_tiny(None, *flags), capsys, [], "give --output_dir")
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_the_place_of_the_folder_is_refused(self, run_in, tmp_path, capsys):
        (tmp_path / "run").write_text("")
        self.assert_refused(run_in, capsys, [tmp_path / "run"], f"output_dir={tmp_path / 'run'}: is a file")

    def assert_refused(self, run_in, capsys, folder, *said):
        with pytest.raises(SystemExit) as exit:
            run_in(*folder, *self.FLAGS, "--resume_from_checkpoint=last")
        assert exit.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        for part in said:
            assert part in line


class TestOneFolderOneRun:
    """Nothing in a folder is of another run, or of a future that is being trained anew."""

    FLAGS = ("--max_steps=6", "--num_dev=0", "--save_strategy=steps", "--save_steps=2")

    def test_resuming_an_older_checkpoint_beside_newer_ones_is_refused(self, run, run_in, tmp_path, capsys):
        folder = tmp_path / "run"
        shutil.copytree(run(*self.FLAGS).folder, folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit):
            run_in(folder, *self.FLAGS, f"--resume_from_checkpoint={folder / 'checkpoint-2'}")
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{folder / 'checkpoint-6'} is newer; resume from last" in line
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    def test_resuming_into_a_folder_of_another_run_is_refused(self, run, run_in, tmp_path, capsys):
        folder = tmp_path / "run"
        shutil.copytree(run(*self.FLAGS).folder, folder)
        other = run(*self.FLAGS, "--zo_eps=1e-2").folder
        with pytest.raises(SystemExit):
            run_in(folder, *self.FLAGS, "--zo_eps=1e-2", f"--resume_from_checkpoint={other / 'checkpoint-2'}")
        (line,) = capsys.readouterr().err.splitlines()
        assert f"output_dir={folder}: holds a run already" in line
        resumed = run_in(
            folder, *self.FLAGS, "--zo_eps=1e-2", "--overwrite", f"--resume_from_checkpoint={other / 'checkpoint-2'}"
        )
        assert resumed.losses == run(*self.FLAGS, "--zo_eps=1e-2").losses[2:]
        assert [path.name for path in checkpoint.checkpoints_in(folder)] == ["checkpoint-6", "checkpoint-4"]

    def test_with_overwrite_the_newer_ones_are_removed_before_it_trains(self, run, run_in, tmp_path, monkeypatch):
        """Else a kill would leave `last` a checkpoint whose rows in step_loss.csv are cut off."""
        folder = tmp_path / "run"
        shutil.copytree(run(*self.FLAGS).folder, folder)

        def killed(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(XGBLoRATrainer, "training_step", killed)
            with pytest.raises(SystemExit):
                run_in(folder, *self.FLAGS, "--overwrite", f"--resume_from_checkpoint={folder / 'checkpoint-2'}")
        assert [path.name for path in checkpoint.checkpoints_in(folder)] == ["checkpoint-2"]
        resumed = run_in(folder, *self.FLAGS, "--resume_from_checkpoint=last")
        assert resumed.losses == run(*self.FLAGS).losses

    def test_a_killed_run_with_overwrite_leaves_no_checkpoint_of_the_run_before(
        self, run, run_in, tmp_path, monkeypatch
    ):
        folder = tmp_path / "run"
        shutil.copytree(run(*self.FLAGS).folder, folder)

        def killed(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(XGBLoRATrainer, "training_step", killed)
            with pytest.raises(SystemExit):
                run_in(folder, *self.FLAGS, "--overwrite", "--zo_eps=1e-2")
        resumed = run_in(folder, *self.FLAGS, "--zo_eps=1e-2", "--resume_from_checkpoint=last")
        assert resumed.losses == run(*self.FLAGS, "--zo_eps=1e-2").losses

    def test_a_folder_with_nothing_but_a_checkpoint_is_used_already(self, run, run_in, tmp_path, capsys):
        shutil.copytree(run(*self.FLAGS).folder / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
        with pytest.raises(SystemExit):
            run_in(tmp_path / "run", *self.FLAGS)
        (line,) = capsys.readouterr().err.splitlines()
        assert "holds a run already (checkpoint-2)" in line

    def test_checkpoints_are_rotated_by_step_though_one_was_removed_by_half(self, run_in, tmp_path):
        folder = tmp_path / "run"
        run_in(folder, *self.FLAGS, "--max_steps=4")
        # what a kill while checkpoint-2 was removed leaves: the folder that changed last
        (folder / "checkpoint-2" / "manifest.json").unlink()
        os.utime(folder / "checkpoint-4", (1e9, 1e9))
        run_in(folder, *self.FLAGS, "--save_total_limit=2", "--resume_from_checkpoint=last")
        assert [path.name for path in checkpoint.checkpoints_in(folder)] == ["checkpoint-6", "checkpoint-4"]


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


class TestFromPython:
    """`trainer.train(resume_from_checkpoint=...)`."""

    @pytest.fixture
    def make_trainer(self, make_opt, token_batch, tmp_path):
        """A function that makes a trainer of a tiny model, which saves after every second of 6 steps."""
        batch = token_batch(examples=12, length=8)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        data = [
            {"input_ids": ids, "attention_mask": mask, "labels": label}
            for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], labels, strict=True)
        ]

        def make(folder: str = "run", **flags) -> XGBLoRATrainer:
            settings = {
                "output_dir": str(tmp_path / folder),
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "learning_rate": 1e-2,
                "max_steps": 6,
                "logging_steps": 1,
                "eval_strategy": "no",
                "save_strategy": "steps",
                "save_steps": 2,
                "xgblora_steps_per_iteration": 2,
                "use_cpu": True,
                "disable_tqdm": True,
            }
            args = XGBLoRAArguments(**{**settings, **flags})
            return XGBLoRATrainer(make_opt(), args, train_dataset=data, eval_dataset=data[:4])

        return make

    def test_a_folder_and_true_both_go_on(self, make_trainer, tmp_path):
        whole = make_trainer()
        whole.train()
        for chosen in (str(tmp_path / "run" / "checkpoint-4"), tmp_path / "run" / "checkpoint-4", True):
            checkpoint.remove_newer(tmp_path / "run", 4)
            resumed = make_trainer()
            resumed.train(resume_from_checkpoint=chosen)
            assert torch.equal(resumed.adapters.arena.master, whole.adapters.arena.master)
            assert resumed.tape.to_bytes() == whole.tape.to_bytes()

    def test_true_without_a_whole_checkpoint_is_refused_in_one_line(self, make_trainer, tmp_path):
        with pytest.raises(InputError, match="there is no whole checkpoint in") as error:
            make_trainer().train(resume_from_checkpoint=True)
        assert "\n" not in str(error.value)
        (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
        with pytest.raises(
            InputError, match=r"checkpoint-2: is no whole checkpoint, there is no manifest\.json in it$"
        ):
            make_trainer().train(resume_from_checkpoint=True)

    def test_a_trainer_that_was_interrupted_inside_a_step_goes_on_as_if_it_had_not_been(self, make_trainer, tmp_path):
        """After the first of two batches of step 4, the loss of step 3 not written yet, as it happens in a notebook."""
        whole = make_trainer("whole", logging_steps=100)
        whole.train()
        trainer = make_trainer(logging_steps=100)
        batches, estimate = [], trainer.zo.estimate

        def interrupted(*arguments, **keywords):
            loss = estimate(*arguments, **keywords)
            batches.append(loss)
            return loss

        class Interrupt(TrainerCallback):
            def on_substep_end(self, args, state, control, **kwargs):
                if len(batches) == 7:
                    raise KeyboardInterrupt

        trainer.zo.estimate = interrupted
        trainer.add_callback(Interrupt())
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        trainer.train(resume_from_checkpoint=True)
        assert torch.equal(trainer.adapters.arena.master, whole.adapters.arena.master)
        for name in ("step_loss.csv", "tape.bin", "merges.jsonl"):
            assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_the_tape_on_disk_goes_back_to_the_best_round_too(self, make_trainer, tmp_path):
        trainer = make_trainer(load_best_round_at_end=True, learning_rate=1.0)
        trainer.train()
        assert trainer.best_round < 3
        assert (tmp_path / "run" / "tape.bin").read_bytes() == trainer.tape.to_bytes()

    def test_a_callback_that_asks_for_a_checkpoint_gets_one_with_the_rows_before_it(self, make_trainer, tmp_path):
        class Ask(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_save = state.global_step == 5

        trainer = make_trainer(save_strategy="no", logging_steps=100)
        trainer.add_callback(Ask())
        rows = []
        trainer.add_callback(RowsAtSave(tmp_path / "run" / "step_loss.csv", rows))
        trainer.train()
        assert rows == [5]


class RowsAtSave(TrainerCallback):
    """Counts the rows of a file when a checkpoint was written."""

    def __init__(self, path: Path, rows: list[int]):
        self._path, self._rows = path, rows

    def on_save(self, args, state, control, **kwargs):
        self._rows.append(len(self._path.read_text().splitlines()) - 1)
