"""What a run leaves in its output folder. Growing files hold whole lines; the others appear whole or not at all."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from xgblora.atomic_file import remove_leftovers, write_text
from xgblora.errors import InputError
from xgblora.records import checkpoint


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, by name."""

    path: Path

    @property
    def metrics(self) -> Path:
        """Results and the resolved configuration."""
        return self.path / "metrics.json"

    @property
    def step_loss(self) -> Path:
        """`step,loss`, one line an optimizer step, full precision."""
        return self.path / "step_loss.csv"

    @property
    def training_loss(self) -> Path:
        """One JSON object a log entry."""
        return self.path / "training_loss.jsonl"

    @property
    def eval_loss(self) -> Path:
        """One JSON object an evaluation."""
        return self.path / "eval_loss.jsonl"

    @property
    def merges(self) -> Path:
        """One JSON object a merge."""
        return self.path / "merges.jsonl"

    @property
    def predictions(self) -> Path:
        """One JSON object a held-out example: what the model answered in the end."""
        return self.path / "predictions.jsonl"

    @property
    def step_reward(self) -> Path:
        """A line for each step of a population: its rewards, full precision."""
        return self.path / "step_reward.csv"

    @property
    def eval_reward(self) -> Path:
        """One JSON object an evaluation of held-out prompts."""
        return self.path / "eval_reward.jsonl"

    @property
    def completions(self) -> Path:
        """Samples of completions with their rewards, one JSON object each."""
        return self.path / "completions.jsonl"

    @property
    def reward_figure(self) -> Path:
        """The reward by step."""
        return self.path / "reward.png"

    @property
    def ledger(self) -> Path:
        """The boosters, safetensors."""
        return self.path / "boosters.safetensors"

    @property
    def tape(self) -> Path:
        """All that a zeroth-order run decided."""
        return self.path / "tape.bin"

    @property
    def figure(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    @property
    def rounds_figure(self) -> Path:
        """Held-out loss and accuracy by boosting round."""
        return self.path / "rounds.png"

    @property
    def base(self) -> Path:
        """The digest of the base model, and of which files it was taken."""
        return self.path / "base.json"

    @property
    def log(self) -> Path:
        """What the terminal showed."""
        return self.path / "train.log"

    @property
    def model(self) -> Path:
        """The trained model, a folder that `from_pretrained` loads."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """The boosters as a LoRA adapter for PEFT, where the weights cannot be written (quantised)."""
        return self.path / "adapter"

    @property
    def _written_whole(self) -> tuple[Path, ...]:
        """The files that are written under a temporary name, some of them to grow afterwards."""
        growing = (self.step_loss, self.training_loss, self.eval_loss, self.merges, self.tape)
        of_rewards = (self.step_reward, self.eval_reward, self.completions, self.reward_figure)
        whole = (self.metrics, self.predictions, self.ledger, self.figure, self.rounds_figure, self.base)
        return (*growing, *of_rewards, *whole)

    def refuse_if_used(self) -> None:
        """Raise InputError if the folder holds a run already."""
        begun = (self.metrics, self.step_loss, self.training_loss, self.step_reward)
        used = [file.name for file in begun if file.exists()]
        used += [folder.name for folder in checkpoint.checkpoints_in(self.path)]
        if used:
            raise InputError(
                f"output_dir={self.path}: holds a run already ({used[0]}); choose another, or give --overwrite"
            )

    def refuse_if_finished(self) -> None:
        """Raise InputError if the folder holds a run that came to its end and nothing to go on from."""
        if self.metrics.exists():
            raise InputError(
                f"resume_from_checkpoint=last: {self.path} holds a finished run and no checkpoint; choose another "
                "output_dir, or give --overwrite"
            )

    def clear(self, *, keep_up_to: int) -> None:
        """Remove the checkpoints of an earlier run past step `keep_up_to`, and its files if that is 0.

        Its model stays until it is replaced.
        """
        # first, so that `last` does not take one for a checkpoint of the run to come
        checkpoint.remove_newer(self.path, keep_up_to)
        if keep_up_to:
            return
        for file in (*self._written_whole, self.log):
            file.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half written under a temporary name."""
        checkpoint.remove_leftovers_in(self.path)
        for place in (*self._written_whole, self.model, self.adapter):
            remove_leftovers(self.path, place.name)

    def write_metrics(self, metrics: dict) -> None:
        """Write `metrics.json`."""
        write_text(self.metrics, json.dumps(metrics, indent=2) + "\n")


def entries_of(path: Path) -> list[dict]:
    """The objects in a file of one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def unused_folder(root: Path, name: str) -> Path:
    """`root/name`, or the first of `root/name-2`, `root/name-3`, ... that does not exist yet."""
    candidate, number = root / name, 2
    while candidate.exists():
        candidate, number = root / f"{name}-{number}", number + 1
    return candidate


def refuse_unwritable(folder: Path, about: str | None = None) -> None:
    """Raise InputError if `folder` cannot be made or written into; `about` begins its line, else the flag of a run."""
    about = about or f"output_dir={folder}"
    if folder.is_file():
        raise InputError(f"{about}: is a file")
    nearest = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"{about}: cannot be made, {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{about}: cannot be written, {nearest} is read-only")
