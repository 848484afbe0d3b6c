"""Advice while there is time: what the figures of a run say about its rate and its eps, in one line, once.

Nothing is read from the device for it. The tape has the projected gradients of the steps by the time that transformers
logs, transformers has the losses, and the rounds have theirs.

How far a rate can lead is said by the gradients. A step of SGD moves by `-rate * g` along a direction in which the loss
rises by g (SPSA, Spall 1992), so that to first order it lowers the loss of its batch by `rate * g^2`. The noise of the
batches is in g too, which makes the sum of it a bound.
"""

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import TrainerCallback

from xgblora.boosting import Booster, FullFineTuning
from xgblora.boosting.early_stopping import best_of, has_stalled
from xgblora.boosting.merged import MergedAdapter
from xgblora.spelling import dtype_name
from xgblora.tape import StepRecord, Tape

logger = logging.getLogger("xgblora")

# steps before the first look; every later one comes after twice as many
FIRST_LOOK = 50
# steps that a look is at
RECENT = 100
# logged losses that say whether the loss rises
FEWEST_LOSSES = 12
ROUNDS = 3


@dataclass(frozen=True)
class Observed:
    """What is known of a run at a logging step.

    Attributes:
        losses: all that were logged, each a mean over some steps.
        steps: the last zeroth-order steps; none of a run with backpropagation.
        rate, eps: as the flags say.
        dtype: of the weights, "float16".
        max_steps: steps of the whole run.
        optimizer: what steps along the estimate, "sgd".
        normalised: the projected gradients are divided by the deviation of the losses.
        reach: how far the losses of a projected gradient lie apart, in eps: 2 on two sides, 1 on one.
    """

    losses: Sequence[float]
    steps: Sequence[StepRecord]
    rate: float
    eps: float
    dtype: str
    max_steps: int
    optimizer: str
    normalised: bool
    reach: float

    @property
    def projected_grads(self) -> list[float]:
        """Of the steps that moved something or could have, all directions."""
        return [value for step in self.steps if step.applied for value in step.projected_grads]


def not_finite(seen: Observed) -> str | None:
    """A tenth of the steps are lost."""
    lost = sum(not step.applied for step in seen.steps)
    if lost * 10 < max(1, len(seen.steps)):
        return None
    return (
        f"{lost} of the last {len(seen.steps)} steps had a loss that is not finite, and moved nothing; try "
        f"--learning_rate {seen.rate / 3:.1g}"
    )


def tied(seen: Observed) -> str | None:
    """In a quarter of the directions the losses are equal to the last bit."""
    grads = seen.projected_grads
    ties = grads.count(0.0)
    if ties * 4 < max(1, len(grads)):
        return None
    return (
        f"in {ties} of the last {len(grads)} directions the perturbed losses are the same, which moves nothing: eps is "
        f"below what {seen.dtype} weights or the objective can tell apart; try --zo_eps {10 * seen.eps:.1g}"
    )


def far_apart(seen: Observed) -> str | None:
    """The losses differ by half of what they are: that is no slope any more."""
    grads = seen.projected_grads
    if seen.normalised or not (grads and seen.losses):
        return None
    apart = seen.reach * seen.eps * statistics.median(map(abs, grads))
    if apart < 0.5 * abs(seen.losses[-1]):
        return None
    return (
        f"the perturbed losses differ by {apart:.3g} where the loss is {seen.losses[-1]:.3g}, too far for a slope; "
        f"try --zo_eps {seen.eps / 10:.1g}"
    )


def rises(seen: Observed) -> str | None:
    """The last quarter of the losses is above the first, by three standard errors and a twentieth."""
    quarter = len(seen.losses) // 4
    if len(seen.losses) < FEWEST_LOSSES:
        return None
    first, last = seen.losses[:quarter], seen.losses[-quarter:]
    before, now = statistics.fmean(first), statistics.fmean(last)
    error = ((statistics.variance(first) + statistics.variance(last)) / quarter) ** 0.5
    if now - before <= max(3 * error, 0.05 * abs(before)):
        return None
    return f"the loss rose from {before:.3g} to {now:.3g}; try --learning_rate {seen.rate / 3:.1g}"


def too_slow(seen: Observed) -> str | None:
    """By the sum of `rate * g^2` the whole run lowers the loss by less than a hundredth of it."""
    grads = seen.projected_grads
    if seen.normalised or seen.optimizer != "sgd" or not (grads and seen.losses and seen.rate):
        return None
    if tied(seen):
        # their zeros say nothing of the slope
        return None
    gain = seen.max_steps * seen.rate * statistics.fmean(value * value for value in grads)
    if gain >= 0.01 * abs(seen.losses[-1]):
        return None
    return (
        f"by the projected gradients so far {seen.max_steps} steps lower the loss of {seen.losses[-1]:.3g} by "
        f"{gain:.1g} at most; try --learning_rate {10 * seen.rate:.1g}"
    )


def stalled(boosters: Sequence[MergedAdapter]) -> str | None:
    """The last three rounds that were measured are no better than the best before them."""
    best = best_of(boosters)
    if best is None or not has_stalled(boosters, ROUNDS):
        return None
    return (
        f"{ROUNDS} rounds brought nothing since round {best.round} (held-out loss {best.held_out_loss:.4f}); try "
        f"--early_stopping_rounds {ROUNDS}, or a smaller --learning_rate"
    )


LOOKS: tuple[Callable[[Observed], str | None], ...] = (not_finite, tied, far_apart, rises, too_slow)


class Advise(TrainerCallback):
    """Log a line with what to try, each kind of it once, at most one at a time.

    Args:
        booster: whose rounds are looked at.
        tape: of the zeroth-order run; None with backpropagation.
        reach: as of `Observed`.
    """

    def __init__(self, booster: Booster | FullFineTuning, tape: Tape | None, reach: float):
        self._booster, self._tape, self._reach = booster, tape, reach
        self._said: set[Callable] = set()
        self._due = self._interval = FIRST_LOOK

    def on_train_begin(self, args, state, control, **kwargs):
        self._due, self._interval = state.global_step + FIRST_LOOK, FIRST_LOOK

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "eval_loss" in (logs or {}) and stalled not in self._said and not args.early_stopping_rounds:
            self._say(stalled, stalled(self._booster.boosters))
        if "loss" in (logs or {}) and self._due <= state.global_step < state.max_steps:
            self._due, self._interval = state.global_step + 2 * self._interval, 2 * self._interval
            seen = self._observed(args, state)
            for look in LOOKS:
                if look not in self._said and self._say(look, look(seen)):
                    break

    def _say(self, look: Callable, advice: str | None) -> bool:
        if advice is not None:
            self._said.add(look)
            logger.warning("Advice: %s", advice)
        return advice is not None

    def _observed(self, args, state) -> Observed:
        records = self._tape.records() if self._tape is not None else ()
        return Observed(
            losses=[entry["loss"] for entry in state.log_history if "loss" in entry],
            steps=[record for record in records if isinstance(record, StepRecord)][-RECENT:],
            rate=args.learning_rate,
            eps=args.zo_eps,
            dtype=dtype_name(self._booster.adapters.compute_dtype),
            max_steps=state.max_steps,
            optimizer=args.zo_optimizer,
            normalised=args.zo_normalise,
            reach=self._reach,
        )
