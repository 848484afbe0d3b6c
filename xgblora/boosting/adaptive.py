"""The adaptive rule: a round ends when the held-out loss stops improving, and its best adapter is what is merged.

The smoothed loss decides when a round ends, the loss itself which adapter was best: the held-out set is the same every
time, so the lowest loss is the best function seen, while a smoothed one lags behind. A round's start is the first
candidate, since its loss is known: what a round made worse is never merged.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from xgblora.boosting.booster import Booster
from xgblora.errors import InputError


@dataclass(frozen=True)
class AdaptiveRule:
    """When a round ends, by its held-out losses; the names are those of the flags after `xgblora_adaptive_`.

    Attributes:
        ema: decay of the exponential moving average of the losses, 0 or more and below 1; 0 smooths nothing.
        patience: evaluations in a row without improvement after which the round ends.
        threshold: least improvement of the smoothed loss that counts, relative to the lowest so far in the round.
        min_steps: optimizer steps before which a round does not end.
        max_steps: optimizer steps after which it does; 0 for no limit.

    Raises:
        InputError: a number is out of range.
    """

    ema: float = 0.5
    patience: int = 2
    threshold: float = 1e-3
    min_steps: int = 0
    max_steps: int = 0

    def __post_init__(self):
        if not 0.0 <= self.ema < 1.0:
            raise InputError(f"xgblora_adaptive_ema={self.ema}: must be 0 or more and below 1")
        if self.patience < 1:
            raise InputError(f"xgblora_adaptive_patience={self.patience}: must be 1 or more")
        if not 0.0 <= self.threshold < math.inf:
            raise InputError(f"xgblora_adaptive_threshold={self.threshold}: must be 0 or more, and finite")
        for name in ("min_steps", "max_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"xgblora_adaptive_{name}={getattr(self, name)}: must be 0 or more")
        if 0 < self.max_steps < self.min_steps:
            raise InputError(
                f"xgblora_adaptive_max_steps={self.max_steps}: must be xgblora_adaptive_min_steps={self.min_steps} "
                "or more, or 0 for no limit"
            )

    def most_rounds(self, steps: int, eval_steps: int) -> int:
        """How many rounds may end within `steps` optimizer steps that are evaluated after every `eval_steps`."""
        # rounds that end between two evaluations have the next one sooner
        shortest = (self.patience - 1) * eval_steps + (1 if self.max_steps else eval_steps)
        shortest = max(shortest, self.min_steps)
        return math.ceil(steps / (min(shortest, self.max_steps) if self.max_steps else shortest))

    def __str__(self) -> str:
        limits = [f"after {self.min_steps} steps or more"] if self.min_steps else []
        limits += [f"after {self.max_steps} steps at the latest"] if self.max_steps else []
        numbers = f"EMA {self.ema:g}, patience {self.patience}, threshold {self.threshold:g}"
        return f"merge the round's best when the held-out loss stops improving ({', '.join([numbers, *limits])})"


@dataclass
class AdaptiveRound:
    """Where a round stands.

    Attributes:
        start_step: optimizer steps before it.
        loss: lowest held-out loss so far; that of the round's start to begin with.
        kept_step: the step whose evaluation measured it; not past `start_step` while nothing was better than the start.
        smoothed: moving average of the losses, the start's to begin with.
        lowest: lowest `smoothed` that counted as an improvement.
        waited: evaluations since then.
        judged_step: the step of the last evaluation that was counted.
    """

    start_step: int
    loss: float
    kept_step: int
    smoothed: float
    lowest: float
    waited: int
    judged_step: int

    @classmethod
    def begin(cls, step: int, loss: float, kept_step: int) -> "AdaptiveRound":
        """A round that starts after `step` from a function whose loss was measured at `kept_step`."""
        # a start that has no finite loss is worse than anything
        loss = loss if math.isfinite(loss) else math.inf
        return cls(step, loss, kept_step, smoothed=loss, lowest=loss, waited=0, judged_step=step)

    @property
    def improved(self) -> bool:
        """Whether an adapter was better than the round's start."""
        return self.kept_step > self.start_step

    def observe(self, rule: AdaptiveRule, step: int, loss: float) -> bool:
        """Count the evaluation after `step`; whether it is the best of the round so far.

        A loss that is not finite is one without improvement, and is not averaged.
        """
        self.judged_step = step
        if math.isfinite(loss):
            known = math.isfinite(self.smoothed)
            self.smoothed = rule.ema * self.smoothed + (1.0 - rule.ema) * loss if known else loss
        # inf - inf is no number, so a first finite one has a case of its own
        wanted = self.lowest - rule.threshold * abs(self.lowest) if math.isfinite(self.lowest) else self.lowest
        if self.smoothed < wanted:
            self.lowest, self.waited = self.smoothed, 0
        else:
            self.waited += 1
        best = loss < self.loss
        if best:
            self.loss, self.kept_step = loss, step
        return best

    def is_over(self, rule: AdaptiveRule) -> bool:
        """Whether the round ends with the last evaluation that was counted."""
        steps = self.judged_step - self.start_step
        impatient = self.waited >= rule.patience and steps >= rule.min_steps
        return impatient or 0 < rule.max_steps <= steps


