"""Runs the stages: each in a process of its own, stopped when it or one of its parts takes too long.

A part that hangs, or takes its process with it, costs itself: the rest of the stage goes on in a new process.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.results import DIED, FAILED, HUNG, RED, RUNNING, SKIPPED, WAITING, PartResult, Results, StageResult

ROOT = Path(__file__).resolve().parents[2]
# a stage whose processes die again and again is broken as a whole
MOST_PROCESSES = 4
# with less than this share of its estimate left, a stage is not begun: its most telling parts come first
LEAST_SHARE = 0.3
SECONDS_BETWEEN_WRITES = 1.0
_TAIL_SECONDS = 3.0


@dataclass
class Suite:
    """One run over the stages.

    Attributes:
        results: where it goes.
        folder: for logs and what stages write.
        deadline: `time.time()` at which all of it is over.
        flags: further flags of the stages' processes.
        environment: of the stages' processes.
        say: called with each line for the terminal.
    """

    results: Results
    folder: Path
    deadline: float
    flags: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    say: Callable[[str], None] = print

    def run(self) -> None:
        """Run every stage; the file is written whenever there is more to say."""
        began = time.time()
        for stage in [stage for stage in self.results.stages if stage.state == WAITING]:
            self._run_stage(stage)
            self.write()
            self.say(f"[{time.time() - began:5.0f} s] {line_of(stage)}")
            for part in stage.parts:
                if part.state in RED:
                    self.say(f"          {part.name}: {part.state}: {part.reason}")

    def write(self) -> None:
        """Write the file; a disk that is full, say, does not end the run."""
        try:
            self.results.write()
        except OSError as error:
            self.say(f"{self.results.path} cannot be written: {error}")

    def _run_stage(self, stage: StageResult) -> None:
        left = self.deadline - _TAIL_SECONDS - time.time()
        if left < LEAST_SHARE * stage.estimate:
            stage.state, stage.seconds = SKIPPED, 0.0
            stage.reason = f"takes about {stage.estimate:.0f} s, {max(left, 0):.0f} s are left"
            return
        stage.state, began = RUNNING, time.time()
        self.write()
        end, announced = min(began + stage.bound, self.deadline - _TAIL_SECONDS), []
        for _ in range(MOST_PROCESSES):
            process = StageProcess(self, stage, end)
            try:
                process.follow()
            finally:
                process.stop()
            announced = process.announced or announced
            if process.is_done or time.time() >= end:
                break
        stage.close(time.time() - began, announced)


class StageProcess:
    """A process that runs a stage's parts, those that are done left out."""

    def __init__(self, suite: Suite, stage: StageResult, end: float):
        self.suite, self.stage, self.end = suite, stage, end
        self.is_done, self.announced = False, []
        number = len(list(suite.folder.glob(f"{stage.name}-*.log")))
        self.log = suite.folder / f"{stage.name}-{number}.log"
        self._events = suite.folder / f"{stage.name}-{number}.jsonl"
        self._events.touch()
        self._read, self._part_began, self._part_bound, self._part_at = 0, 0.0, float("inf"), 0
        self._last_write = time.time()
        command = [sys.executable, "-u", "-m", "benchmarks.gpu.child", stage.name, "--events", str(self._events)]
        command += ["--folder", str(suite.folder), "--deadline", str(end), *suite.flags]
        command += ["--done", *(part.name for part in stage.parts)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=suite.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def follow(self) -> None:
        """Take events until the process ends or must be ended."""
        while True:
            over = self.process.poll() is not None
            self._take_events()
            if over:
                return self._ended(self.process.returncode)
            now, part = time.time(), self.stage.running_part
            if part is not None and now - self._part_began > self._part_bound:
                self.stop()
                return self._close(part, HUNG, f"no end after its bound of {self._part_bound:.0f} s")
            if now >= self.end:
                self.stop()
                return self._out_of_time(part)
            time.sleep(0.05)

    def stop(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()

    def _take_events(self) -> None:
        with open(self._events, "rb") as file:
            file.seek(self._read)
            read = file.read()
        # a process that was killed may leave half a line
        whole = read[: read.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))
        if whole and time.time() - self._last_write > SECONDS_BETWEEN_WRITES:
            self.suite.write()
            self._last_write = time.time()

    def _take(self, event: dict) -> None:
        part = self.stage.running_part
        if "parts" in event:
            self.announced = event["parts"]
        elif "record" in event:
            part.records.append(event["record"])
        elif event["event"] == "begin":
            self.stage.parts.append(PartResult(event["part"]))
            self._part_began, self._part_bound, self._part_at = time.time(), event["bound"], event["at"]
        else:
            if part is None:  # skipped before it began
                part = PartResult(event["part"])
                self.stage.parts.append(part)
            part.end(event["state"], event["seconds"], event["reason"], self._output(event["at"]))

    def _ended(self, status: int) -> None:
        part = self.stage.running_part
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        if part is not None:
            self._close(part, DIED, f"its process ended with {how}")
        elif status == 0:
            self.is_done = True
        elif not any(part.state in RED for part in self.stage.parts):
            # before or between its parts: an import that fails, say
            self.is_done = True
            died = PartResult("start")
            died.end(DIED, None, f"the stage's process ended with {how}", self._output())
            self.stage.parts.append(died)

    def _out_of_time(self, part: PartResult | None) -> None:
        bound = self.stage.bound if self.end < self.suite.deadline - 2 * _TAIL_SECONDS else None
        reason = f"stopped after the stage's bound of {bound:.0f} s" if bound else "stopped: the time is up"
        if part is not None:
            self._close(part, FAILED if bound else SKIPPED, reason)
        self.stage.reason = reason

    def _close(self, part: PartResult, state: str, reason: str) -> None:
        part.end(state, round(time.time() - self._part_began, 2), reason, self._output())

    def _output(self, end: int | None = None) -> str:
        """What the part at work has printed."""
        with open(self.log, "rb") as file:
            file.seek(self._part_at)
            return file.read(-1 if end is None else max(0, end - self._part_at)).decode(errors="replace")


def child_environment(output: Path, folder: Path, *, rehearsal: bool) -> dict[str, str]:
    """The environment of the stages' processes, without a network; a rehearsal sees no GPU and keeps to one thread."""
    found = {**os.environ, "GPU_SUITE_OUTPUT": str(output), "HF_HUB_OFFLINE": "1", "MPLCONFIGDIR": str(folder)}
    if not os.access(Path.home(), os.W_OK):
        # else where it is, so that a second run finds what the first compiled
        found.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    if rehearsal:
        found |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return found


def line_of(stage: StageResult) -> str:
    """The stage's line on the terminal."""
    reason = f" ({stage.reason})" if stage.reason else ""
    return f"{stage.name:<10} {stage.state:<8} {stage.seconds or 0:6.1f} s  {stage.title}{reason}"
