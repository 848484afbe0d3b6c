"""What `--report_to` gets beside the losses: the projected gradients, what there is in them, and the rounds' steps.

To first order a step of SGD lowers the loss of its batch by `rate * g^2` (SPSA, Spall 1992). In `g^2` is the slope of
all examples, and beside it noise of the batch and curvature, which lower nothing. What the loss really fell by, as a
share of what was promised, is the part that is signal; trust-region methods steer by the same ratio (Conn, Gould and
Toint, 2000).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import TrainerCallback

from xgblora.boosting import Booster, FullFineTuning
from xgblora.boosting.geometry import Path, update_of
from xgblora.tape import StepRecord, Tape

# weight of what went before in the running share
DECAY = 0.9


def root_mean_square(steps: Sequence[StepRecord]) -> float | None:
    """Of the projected gradients of all directions of the steps that moved something; None without any."""
    grads = [value for step in steps if step.applied for value in step.projected_grads]
    return math.sqrt(sum(value * value for value in grads) / len(grads)) if grads else None


def promised(steps: Sequence[StepRecord]) -> float:
    """By how much SGD lowers the loss in these steps, to first order: the sum of `rate * mean(g^2)`."""
    return sum(
        step.lr * sum(value * value for value in step.projected_grads) / len(step.projected_grads)
        for step in steps
        if step.applied
    )


@dataclass
class SignalShare:
    """The running share of what was promised that the loss fell by."""

    _before: float | None = None
    _fallen: float = 0.0
    _promised: float = 0.0

    def add(self, loss: float, promised: float) -> float | None:
        """Take the mean loss since the last call, and what its steps promised; the share, None at first.

        1 where all is signal, 0 where all is noise, less where the steps do harm.
        """
        if self._before is not None and math.isfinite(loss):
            self._fallen = DECAY * self._fallen + self._before - loss
            self._promised = DECAY * self._promised + promised
        if math.isfinite(loss):
            self._before = loss
        return self._fallen / self._promised if self._promised else None


class ReportSignals(TrainerCallback):
    """Hand the signals to what `--report_to` named; neither the log nor the files of the run have them.

    Args:
        reporters: callbacks of transformers that take `logs`.
        booster: whose rounds are measured.
        tape: of the zeroth-order run; None with backpropagation.
    """

    def __init__(self, reporters: Sequence[TrainerCallback], booster: Booster | FullFineTuning, tape: Tape | None):
        self._reporters, self._booster, self._tape = reporters, booster, tape
        self._share, self._path, self._read = SignalShare(), None, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._share, self._path = SignalShare(), None
        # rounds and steps before a checkpoint were reported by the run that wrote it
        self._go_on()
        self._read = self._tape.size if self._tape is not None else 0

    def on_step_end(self, args, state, control, **kwargs):
        values = self._go_on()
        if values:
            self._report(args, state, control, values)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._tape is None or "loss" not in (logs or {}):
            return
        steps = [record for record in self._tape.records(self._read) if isinstance(record, StepRecord)]
        self._read = self._tape.size
        values = {"projected_grad": root_mean_square(steps)}
        if args.zo_optimizer == "sgd" and not args.zo_normalise:
            values["signal_share"] = self._share.add(logs["loss"], promised(steps))
        self._report(args, state, control, values)

    def _go_on(self) -> dict[str, float | None]:
        """What there is to say of the last round, if rounds were merged since the last call."""
        boosters, values = self._booster.boosters, {}
        if boosters and (self._path is None or self._path.rounds > len(boosters)):
            self._path = Path(self._booster.ledger.slots)
        while boosters and self._path.rounds < len(boosters):
            length, cosine = self._path.add(update_of(self._booster.ledger, self._path.rounds))
            values = {"round": self._path.rounds, "update_norm": length, "cosine_to_earlier": cosine}
        return values

    def _report(self, args, state, control, values: dict[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        for reporter in self._reporters:
            reporter.on_log(args, state, control, logs=known)
