"""`MergePolicy`: the one object that says when an adapter is merged. Exactly one rule is in force."""

from dataclasses import dataclass

from xgblora.boosting.adaptive import AdaptiveRule
from xgblora.errors import InputError


@dataclass(frozen=True)
class MergePolicy:
    """When to merge.

    Attributes:
        rule: "steps", "epochs", "adaptive", "none", or "each step" where a step is a booster by itself (a population).
        every: number of steps or epochs between merges; 0 for the others.
        ignored: what the other flag said, in one line, if it was set and does not count; else None.
        adaptive: the numbers of the rule "adaptive"; else None.
    """

    rule: str
    every: int
    ignored: str | None = None
    adaptive: AdaptiveRule | None = None

    @classmethod
    def from_flags(
        cls, *, steps_per_iteration: int = 0, merge_frequency: int = 0, adaptive: AdaptiveRule | None = None
    ) -> "MergePolicy":
        """The rule that the flags select: `adaptive` if given, else steps if `steps_per_iteration` > 0, else epochs,
        else none.

        Raises:
            InputError: a flag is negative or not a whole number, or two rules are asked for.
        """
        _check("xgblora_steps_per_iteration", steps_per_iteration)
        _check("xgblora_merge_frequency", merge_frequency)
        if adaptive is not None:
            if steps_per_iteration > 0:
                raise InputError(
                    f"--xgblora_adaptive_merge and --xgblora_steps_per_iteration {steps_per_iteration}: choose one of "
                    "them, only one rule merges"
                )
            return cls("adaptive", 0, _ignored(merge_frequency, "adaptive merging"), adaptive)
        if steps_per_iteration > 0:
            return cls("steps", steps_per_iteration, _ignored(merge_frequency, "merging by steps"))
        if merge_frequency > 0:
            return cls("epochs", merge_frequency)
        return cls("none", 0)

    def due(self, step: int, epoch: float) -> bool:
        """Whether to merge after optimizer step `step` (counted from 1), at which `epoch` epochs are done.

        Only a whole epoch is an epoch: a fractional `epoch` never merges, so a run that ends inside one does not.
        The adaptive rule is never due by the count alone: the evaluations decide (`AdaptiveMerging`).
        """
        if self.rule == "each step":
            return True
        if self.rule == "steps":
            return step % self.every == 0
        if self.rule == "epochs":
            return epoch == int(epoch) and int(epoch) % self.every == 0
        return False

    def merges_within(self, max_steps: int, steps_per_epoch: int) -> int | None:
        """How many merges a run of `max_steps` optimizer steps makes; None where its losses decide."""
        if self.rule == "adaptive":
            return None
        if self.rule == "each step":
            return max_steps
        if self.rule == "steps":
            return max_steps // self.every
        if self.rule == "epochs":
            return max_steps // steps_per_epoch // self.every
        return 0

    def place(self, step: int, epoch: float) -> str:
        """Where a merge happens, as the log says it: "step 100" or "epoch 3"."""
        return f"epoch {round(epoch)}" if self.rule == "epochs" else f"step {step}"

    def __str__(self) -> str:
        if self.rule == "none":
            return "no merge during training"
        if self.rule == "each step":
            return "each step is a booster, merged at once"
        if self.adaptive is not None:
            return str(self.adaptive)
        unit = self.rule[:-1] if self.every == 1 else self.rule
        return f"merge every {unit}" if self.every == 1 else f"merge every {self.every} {unit}"


def _ignored(merge_frequency: int, rule: str) -> str | None:
    if merge_frequency == 0:
        return None
    return f"xgblora_merge_frequency={merge_frequency} is ignored: {rule} never merges at epochs"


def _check(flag: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{flag}={value}: must be a whole number, 0 or more")
