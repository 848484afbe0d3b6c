"""What `load_best_round_at_end` does when training is over: the round with the lowest held-out loss is kept."""

import logging
import math

from transformers import Trainer

logger = logging.getLogger("xgblora")


def keep_best_round(trainer: Trainer) -> int | None:
    """Go back to the round of `trainer` with the lowest held-out loss, and say which it is; None where none has one.

    The adapter that is still in training counts as the last round.
    """
    booster = trainer.booster
    losses = {merged.round: merged.held_out_loss for merged in booster.boosters}
    if booster.is_trained():
        losses[len(booster.boosters) + 1] = _held_out_loss_now(trainer)
    known = {round: loss for round, loss in losses.items() if loss is not None and math.isfinite(loss)}
    if not known:
        logger.warning("XGBLoRA: no round has a finite held-out loss; the last one is kept")
        return None
    best = min(known, key=known.get)
    logger.info("XGBLoRA: Keeping round %d of %d (held-out loss %.4f)", best, max(losses), known[best])
    if best < max(losses):
        booster.rollback(round=best)
    return best


def _held_out_loss_now(trainer: Trainer) -> float:
    boosters, step = trainer.booster.boosters, trainer.state.global_step
    if boosters and boosters[-1].step == step and boosters[-1].held_out_loss is not None:
        # nothing was trained since that merge
        return boosters[-1].held_out_loss
    last = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1:]
    if last and last[0]["step"] == step:
        return last[0]["eval_loss"]
    return trainer.evaluate()["eval_loss"]
