"""The files of a run by rewards that grow as it goes: rewards of steps and evaluations, and samples of completions."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from xgblora.atomic_file import sync_file
from xgblora.population import Told
from xgblora.records.growing_files import append, cut_csv, cut_jsonl
from xgblora.records.run_folder import RunFolder

_OF_STEP = ("mean", "best", "failed", "sigma", "lr")
_FIRST_COLUMNS = ("step", *_OF_STEP, "truncated")


class RewardFiles:
    """Writes `step_reward.csv`, `eval_reward.jsonl` and `completions.jsonl`, a whole line at a time.

    Args:
        folder: of the run.
        rewards: the names of its rewards, each a column; "reward.mean" is that of one called as another column is.
        keep: the step of the checkpoint that the run goes on from, whose lines are kept; 0 for a new run.
    """

    def __init__(self, folder: RunFolder, rewards: Sequence[str], *, keep: int):
        self._folder, self._rewards = folder, tuple(rewards)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.remove_leftovers()
        cut_csv(folder.step_reward, keep, ",".join((*_FIRST_COLUMNS, *map(_column, self._rewards))))
        for path in (folder.eval_reward, folder.completions):
            cut_jsonl(path, keep)

    def add_step(self, step: int, told: Told, *, truncated: int, rewards: Mapping[str, float]) -> None:
        """Write the line of a step: what was told of it, how many texts were truncated, the mean of each reward."""
        of_step = (getattr(told, name) for name in _OF_STEP)
        values = (step, *of_step, truncated, *(rewards[name] for name in self._rewards))
        append(self._folder.step_reward, ",".join(map(repr, values)) + "\n")

    def add_evaluation(self, entry: Mapping[str, object]) -> None:
        """Write what held-out prompts gave."""
        append(self._folder.eval_reward, json.dumps(entry) + "\n")

    def add_completions(self, step: int, about: str, texts: Sequence[Mapping[str, object]]) -> None:
        """Write samples of what was completed; `about` says by whom."""
        lines = [json.dumps({"step": step, "by": about, **text}) + "\n" for text in texts]
        append(self._folder.completions, "".join(lines))

    def sync(self) -> None:
        """Bring everything to the disk: a run that goes on from a checkpoint keeps it."""
        for path in (self._folder.step_reward, self._folder.eval_reward, self._folder.completions):
            sync_file(path)


def _column(reward: str) -> str:
    return f"reward.{reward}" if reward in _FIRST_COLUMNS else reward


def read_steps(path: Path) -> dict[str, list[float]]:
    """The columns of a `step_reward.csv` by name."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in _FIRST_COLUMNS}
