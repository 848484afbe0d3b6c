"""`MergePolicy`: the one object that says when an adapter is merged. Exactly one rule is in force."""

from dataclasses import dataclass

from xgblora.errors import InputError


@dataclass(frozen=True)
class MergePolicy:
    """When to merge.

    Attributes:
        rule: "steps", "epochs" or "none".
        every: number of steps or epochs between merges; 0 for "none".
        ignored: what the other flag said, in one line, if it was set and does not count; else None.
    """

    rule: str
    every: int
    ignored: str | None = None

    @classmethod
    def from_flags(cls, *, steps_per_iteration: int = 0, merge_frequency: int = 0) -> "MergePolicy":
        """The rule that the two flags select: steps if `steps_per_iteration` > 0, else epochs, else none.

        Raises:
            InputError: a flag is negative or not a whole number.
        """
        _check("xgblora_steps_per_iteration", steps_per_iteration)
        _check("xgblora_merge_frequency", merge_frequency)
        if steps_per_iteration > 0:
            ignored = None
            if merge_frequency > 0:
                ignored = (
                    f"xgblora_merge_frequency={merge_frequency} is ignored: merging by steps never merges at epochs"
                )
            return cls("steps", steps_per_iteration, ignored)
        if merge_frequency > 0:
            return cls("epochs", merge_frequency)
        return cls("none", 0)

    def due(self, step: int, epoch: float) -> bool:
        """Whether to merge after optimizer step `step` (counted from 1), at which `epoch` epochs are done.

        Only a whole epoch is an epoch: a fractional `epoch` never merges, so a run that ends inside one does not.
        """
        if self.rule == "steps":
            return step % self.every == 0
        if self.rule == "epochs":
            return epoch == int(epoch) and int(epoch) % self.every == 0
        return False

    def merges_within(self, max_steps: int, steps_per_epoch: int) -> int:
        """How many merges a run of `max_steps` optimizer steps makes."""
        if self.rule == "steps":
            return max_steps // self.every
        if self.rule == "epochs":
            return max_steps // steps_per_epoch // self.every
        return 0

    def place(self, step: int, epoch: float) -> str:
        """Where a merge happens, as the log says it: "step 100" or "epoch 3"."""
        return f"step {step}" if self.rule == "steps" else f"epoch {round(epoch)}"

    def __str__(self) -> str:
        if self.rule == "none":
            return "no merge during training"
        unit = self.rule[:-1] if self.every == 1 else self.rule
        return f"merge every {unit}" if self.every == 1 else f"merge every {self.every} {unit}"


def _check(flag: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{flag}={value}: must be a whole number, 0 or more")
