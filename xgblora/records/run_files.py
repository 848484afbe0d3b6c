"""The files of a run that grow as training goes: losses, evaluations, merges and the tape."""

import json

import torch
from transformers import TrainerCallback

from xgblora.atomic_file import sync_file, write_text
from xgblora.boosting import Booster, FullFineTuning, MergePolicy
from xgblora.records.growing_files import append, append_bytes, cut_csv, cut_jsonl
from xgblora.records.run_folder import RunFolder


class RunFilesCallback(TrainerCallback):
    """Write `step_loss.csv`, `training_loss.jsonl`, `eval_loss.jsonl`, `merges.jsonl` and `tape.bin` as training goes.

    Losses stay on the device until transformers logs or a checkpoint is due, so that a step waits for nothing. A run
    that is resumed keeps the lines up to its checkpoint, which holds the merges and the tape until then.
    """

    def __init__(self, folder: RunFolder, booster: Booster | FullFineTuning, policy: MergePolicy):
        self._folder, self._booster, self._policy = folder, booster, policy
        self._step_losses: list[torch.Tensor] = []
        self._first_step = self._merges_written = self._tape_bytes_written = 0

    def add_loss(self, loss: torch.Tensor) -> None:
        """Take the loss [] of an optimizer step, which is still to end."""
        self._step_losses.append(loss)

    def on_train_begin(self, args, state, control, **kwargs):
        # an earlier `train` of this process may have been interrupted
        self._step_losses.clear()
        keep = self._first_step = state.global_step
        self._folder.remove_leftovers()
        cut_csv(self._folder.step_loss, keep, "step,loss")
        for path in (self._folder.training_loss, self._folder.eval_loss):
            cut_jsonl(path, keep)
        write_text(self._folder.merges, "")
        self._merges_written = 0
        self._flush_merges(keep + 1)
        self.rewrite_tape()

    def before_checkpoint(self, state) -> None:
        """Bring everything up to this step to the disk: a run that goes on from the checkpoint keeps it."""
        self._flush_losses(state)
        for path in (self._folder.step_loss, self._folder.training_loss, self._folder.eval_loss):
            sync_file(path)

    def on_log(self, args, state, control, logs=None, lr_scheduler=None, **kwargs):
        self._flush_losses(state)
        entry = {"step": state.global_step, **(logs or {})}
        # a merge of this very step waits for its evaluation; the run's last entry comes before the best model is loaded
        self._flush_merges(state.global_step + (1 if "train_runtime" in entry else 0))
        if "loss" in entry:
            append(self._folder.training_loss, json.dumps(entry) + "\n")
        elif "eval_loss" in entry and state.global_step > self._first_step:
            rate = lr_scheduler.get_last_lr()[0] if lr_scheduler is not None else args.learning_rate
            append(self._folder.eval_loss, json.dumps({**entry, "learning_rate": rate}) + "\n")

    def on_train_end(self, args, state, control, **kwargs):
        self._flush_losses(state)
        self._flush_merges(state.global_step + 1)
        # whole, because loading the best checkpoint goes back to its tape
        self.rewrite_tape()

    def rewrite_tape(self) -> None:
        """Write the tape whole."""
        if self._booster.tape is not None:
            self._booster.tape.save(self._folder.tape)
            self._tape_bytes_written = len(self._booster.tape.to_bytes())

    def _flush_losses(self, state) -> None:
        if self._step_losses:
            losses = torch.stack(self._step_losses).tolist()
            first = state.global_step - len(losses) + 1
            append(self._folder.step_loss, "".join(f"{first + i},{loss!r}\n" for i, loss in enumerate(losses)))
            self._step_losses.clear()
        self._append_to_tape()

    def _append_to_tape(self) -> None:
        # an evaluation before training is logged too, and then there is no file yet
        if self._booster.tape is not None and self._tape_bytes_written:
            new = self._booster.tape.to_bytes(self._tape_bytes_written)
            append_bytes(self._folder.tape, new)
            self._tape_bytes_written += len(new)

    def _flush_merges(self, before_step: int) -> None:
        boosters = self._booster.boosters[self._merges_written :]
        for booster in [booster for booster in boosters if booster.step < before_step]:
            entry = {
                "round": booster.round,
                "step": booster.step,
                "kept_step": booster.step if booster.kept_step is None else booster.kept_step,
                "epoch": booster.epoch,
                "rule": str(self._policy),
                "scale": booster.scale,
                "held_out_loss": booster.held_out_loss,
            }
            append(self._folder.merges, json.dumps(entry) + "\n")
            self._merges_written += 1
