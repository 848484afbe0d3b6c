"""What happens beside the training loop: merging, the files that grow, the progress bar."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from xgblora.atomic_file import sync_file, write_text
from xgblora.boosting import AdaptiveMerging, Booster, FullFineTuning, MergePolicy
from xgblora.boosting.early_stopping import best_of, has_stalled
from xgblora.boosting.shrinkage import Shrinkage
from xgblora.training.console import logger
from xgblora.training.run_folder import RunFolder


class MergeCallback(TrainerCallback):
    """Merge and reinitialise when the policy says so.

    It acts after an optimizer step, before transformers logs, evaluates or saves there, so that a checkpoint at a merge
    holds the merge. The end of an epoch is its last step: `state.epoch` is then a whole number. By the adaptive rule it
    acts after an evaluation, which comes before the checkpoint of that step too; as does early stopping.
    """

    def __init__(
        self,
        booster: Booster | FullFineTuning,
        policy: MergePolicy,
        adaptive: AdaptiveMerging | None,
        shrinkage: Shrinkage,
        held_out_loss: Callable[[], float],
    ):
        self._booster, self._policy, self._adaptive = booster, policy, adaptive
        self._shrinkage, self._held_out_loss = shrinkage, held_out_loss
        self._training = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._training = True
        if self._policy.ignored:
            logger.info("XGBLoRA: %s", self._policy.ignored)
        if self._adaptive is not None and state.global_step == 0:
            self._adaptive.forget()

    def on_train_end(self, args, state, control, **kwargs):
        self._training = False

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        if self._adaptive is not None and self._adaptive.at_its_limit(state.global_step):
            control.should_evaluate = True
        if not self._policy.due(state.global_step, state.epoch):
            return
        self._log_merge(state)
        factor, loss = self._shrinkage.choose(self._booster.adapters, self._held_out_loss)
        self._booster.merge(step=state.global_step, epoch=state.epoch, held_out_loss=loss, shrinkage=factor)
        forget_moments(optimizer)
        if args.staged_eval:
            control.should_evaluate = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        # an evaluation at the same step comes after the merge, so it measures the round, shrunken or not; but not where
        # the adaptive rule went back to an earlier adapter, whose loss it knows
        if "eval_loss" in (logs or {}):
            self._booster.record_held_out_loss(state.global_step, logs["eval_loss"])

    def on_evaluate(self, args, state, control, metrics=None, optimizer=None, **kwargs):
        if not self._training or "eval_loss" not in (metrics or {}):
            return
        step, loss = state.global_step, metrics["eval_loss"]
        if self._adaptive is not None and self._adaptive.observe(step, loss, last=step >= state.max_steps):
            self._merge_best_of_round(state)
            forget_moments(optimizer)
        boosters = self._booster.boosters
        if has_stalled(boosters, args.early_stopping_rounds):
            best = best_of(boosters)
            logger.info(
                "XGBLoRA: Stopping early at step %d: %s",
                step,
                f"no round after round {best.round} is better than its held-out loss {best.held_out_loss:.4f}"
                if best
                else "no round has a finite held-out loss",
            )
            control.should_training_stop = True

    def _merge_best_of_round(self, state) -> None:
        """Go back to the round's best adapter, merge it, and start the next round from there."""
        ended = self._adaptive.round
        best = f"adapter of step {ended.kept_step}" if ended.improved else "nothing better than the round's start"
        self._log_merge(state, f" ({best}, held-out loss {ended.loss:.4f}, smoothed {ended.smoothed:.4f})")
        self._adaptive.take()
        self._booster.merge(
            step=state.global_step, epoch=state.epoch, held_out_loss=ended.loss, kept_step=ended.kept_step
        )
        self._adaptive.begin(state.global_step, ended.loss, ended.kept_step)

    def _log_merge(self, state, how: str = "") -> None:
        place = self._policy.place(state.global_step, state.epoch)
        logger.info("XGBLoRA: Merging and reinitializing at %s%s", place, how)


