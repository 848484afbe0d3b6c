"""Stage: plans of `rank1_linear` for the likeliest shapes, with what time is left; the table is written after each."""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.gpu.stages import NotHere, Part, Setting

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "kernels" / "tuning_table.json"
# the layers of the step's benchmark first; rows of one stacked batch of it, then of a decoding step
SHAPES = ["--models", "opt-1.3b", "opt-350m", "llama-3-8b", "--rows", "2048", "1024", "16"]
CANDIDATES = 10
# the script's own start, and the shape that it is at when the time is up
SLACK = 20.0


def parts(setting: Setting) -> Iterable[Part]:
    """One part: `scripts/tune_kernels.py`, told how long it may take."""
    return [Part("tune_kernels", lambda: tuned(setting), 15, 3600)]


def tuned(setting: Setting) -> Iterator[dict]:
    """The lines that the script prints, one a shape, and the table as it is after each."""
    if setting.device_type == "cpu":
        raise NotHere("no GPU in a rehearsal: tests/scripts/test_tune_kernels.py has the search")
    minutes = (setting.deadline - time.time() - SLACK) / 60.0
    command = [sys.executable, "-u", str(ROOT / "scripts" / "tune_kernels.py"), *SHAPES]
    command += ["--candidates", str(CANDIDATES), "--minutes", f"{max(minutes, 0.05):.2f}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            yield {"note": line.rstrip()}
            # the table is written before the line of the next shape; the last record of it counts
            yield {"fact": "tuning_table.json", "value": TABLE.read_text(encoding="utf-8")}
    if process.returncode != 0:
        raise RuntimeError(f"scripts/tune_kernels.py ended with {process.returncode}")