class AdaptiveMerging:
    """The adaptive rule at work: it keeps the best adapter of the round in training, and gives it back.

    Args:
        booster: whose adapters are watched, and on whose tape it is written when one is kept or taken.
        rule: when a round ends.

    Attributes:
        round: where the round stands; None before the first evaluation, which measures its start.
        kept: fp32 [P], the adapter of the round's best evaluation.
    """

    def __init__(self, booster: Booster, rule: AdaptiveRule):
        self._booster, self.rule = booster, rule
        self.round: AdaptiveRound | None = None
        self.kept: Tensor | None = None

    def begin(self, step: int, loss: float, kept_step: int) -> None:
        """Start a round with the adapter as it stands, see `AdaptiveRound.begin`."""
        self.round = AdaptiveRound.begin(step, loss, kept_step)
        self.keep()

    def observe(self, step: int, loss: float, *, last: bool) -> bool:
        """Count the evaluation after `step`, the very first as that of the round's start; a step counts once.

        Args:
            step: optimizer steps so far.
            loss: the held-out loss.
            last: training ends with this step, and so does the round.

        Returns:
            Whether the round ends here.
        """
        if self.round is None:
            self.begin(step, loss, step)
        if step <= self.round.judged_step:
            return False
        if self.round.observe(self.rule, step, loss):
            self.keep()
        return last or self.round.is_over(self.rule)

    def at_its_limit(self, step: int) -> bool:
        """Whether the round has lasted for the rule's `max_steps` after `step`, and is to be evaluated to end."""
        return self.round is not None and step - self.round.start_step == self.rule.max_steps

    def keep(self) -> None:
        """Let the adapter as it stands be the one that `take` brings back."""
        self.kept = self._booster.adapters.arena.master.clone()
        if self._booster.tape is not None:
            self._booster.tape.record_keep()

    @torch.no_grad()
    def take(self) -> None:
        """Let the adapter that was kept be the one in training."""
        if self._booster.tape is not None:
            self._booster.tape.record_take()
        take_back(self._booster, self.kept)

    def save(self, path: Path) -> None:
        """Write the state as safetensors: `kept`, and the numbers under "round" in the header."""
        if self.round is not None:
            save_file({"kept": self.kept}, path, metadata={"round": json.dumps(asdict(self.round))})

    def load(self, path: Path) -> None:
        """Take up what `save` wrote."""
        with safe_open(path, "pt", device=str(self._booster.adapters.arena.master.device)) as file:
            self.round = AdaptiveRound(**json.loads(file.metadata()["round"]))
            self.kept = file.get_tensor("kept")

    def forget(self) -> None:
        """Be as before the first evaluation."""
        self.round = self.kept = None


def take_back(booster: Booster, kept: Tensor) -> None:
    """Set the adapters in training to `kept`, fp32 [P], without moments: they are of the steps that are undone."""
    arena = booster.adapters.arena
    arena.master.copy_(kept)
    arena.restore()
    arena.forget_moments()