class LateCheckpoint(TrainerCallback):
    """Write the checkpoint of an epoch's last step at the end of the epoch, after what is logged and evaluated there.

    A run that goes on from it starts with the next epoch and would never do that. The run's last step ends one too.
    """

    def __init__(self):
        self._due = False

    def on_step_end(self, args, state, control, **kwargs):
        self._due = control.should_save and (state.epoch == int(state.epoch) or control.should_training_stop)
        control.should_save = control.should_save and not self._due

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save = control.should_save or self._due
        self._due = False


def forget_moments(optimizer) -> None:
    """Drop the moments that an optimizer keeps of an adapter that is no more."""
    getattr(optimizer, "optimizer", optimizer).state.clear()


class RunFilesCallback(TrainerCallback):
    """Write `step_loss.csv`, `training_loss.jsonl`, `eval_loss.jsonl`, `merges.jsonl` and `tape.bin` as training goes.

    Losses stay on the device until transformers logs or a checkpoint is due, so that a step waits for nothing. A run
    that is resumed keeps the lines up to its checkpoint, which holds the merges and the tape until then.
    """

    def __init__(
        self, folder: RunFolder, step_losses: list[torch.Tensor], booster: Booster | FullFineTuning, policy: MergePolicy
    ):
        self._folder, self._step_losses, self._booster, self._policy = folder, step_losses, booster, policy
        self._first_step = self._merges_written = self._tape_bytes_written = 0

    def on_train_begin(self, args, state, control, **kwargs):
        keep = self._first_step = state.global_step
        self._folder.remove_leftovers()
        kept = _lines_up_to(keep, self._folder.step_loss, lambda line: int(line.split(",")[0]), heading=1)
        write_text(self._folder.step_loss, "step,loss\n" + kept)
        for path in (self._folder.training_loss, self._folder.eval_loss):
            write_text(path, _lines_up_to(keep, path, lambda line: json.loads(line)["step"]))
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
            _append(self._folder.training_loss, json.dumps(entry) + "\n")
        elif "eval_loss" in entry and state.global_step > self._first_step:
            rate = lr_scheduler.get_last_lr()[0] if lr_scheduler is not None else args.learning_rate
            _append(self._folder.eval_loss, json.dumps({**entry, "learning_rate": rate}) + "\n")

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
            _append(self._folder.step_loss, "".join(f"{first + i},{loss!r}\n" for i, loss in enumerate(losses)))
            self._step_losses.clear()
        self._append_to_tape()

    def _append_to_tape(self) -> None:
        if self._booster.tape is not None:
            new = self._booster.tape.to_bytes(self._tape_bytes_written)
            with open(self._folder.tape, "ab") as file:
                file.write(new)
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
            _append(self._folder.merges, json.dumps(entry) + "\n")
            self._merges_written += 1


class RoundProgress(ProgressCallback):
    """transformers' progress bar, with the loss and the boosting round beside it instead of lines of numbers.

    The bars of evaluations vanish when they are done.
    """

    def __init__(self, booster: Booster | None):
        super().__init__()
        self._booster = booster

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.prediction_bar is None:
            self.prediction_bar = tqdm(total=len(eval_dataloader), leave=False, dynamic_ncols=True, desc="evaluating")
        self.prediction_bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None or "loss" not in (logs or {}):
            return
        shown = {"loss": f"{logs['loss']:.4f}"}
        if self._booster is not None:
            shown["round"] = self._booster.round
        self.training_bar.set_postfix(shown)


def _lines_up_to(last_step: int, path: Path, step_of: Callable[[str], int], *, heading: int = 0) -> str:
    """The lines of a file after its heading, up to `last_step` or the first that a killed process left unreadable."""
    lines = path.read_bytes().split(b"\n")[heading:-1] if path.exists() else []
    kept = []
    for line in lines:
        try:
            text = line.decode("utf-8")
            if step_of(text) > last_step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(text + "\n")
    return "".join(kept)


def _append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
