"""What a person sees while a run goes on: one bar at the bottom of a terminal, or a line of the log now and then.

There is one bar, and an evaluation is a word in it: two would break each other's lines. Lines of the log come out
above it (`xgblora.runs.console`). Where standard error is no terminal there is no bar, and every logging step is a line
of the log. No colours, and no character that Windows' code pages lack.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from tqdm import tqdm
from transformers import TrainerCallback

from xgblora.boosting import Booster

logger = logging.getLogger("xgblora")

# weight of what went before in the smoothed loss
DECAY = 0.8
# seconds between two drawings
INTERVAL = 0.1
# characters of the longest bar, and of the shortest that says something
LONGEST, SHORTEST = 30, 6
# of a terminal that does not say its width
WIDTH = 80
# what transformers measures of an evaluation beside loss and metrics
OF_SPEED = ("runtime", "per_second", "preparation_time")


@dataclass
class Progress:
    """How far training is.

    Attributes:
        steps: optimizer steps of the whole run.
        first: the step that this process began after.
        begun: when it did, in seconds of a clock.
        metric: the last development metric as it is shown, "accuracy 0.925"; "" before the first.
        measure: what is taken in at logging steps.
    """

    steps: int
    first: int
    begun: float
    metric: str = ""
    measure: str = "loss"
    _sum: float = 0.0
    _weight: float = 0.0

    def add(self, value: float) -> None:
        """Take the mean loss since the last logging step, or what else is measured, into the smoothed one."""
        self._sum = DECAY * self._sum + (1.0 - DECAY) * value
        self._weight = DECAY * self._weight + (1.0 - DECAY)

    def parts(self, step: int, now: float, round: int | None) -> list[str]:
        """What is said at `step`, the most important first; `round` is None in a run without rounds."""
        parts = [f"step {step}/{self.steps}"]
        if self._weight:
            parts.append(f"{self.measure} {self._sum / self._weight:.4f}")
        if round is not None:
            parts.append(f"round {round}")
        if self.metric:
            parts.append(self.metric)
        if step > self.first and now > self.begun:
            pace = (step - self.first) / (now - self.begun)
            parts += [f"{pace:.{2 if pace < 1 else 1}f} steps/s", f"{_clock((self.steps - step) / pace)} left"]
        return parts


def fitted(parts: Sequence[str], share: float, width: int) -> str:
    """As many of the first `parts` as a line of `width` characters holds, and a bar up to `share` in what is left."""
    kept = len(parts)
    while kept > 1 and len(", ".join(parts[:kept])) > width:
        kept -= 1
    text = ", ".join(parts[:kept])[:width]
    room = min(width - len(text) - len(" []"), LONGEST)
    if room < SHORTEST:
        return text
    done = int(room * share)
    return f"{text} [{'#' * done}{'.' * (room - done)}]"


class Bar:
    """The one line at the bottom of a terminal; nothing where standard error is none, or unless it is `shown`."""

    def __init__(self, *, shown: bool = True):
        self._bar: tqdm | None = None
        self._shown, self._drawn = shown, 0.0

    def draw(self, parts: Sequence[str], share: float) -> None:
        """Draw `parts` and a bar up to `share`, if the last drawing is long enough ago."""
        now = time.monotonic()
        if not self._shown or now - self._drawn < INTERVAL or not _is_terminal(sys.stderr):
            return
        self._drawn = now
        if self._bar is None:
            # tqdm's part is to keep the line below those that its `write` prints; where a terminal
            # says that it has no rows, as consoles of containers do, it would draw nothing
            self._bar = tqdm(bar_format="{desc}", file=sys.stderr, nrows=2)
        # one character less: some terminals begin a new line behind the last one
        self._bar.set_description_str(fitted(parts, share, _width(sys.stderr) - 1))

    def end(self, parts: Sequence[str], share: float) -> None:
        """Draw once more, if anything was drawn, and leave the line there."""
        if self._bar is not None:
            self._drawn = 0.0
            self.draw(parts, share)
        self.close(leave=True)

    def close(self, leave: bool = False) -> None:
        """Take the line away, or `leave` it."""
        if self._bar is not None:
            self._bar.leave = leave
            self._bar.close()
            self._bar = None


class ShowProgress(TrainerCallback):
    """Show how training goes, in place of transformers' own bars.

    Args:
        booster: whose rounds are named; None in a run without rounds.
    """

    def __init__(self, booster: Booster | None):
        self._booster = booster
        self._progress: Progress | None = None
        self._bar = Bar()
        self._batches = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._progress = Progress(state.max_steps, state.global_step, time.monotonic())

    def on_step_end(self, args, state, control, **kwargs):
        self._draw(state)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self._batches += 1
        of_all = f"/{len(eval_dataloader)}" if hasattr(eval_dataloader, "__len__") else ""
        self._draw(state, f"evaluating {self._batches}{of_all}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._progress is None or "loss" not in (logs or {}):
            return
        self._progress.add(logs["loss"])
        if not _is_terminal(sys.stderr):
            logger.info(", ".join(self._parts(state)))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self._batches = 0
        if self._progress is None:
            self._bar.close()
            return
        measured = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items() if _is_metric(name)}
        said = [f"{name} {value:.4f}" for name, value in measured.items()]
        logger.info("XGBLoRA: Evaluated at step %d: %s", state.global_step, ", ".join(said))
        if said:
            self._progress.metric = next((part for part in said if not part.startswith("loss ")), f"dev {said[0]}")

    def on_train_end(self, args, state, control, **kwargs):
        self._bar.end(self._parts(state), _share(state))
        self._progress = None

    def _parts(self, state) -> list[str]:
        if self._progress is None:
            return []
        round = self._booster.round if self._booster is not None else None
        return self._progress.parts(state.global_step, time.monotonic(), round)

    def _draw(self, state, *doing: str) -> None:
        parts = self._parts(state)
        self._bar.draw([*parts[:1], *doing, *parts[1:]], _share(state))


class ShowRewards:
    """Show how a run by rewards goes.

    Args:
        steps, first: of the whole run, and the one that this process began after.
        shown: whether a person wants it.
    """

    def __init__(self, steps: int, first: int, *, shown: bool):
        self._progress = Progress(steps, first, time.monotonic(), measure="reward")
        self._bar = Bar(shown=shown)

    def step(self, number: int, mean: float) -> None:
        """Show step `number`, whose members got `mean`; NaN where all failed."""
        if math.isfinite(mean):
            self._progress.add(mean)
        self._bar.draw(self._parts(number), number / self._progress.steps)

    def held_out(self, reward: float) -> None:
        """Take in what held-out prompts gave."""
        self._progress.metric = f"held-out {reward:.4f}"

    def end(self, number: int) -> None:
        """Leave the line as it is after step `number`."""
        self._bar.end(self._parts(number), number / self._progress.steps)

    def _parts(self, number: int) -> list[str]:
        return self._progress.parts(number, time.monotonic(), None)


def _share(state) -> float:
    return state.global_step / state.max_steps if state.max_steps > 0 else 0.0


def _is_metric(name: str) -> bool:
    return name.startswith("eval_") and not name.endswith(OF_SPEED)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or WIDTH
    except OSError:
        return WIDTH


def _clock(seconds: float) -> str:
    """ "1:23:45" or "23:45"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
