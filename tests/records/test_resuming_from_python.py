"""`trainer.train(resume_from_checkpoint=...)`."""

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from xgblora.errors import InputError
from xgblora.records import checkpoint
from xgblora.training import XGBLoRAArguments, XGBLoRATrainer


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
