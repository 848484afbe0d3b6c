"""The results file: what each part of each stage found, whole on the disk at any moment.

It is JSON: `format`, `minutes`, `commit`, `started`, `rehearsal`, `install` and `stages`; a stage has
`name`, `title`, `estimate`, `bound`, `state`, `seconds`, `reason` and `parts`; a part `name`, `state`, `seconds`,
`reason`, `records` and, if it is red, `output` with the first and the last lines of what it printed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.gpu.stages import STAGES, Stage
from xgblora.atomic_file import write_text

FORMAT = 1
LINES_KEPT, LINE_LENGTH = 40, 400
# states of a stage and of a part; a stage is `failed` if one of its parts is failed, hung or died, and `partial` if
# some of its parts were not reached
WAITING, RUNNING, PASSED, FAILED, HUNG, DIED, SKIPPED, PARTIAL = (
    *("waiting", "running", "passed", "failed"),
    *("hung", "died", "skipped", "partial"),
)
NOT_REACHED = "not reached"
RED = (FAILED, HUNG, DIED)


@dataclass
class PartResult:
    """What one part found."""

    name: str
    state: str = RUNNING
    seconds: float | None = None
    reason: str = ""
    records: list[dict] = field(default_factory=list)
    output: dict[str, list[str]] | None = None

    def end(self, state: str, seconds: float | None, reason: str = "", output: str | None = None) -> None:
        """Close the part; `output` is what it printed, kept unless it passed."""
        self.state, self.seconds, self.reason = state, seconds, reason
        if state in RED and output is not None:
            self.output = ends_of(output)


@dataclass
class StageResult:
    """What one stage found."""

    name: str
    title: str
    estimate: float
    bound: float
    state: str = WAITING
    seconds: float | None = None
    reason: str = ""
    parts: list[PartResult] = field(default_factory=list)

    @classmethod
    def waiting(cls, stage: Stage) -> "StageResult":
        """Of a stage that has not begun."""
        return cls(stage.name, stage.title, stage.estimate, stage.bound)

    @property
    def running_part(self) -> PartResult | None:
        """The part at work."""
        return next((part for part in self.parts if part.state == RUNNING), None)

    def close(self, seconds: float, announced: Sequence[str] = ()) -> None:
        """The stage is over: its state is that of its parts; those `announced` that are not there were not reached."""
        self.seconds = round(seconds, 2)
        known = {part.name for part in self.parts}
        missing = [PartResult(name, SKIPPED, 0.0, NOT_REACHED) for name in announced if name not in known]
        self.parts += missing
        if self.state == RUNNING:
            self.state = FAILED if any(part.state in RED for part in self.parts) else PARTIAL if missing else PASSED
        skipped = [part.name for part in self.parts if part.state == SKIPPED]
        if self.state == PASSED and skipped and len(skipped) == len(self.parts):
            self.state = SKIPPED
        if skipped:
            self.reason = "; ".join(filter(None, [self.reason, f"skipped: {', '.join(skipped)}"]))


@dataclass
class Results:
    """Everything that the file holds."""

    path: Path
    facts: dict
    stages: list[StageResult]

    def write(self) -> None:
        """Put the file in the place of the one before, whole."""
        content = {"format": FORMAT, **self.facts, "stages": [asdict(stage) for stage in self.stages]}
        write_text(self.path, json.dumps(content, indent=1) + "\n")

    def keep(self, earlier: dict) -> None:
        """Take the stages of an earlier file that this run has not."""
        names = [stage.name for stage in self.stages]
        for stage in earlier["stages"]:
            if stage["name"] not in names and stage["state"] not in (WAITING, RUNNING):
                parts = [PartResult(**part) for part in stage["parts"]]
                self.stages.append(StageResult(**{**stage, "parts": parts}))
        order = [stage.name for stage in STAGES]
        self.stages.sort(key=lambda stage: order.index(stage.name))

    @property
    def is_green(self) -> bool:
        """Whether something passed and nothing failed, hung or died; what was skipped does not count."""
        states = {stage.state for stage in self.stages}
        return PASSED in states and not states & {FAILED, RUNNING}


def ends_of(text: str) -> dict[str, list[str]]:
    """The first and the last 40 lines of `text`, none of them twice, long ones cut."""
    lines = [line[:LINE_LENGTH] for line in text.splitlines()]
    first = lines[:LINES_KEPT]
    return {"first": first, "last": lines[max(len(first), len(lines) - LINES_KEPT) :]}
