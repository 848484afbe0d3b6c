"""What happens beside the training loop: merging, and the last checkpoint of an epoch."""

import logging
from collections.abc import Callable

from transformers import TrainerCallback

from xgblora.boosting import AdaptiveMerging, Booster, FullFineTuning, MergeOverflow, MergePolicy
from xgblora.boosting.early_stopping import best_of, has_stalled
from xgblora.boosting.shrinkage import Shrinkage

logger = logging.getLogger("xgblora")


class MergeCallback(TrainerCallback):
    """Merge and reinitialise when the policy says so.

    It acts after an optimizer step, before transformers logs, evaluates or saves there, so that a checkpoint at a merge
    holds the merge. The end of an epoch is its last step: `state.epoch` is then a whole number. By the adaptive rule it
    acts after an evaluation, which comes before the checkpoint of that step too; as does early stopping. What a round
    starts with is measured before its first step.
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

    def on_step_begin(self, args, state, control, **kwargs):
        # not where the round before was merged: perhaps no step follows
        if self._booster.awaits_start:
            self._booster.begin()
            if self._adaptive is not None:
                # what the round starts from is its first candidate
                self._adaptive.keep()

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        if self._adaptive is not None and self._adaptive.at_its_limit(state.global_step):
            control.should_evaluate = True
        if not self._policy.due(state.global_step, state.epoch):
            return
        factor, loss = self._shrinkage.choose(self._booster.adapters, self._held_out_loss)
        if self._merges(state, "", held_out_loss=loss, shrinkage=factor):
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
        about = f" ({best}, held-out loss {ended.loss:.4f}, smoothed {ended.smoothed:.4f})"
        self._adaptive.take()
        self._merges(state, about, held_out_loss=ended.loss, kept_step=ended.kept_step)
        self._adaptive.begin(state.global_step, ended.loss, ended.kept_step)

    def _merges(self, state, about: str, **how) -> bool:
        """Merge, and log it with what there is to say `about` it; an adapter that a weight cannot take trains on."""
        place = self._policy.place(state.global_step, state.epoch)
        try:
            self._booster.merge(step=state.global_step, epoch=state.epoch, begins=False, **how)
        except MergeOverflow as error:
            logger.warning("XGBLoRA: Not merging at %s: %s; the adapter trains on", place, error)
            return False
        logger.info("XGBLoRA: Merging and reinitializing at %s%s", place, about)
        return True


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
