"""What a finished run left, read from its folder."""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xgblora.comparison.runs import PlannedRun
from xgblora.records import step_losses
from xgblora.records.run_folder import entries_of
from xgblora.zo import OneSided, TwoSided

# a first-order step is a forward and a backward, which costs about two more
FORWARDS_OF_A_FIRST_ORDER_STEP = 3


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end, and its files."""

    run: PlannedRun

    @cached_property
    def metrics(self) -> dict:
        """`metrics.json`."""
        return json.loads(self.run.folder.metrics.read_text(encoding="utf-8"))

    @cached_property
    def metric(self) -> str:
        """The name of the task's metric: "accuracy"."""
        measured = self.metrics["results"]["trained"]["eval"]
        return next(name for name in measured if name not in ("loss", "examples"))

    def measured(self, examples: str, name: str, when: str = "trained") -> float | None:
        """A number of `metrics.json`, None where there is none.

        Args:
            examples: "dev" or "eval", the held-out set.
            name: the metric, or "loss".
            when: "trained" or "zero_shot".
        """
        value = self.metrics["results"][when].get(examples, {}).get(name)
        return value if value is not None and math.isfinite(value) else None

    @property
    def forwards_per_step(self) -> int:
        """Forwards in an optimizer step, as the run counted those of a batch; of a first-order step its cost."""
        batches = self.run.configuration["gradient_accumulation_steps"]
        if self.run.method.has_gradient:
            return FORWARDS_OF_A_FIRST_ORDER_STEP * batches
        estimator = self.metrics["training"].get("estimator")
        return (estimator["forwards"] if estimator else self._forwards_by_flags) * batches

    @property
    def _forwards_by_flags(self) -> int:
        # a run of before `metrics.json` named the estimator: there were these two
        estimator = TwoSided if self.run.configuration["zo_two_sided"] else OneSided
        return estimator(self.run.configuration["zo_directions"]).forwards

    @property
    def forwards(self) -> int:
        """All of training."""
        return self.metrics["training"]["steps"] * self.forwards_per_step

    @property
    def steps_per_second(self) -> float | None:
        """Of the process that finished it; None if that had no step left to take."""
        return self.metrics["training"]["steps_per_second"] or None

    @property
    def peak_memory(self) -> int | None:
        """Bytes."""
        return self.metrics["peak_memory_bytes"]

    @cached_property
    def step_losses(self) -> np.ndarray:
        """float [T]."""
        return step_losses.read(self.run.folder.step_loss)[1]

    @cached_property
    def step_loss_digest(self) -> str:
        """sha256 of `step_loss.csv`: equal where every loss is, to the last bit."""
        return hashlib.sha256(self.run.folder.step_loss.read_bytes()).hexdigest()

    @cached_property
    def merges(self) -> list[dict]:
        """Of each merge: its step, that of the weights it kept, the held-out (development) loss or None if unknown."""
        # a run of before there were adaptive merges says no kept_step
        entries = [{"kept_step": entry["step"], **entry} for entry in entries_of(self.run.folder.merges)]
        return [{name: entry[name] for name in ("step", "kept_step", "held_out_loss")} for entry in entries]

    @cached_property
    def evaluations(self) -> list[dict]:
        """Step, loss and metric on the development set, the first before training.

        The metric is None of a task whose answers are generated, which training does not do on the way.
        """
        entries = [
            {"step": entry["step"], "loss": entry["eval_loss"], self.metric: entry.get(f"eval_{self.metric}")}
            for entry in entries_of(self.run.folder.eval_loss)
        ]
        before = self.metrics["results"]["zero_shot"].get("dev")
        if before is None:
            return entries
        return [{"step": 0, "loss": before["loss"], self.metric: before[self.metric]}, *entries]
