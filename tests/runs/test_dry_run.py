"""`--dry_run`: what it says beforehand is what a run does, and it writes nothing."""

import pytest

from xgblora.cli.train import parse
from xgblora.runs import forecast
from xgblora.runs.plan import plan
from xgblora.runs.prepare import prepare
from xgblora.scoring.packing import positions_of
from xgblora.spelling import memory_size

BY_STEPS = ("--xgblora", "--xgblora_steps_per_iteration=10", "--max_steps=40")


@pytest.fixture
def dry(train_tiny, tmp_path, capsys):
    """A function `(*flags)` that runs dry into a folder that is not there; the lines that it printed."""

    def lines(*flags: object) -> list[str]:
        train_tiny(tmp_path / "run", "--dry_run", *flags)
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.fixture
def foreseen(tiny_flags, tmp_path):
    """A function `(*flags)` that gives the trainer, the course, the batches and the memory of a run."""

    def look(*flags: str):
        flags = [*tiny_flags, f"--output_dir={tmp_path / 'run'}", "--dry_run", *flags]
        trainer = prepare(plan(*parse(flags))).trainer
        course = forecast.course_of(trainer)
        batches = forecast.training_batches(trainer, course.last)
        return (
            trainer,
            course,
            batches,
            forecast.memory_of_run(trainer, batches, forecast.expected_boosters(trainer, course)),
        )

    return look


def test_it_says_what_is_to_come(dry):
    lines = dry(*BY_STEPS)
    for line in (
        "Actual rank used: 1 (forced to 1 for XGBLoRA)",
        "Merge rule in force: merge every 10 steps",
        "Optimizer steps: 40 (13.33 epochs of 3 steps)",
        "Merges to come: 4 (step 10, step 20, step 30, ...)",
        "Trainable parameters: 256",
        "Forwards a step: 2",
        "Checkpoints: none (--save_strategy no)",
    ):
        assert lines.count(line) == 1, line
    assert sum(line.startswith("Memory at the peak: ") for line in lines) == 1


def test_by_epochs_with_accumulation_one_sided(dry):
    lines = dry(
        *("--max_steps=5", "--xgblora_merge_frequency=2", "--gradient_accumulation_steps=2"),
        *("--no_zo_two_sided", "--zo_directions=3", "--save_strategy=steps", "--save_steps=2", "--save_total_limit=1"),
    )
    assert "Optimizer steps: 5 (2.5 epochs of 2 steps)" in lines
    assert "Merges to come: 1 (epoch 2); the last adapter is merged when training has ended" in lines
    assert "Forwards a step: 8" in lines
    (checkpoints,) = (line for line in lines if line.startswith("Checkpoints: every 2 steps, "))
    assert checkpoints.endswith("the last 1 are kept")


def test_plain_lora_by_backpropagation_and_a_run_that_trains_nothing(dry):
    lines = dry("--lora", "--lora_r=2", "--trainer=regular", "--max_steps=3")
    assert "Merges to come: 0; the last adapter is merged when training has ended" in lines
    assert "Forwards a step: 1, and as many backwards" in lines
    assert any("activations and gradients" in line for line in lines)
    lines = dry("--trainer=none")
    assert not any(line.startswith(("Optimizer steps", "Memory of the adapters")) for line in lines)
    assert any(line.startswith("Memory of the base weights: ") for line in lines)


def test_the_steps_merges_and_files_foreseen_are_those_of_the_run(foreseen, merged_by_steps):
    trainer, course, _, memory = foreseen(*BY_STEPS)
    assert (course.last, course.merges, course.leftover) == (40, len(merged_by_steps.merge_lines), 0)
    disk = forecast.disk_space(trainer, course, memory)
    folder = merged_by_steps.folder
    assert disk.tape == (folder / "tape.bin").stat().st_size
    # a safetensors file has a header
    assert 0 < (folder / "boosters.safetensors").stat().st_size - disk.boosters < 4096
    assert 0 < (folder / "model" / "model.safetensors").stat().st_size - disk.model < 8192
    assert memory.weights == disk.model


@pytest.mark.parametrize("start", ["data", "residual"])
def test_what_measured_starts_take_on_the_disk_is_foreseen(foreseen, run, start):
    flags = ("--xgblora_steps_per_iteration=2", "--max_steps=8", f"--xgblora_reinit={start}", "--num_dev=0")
    trainer, course, _, memory = foreseen(*flags)
    assert not trainer.booster.measured_starts, "nothing is measured"
    disk, folder = forecast.disk_space(trainer, course, memory), run(*flags).folder
    tape, ledger = ((folder / name).stat().st_size for name in ("tape.bin", "boosters.safetensors"))
    # four starts of 128 numbers of 16 bits, those of layers that read one input the same; one deflates like another
    assert abs(disk.tape - tape) < 4 * 16
    assert disk.tape < trainer.tape.size_after(8, 4, 256)
    assert 0 < ledger - disk.boosters < 4096


def test_a_resumed_run_has_the_rest_before_it(foreseen, dry, run):
    saving = ("--save_strategy=steps", "--save_steps=2")
    flags = ("--xgblora_steps_per_iteration=2", "--max_steps=4", "--num_dev=0")
    begun = run(*flags, *saving).folder / "checkpoint-2"
    lines = dry(*flags, f"--resume_from_checkpoint={begun}")
    assert "Optimizer steps: 2, from step 2 to 4 (1.333 epochs of 3 steps in all)" in lines
    assert "Merges to come: 1 (step 4)" in lines


def test_memory_is_counted(foreseen):
    trainer, _, batches, memory = foreseen("--trainer=regular", "--max_steps=3")
    parameters = trainer.adapters.num_parameters()
    # AdamW: two moments in fp32, and a step count for each of 8 tensors
    assert memory.optimizer == 2 * 4 * parameters + 4 * 8
    # the base lies in the model's file
    assert memory.host == trainer.adapters.arena.master.nbytes
    assert batches.most_tokens == positions_of(batches.largest) >= batches.tokens
    *_, without_backward = foreseen("--max_steps=3", "--zo_pairing=sequential")
    assert without_backward.optimizer == 0
    assert memory.step > 1.5 * without_backward.step > 0
    assert memory.device > memory.weights + memory.step


def test_what_the_step_holds_grows_with_the_batch(foreseen):
    steps = [foreseen("--max_steps=3", f"--per_device_train_batch_size={size}") for size in (2, 12)]
    (*_, few, little), (*_, many, much) = steps
    assert much.step / little.step == pytest.approx(many.most_tokens / few.most_tokens, rel=0.35)
    assert memory_size(much.step).endswith("iB")
