"""The process of one stage: runs its parts one after the other and says what happens as lines of JSON.

    python -m benchmarks.gpu.child checks --events FILE --folder FOLDER --deadline 1790000000

The first event is `{"parts"}`, the names of all there will be. Then come `{"part", "event": "begin", "bound", "at"}`,
`{"part", "record"}` and `{"part", "event": "end", "state", "seconds", "reason", "at"}`, where `at` is how many bytes
were printed until then. The process ends at once when the process that started it does: that one holds the other end of
its standard input.
"""

import argparse
import importlib
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from benchmarks.gpu import faults
from benchmarks.gpu.results import FAILED, PASSED, SKIPPED
from benchmarks.gpu.stages import STAGES, NotHere, Part, Setting
from xgblora.spelling import one_line

# the exit status of a process whose GPU takes no more work: what is left needs another one
DEVICE_LOST = 75


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[stage.name for stage in STAGES])
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--done", nargs="*", default=[])
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--fault", default=faults.NONE)
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    faults.inject(arguments.fault, arguments.stage)
    device_type = "cpu" if arguments.rehearse else "cuda"
    setting = Setting(device_type, arguments.rehearse, arguments.folder, arguments.deadline)
    module = importlib.import_module(f"benchmarks.gpu.{arguments.stage}")
    with open(arguments.events, "a", encoding="utf-8") as file:
        speaker = Speaker(file)
        parts = [*faults.extra_parts(arguments.fault, arguments.stage), *module.parts(setting)]
        speaker.say_all(part.name for part in parts)
        for part in parts:
            if part.name in arguments.done:
                continue
            carry_out(part, setting, speaker)
            if device_type == "cuda" and not _device_works():
                print("the GPU takes no more work from this process", flush=True)
                sys.exit(DEVICE_LOST)


class Speaker:
    """Writes events, each a line that is there at once."""

    def __init__(self, file):
        self.file = file

    def say(self, part: str, **what) -> None:
        """Write one event of `part`."""
        self._write({"part": part, **what})

    def say_all(self, names: Iterable[str]) -> None:
        """Write which parts there will be."""
        self._write({"parts": list(names)})

    def _write(self, event: dict) -> None:
        self.file.write(json.dumps(as_json(event), allow_nan=False) + "\n")
        self.file.flush()


def as_json(value):
    """`value` with numbers that JSON has not, such as an infinite error, as words."""
    if isinstance(value, dict):
        return {name: as_json(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def carry_out(part: Part, setting: Setting, speaker: Speaker) -> None:
    """Run a part, unless too little time is left, and say what came of it."""
    left = setting.deadline - time.time()
    if left < part.estimate:
        reason = f"needs about {part.estimate:.0f} s, {max(left, 0):.0f} s are left"
        speaker.say(part.name, event="end", state=SKIPPED, seconds=0.0, reason=reason, at=_printed())
        return
    speaker.say(part.name, event="begin", bound=part.bound, at=_printed())
    began, state, reason = time.perf_counter(), PASSED, ""
    try:
        failed = 0
        for record in part.run():
            failed += record.get("passed") is False
            speaker.say(part.name, record=record)
        if failed:
            state, reason = FAILED, f"{failed} did not hold"
    except NotHere as error:
        state, reason = SKIPPED, str(error)
    except BaseException as error:
        traceback.print_exc()
        state, reason = FAILED, one_line(error, kind=True, limit=400)
    seconds = round(time.perf_counter() - began, 3)
    speaker.say(part.name, event="end", state=state, seconds=seconds, reason=reason, at=_printed())


def _printed() -> int:
    """Bytes that this process has printed: its output is a file that only grows."""
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fstat(1).st_size


def _device_works() -> bool:
    """False after a fault that leaves a GPU's context unusable, such as an illegal address."""
    import torch

    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").item()
    except Exception:
        traceback.print_exc()
        return False
    return True


def _end_with_the_parent() -> None:
    # not sys.stdin: at its end the interpreter waits for a lock that this thread would hold
    while os.read(0, 1):
        pass
    # it leads its process group: what it started goes with it
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
