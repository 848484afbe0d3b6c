"""What a run leaves in its output folder. Growing files hold whole lines; the others appear whole or not at all."""

import json
from dataclasses import dataclass
from pathlib import Path

from xgblora.atomic_file import write_text
from xgblora.errors import InputError


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
    def ledger(self) -> Path:
        """The boosters, safetensors."""
        return self.path / "boosters.safetensors"

    @property
    def figure(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    @property
    def log(self) -> Path:
        """What the terminal showed."""
        return self.path / "train.log"

    @property
    def model(self) -> Path:
        """The trained model, a folder that `from_pretrained` loads."""
        return self.path / "model"

    def refuse_if_used(self) -> None:
        """Raise InputError if the folder holds a run already."""
        if self.path.is_file():
            raise InputError(f"output_dir={self.path}: is a file")
        used = [file.name for file in (self.metrics, self.step_loss, self.training_loss) if file.exists()]
        if used:
            raise InputError(
                f"output_dir={self.path}: holds a run already ({used[0]}); choose another, or give --overwrite"
            )

    def clear(self) -> None:
        """Remove the files of an earlier run; its model and checkpoints stay until they are replaced."""
        growing = (self.step_loss, self.training_loss, self.eval_loss, self.merges, self.log)
        for file in (*growing, self.metrics, self.ledger, self.figure):
            file.unlink(missing_ok=True)

    def write_metrics(self, metrics: dict) -> None:
        """Write `metrics.json`."""
        write_text(self.metrics, json.dumps(metrics, indent=2) + "\n")


def unused_folder(root: Path, name: str) -> Path:
    """`root/name`, or the first of `root/name-2`, `root/name-3`, ... that does not exist yet."""
    candidate, number = root / name, 2
    while candidate.exists():
        candidate, number = root / f"{name}-{number}", number + 1
    return candidate
