"""What happens beside the training loop: merging, the files that grow, the progress bar."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from xgblora.boosting import Booster, MergePolicy
from xgblora.training.console import logger
from xgblora.training.run_folder import RunFolder


class MergeCallback(TrainerCallback):
    """Merge and reinitialise when the policy says so.

    It acts after an optimizer step, before transformers logs, evaluates or saves there, so that a checkpoint at a merge
    holds the merge. The end of an epoch is its last step: `state.epoch` is then a whole number.
    """

    def __init__(self, booster: Booster, policy: MergePolicy):
        self._booster, self._policy = booster, policy

    def on_train_begin(self, args, state, control, **kwargs):
        if self._policy.ignored:
            logger.info("XGBLoRA: %s", self._policy.ignored)

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        if not self._policy.due(state.global_step, state.epoch):
            return
        place = self._policy.place(state.global_step, state.epoch)
        logger.info("XGBLoRA: Merging and reinitializing at %s", place)
        self._booster.merge(step=state.global_step, epoch=state.epoch)
        forget_moments(optimizer)

    def on_log(self, args, state, control, logs=None, **kwargs):
        # a merge leaves the function as it was, so an evaluation at the same step measures the round
        boosters = self._booster.ledger.boosters
        if boosters and boosters[-1].step == state.global_step and "eval_loss" in (logs or {}):
            boosters[-1] = replace(boosters[-1], held_out_loss=logs["eval_loss"])


def forget_moments(optimizer) -> None:
    """Drop the moments that an optimizer keeps of an adapter that is no more."""
    getattr(optimizer, "optimizer", optimizer).state.clear()


class RunFilesCallback(TrainerCallback):
    """Write `step_loss.csv`, `training_loss.jsonl`, `eval_loss.jsonl` and `merges.jsonl` as training goes.

    Losses stay on the device until transformers logs or saves, so that a step waits for nothing. A resumed run keeps
    the lines up to its checkpoint, which holds the merges until then.
    """

    def __init__(
        self, folder: RunFolder, step_losses: list[torch.Tensor], booster: Booster | None, policy: MergePolicy
    ):
        self._folder, self._step_losses, self._booster, self._policy = folder, step_losses, booster, policy
        self._merges_written = 0

    def on_train_begin(self, args, state, control, **kwargs):
        keep = state.global_step
        lines = _lines(self._folder.step_loss)[1:] if keep else []
        kept = [line for line in lines if int(line.split(",")[0]) <= keep]
        self._folder.path.mkdir(parents=True, exist_ok=True)
        self._folder.step_loss.write_text("\n".join(["step,loss", *kept]) + "\n", encoding="utf-8")
        for path in (self._folder.training_loss, self._folder.eval_loss):
            kept = [line for line in _lines(path) if keep and json.loads(line)["step"] <= keep]
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._folder.merges.write_text("", encoding="utf-8")
        self._merges_written = 0
        self._flush_merges(keep + 1)

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save:
            self._flush_losses(state)

    def on_epoch_end(self, args, state, control, **kwargs):
        if control.should_save:
            self._flush_losses(state)

    def on_log(self, args, state, control, logs=None, lr_scheduler=None, **kwargs):
        self._flush_losses(state)
        entry = {"step": state.global_step, **(logs or {})}
        # a merge of this very step waits for its evaluation; the run's last entry comes before the best model is loaded
        self._flush_merges(state.global_step + (1 if "train_runtime" in entry else 0))
        if "loss" in entry:
            _append(self._folder.training_loss, json.dumps(entry) + "\n")
        elif "eval_loss" in entry and state.global_step > 0:
            rate = lr_scheduler.get_last_lr()[0] if lr_scheduler is not None else args.learning_rate
            _append(self._folder.eval_loss, json.dumps({**entry, "learning_rate": rate}) + "\n")

    def on_train_end(self, args, state, control, **kwargs):
        self._flush_losses(state)
        self._flush_merges(state.global_step + 1)

    def _flush_losses(self, state) -> None:
        if self._step_losses:
            losses = torch.stack(self._step_losses).tolist()
            first = state.global_step - len(losses) + 1
            _append(self._folder.step_loss, "".join(f"{first + i},{loss!r}\n" for i, loss in enumerate(losses)))
            self._step_losses.clear()

    def _flush_merges(self, before_step: int) -> None:
        boosters = self._booster.ledger.boosters[self._merges_written :] if self._booster is not None else []
        for booster in [booster for booster in boosters if booster.step < before_step]:
            entry = {"round": booster.round, "step": booster.step, "epoch": booster.epoch, "rule": str(self._policy)}
            _append(self._folder.merges, json.dumps({**entry, "held_out_loss": booster.held_out_loss}) + "\n")
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


def _lines(path: Path) -> list[str]:
    """The whole lines of a file; one that a killed process left without its end is dropped."""
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []


def _append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
