"""A rehearsal without a GPU: the whole suite on the CPU, then one thing after the other goes wrong.

Each fault must be named in the results file, and a suite that is killed in any stage must leave a file that is whole.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import faults
from benchmarks.gpu.report import counts, facts, failures, records
from benchmarks.gpu.stages import STAGES

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_suite.py"
BOUND = 150.0


@dataclass(frozen=True)
class Trial:
    """One suite with one fault.

    Attributes:
        name: what goes wrong.
        flags: of the suite.
        status: its exit status.
        named: gives, of the results file, the line that names the fault; raises if there is none.
    """

    name: str
    flags: tuple[str, ...]
    status: int
    named: Callable[[dict], str]


class NotNamed(Exception):
    """The results file does not say what went wrong."""


def rehearse(output: Path | None) -> bool:
    """Run every trial, two at a time, and print a line each; whether all came out right.

    Args:
        output: where the results file of the whole suite goes, if anywhere.
    """
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="gpu-rehearsal-") as folder, ThreadPoolExecutor(2) as pool:
        waiting = [(trial.name, pool.submit(tried, trial, Path(folder), output)) for trial in TRIALS]
        waiting += [
            (f"killed in stage {stage.name}", pool.submit(killed, stage.name, Path(folder))) for stage in STAGES
        ]
        passed = True
        for name, future in waiting:
            try:
                line, verdict = future.result(), "ok  "
            except (NotNamed, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
                line, verdict, passed = f"{type(error).__name__}: {error}", "FAIL", False
            print(f"{verdict} {name}: {line}", flush=True)
    print(f"rehearsal {'passed' if passed else 'FAILED'} in {time.time() - began:.0f} s")
    return passed


def tried(trial: Trial, folder: Path, output: Path | None) -> str:
    """Run a trial; the line that names its fault."""
    file = folder / f"{trial.name.replace(' ', '-')}.json"
    command, environment = suite_command(file, trial.flags), suite_environment(folder)
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BOUND
    )
    if done.returncode != trial.status:
        raise NotNamed(f"exit status {done.returncode}, not {trial.status}:\n{done.stdout[-3000:]}")
    results = json.loads(file.read_text(encoding="utf-8"))
    if output is not None and trial is TRIALS[0]:
        shutil.copy(file, output)
    return trial.named(results)


def killed(stage: str, folder: Path) -> str:
    """Kill a suite while a stage runs: the file is whole, and nothing goes on running."""
    file = folder / f"killed-{stage}.json"
    process = subprocess.Popen(
        suite_command(file, ("--only", stage)),
        env=suite_environment(folder),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for_the_stage(file, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    results = json.loads(file.read_text(encoding="utf-8"))
    if results["stages"][0]["state"] != "running":
        raise NotNamed(f"the stage is {results['stages'][0]['state']}")
    until = time.time() + 30
    while _children_of(file) and time.time() < until:
        time.sleep(0.1)
    if _children_of(file):
        raise NotNamed("the stage's process went on running")
    return f"{file.stat().st_size} bytes, whole, the stage is marked running"


def suite_command(file: Path, flags: tuple[str, ...]) -> list[str]:
    """A suite on the CPU that writes to `file`."""
    fault = () if "--fault" in flags else ("--fault", faults.NONE)
    return [sys.executable, str(SCRIPT), "--rehearse", "--minutes", "3", "--output", str(file), *fault, *flags]


def suite_environment(folder: Path) -> dict[str, str]:
    """Its temporary files go with the rehearsal's."""
    return {**os.environ, "TMPDIR": str(folder)}


def _wait_for_the_stage(file: Path, process: subprocess.Popen) -> None:
    """Return when the file says that the stage runs and its process is there."""
    until = time.time() + 60
    while time.time() < until and process.poll() is None:
        running = file.exists() and json.loads(file.read_text(encoding="utf-8"))["stages"][0]["state"] == "running"
        if running and (_children_of(file) or not Path("/proc").exists()):
            return
        time.sleep(0.01)
    raise NotNamed("the stage did not begin")


def _children_of(file: Path) -> list[str]:
    """Processes of stages that a suite which writes to `file` started; none where /proc is not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"GPU_SUITE_OUTPUT={file}".encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def _whole(results: dict) -> str:
    wrong = [one["name"] for one in results["stages"] if one["state"] not in ("passed", "skipped")]
    skipped = [one["name"] for one in results["stages"] if one["state"] == "skipped"]
    if wrong or skipped not in ([], ["tuning"]):
        raise NotNamed(f"not passed: {wrong}, skipped: {skipped}; {failures(results)}")
    said = [record["value"] for record in records(results, "device") if record.get("fact") == "missing"]
    missing = [line for line in said if line.startswith("datasets")]
    if not missing:
        raise NotNamed("nothing says that datasets is missing")
    return f"all stages, {counts(results)[0]} checks; {missing[0]}"


def _failing_check(results: dict) -> str:
    for record in records(results, "checks"):
        if record.get("passed") is False and {"case", "largest_error", "where"} <= record.keys():
            return f"{record['operation']}, {record['backend']}, {record['case']}: {record['where']}"
    raise NotNamed("no failed check with case, largest error and place")


def _hang(results: dict) -> str:
    return _red_part(results, "hangs", "hung", "waiting for what never comes")


def _crash(results: dict) -> str:
    return _red_part(results, "crashes", "died", "about to end without a word")


def _red_part(results: dict, name: str, state: str, printed: str) -> str:
    parts = {part["name"]: part for part in results["stages"][0]["parts"]}
    part = parts.pop(name)
    if part["state"] != state or printed not in part["output"]["first"]:
        raise NotNamed(f"{part}")
    if not parts or any(other["state"] != "passed" for other in parts.values()):
        raise NotNamed("the other parts did not go on")
    return f"{part['state']}: {part['reason']}; {len(parts)} other parts passed"


def _no_extension(results: dict) -> str:
    found = facts(results)
    if "missing in this rehearsal" not in found["host extension"] and "not built" not in found["host extension"]:
        raise NotNamed(found["host extension"])
    return f"{found['host extension']}; {found['extension']}"


TRIALS = (
    Trial("the whole suite without datasets", ("--fault", faults.NO_DATASETS), 0, _whole),
    Trial("a failing check", ("--fault", faults.FAILING_CHECK, "--only", "checks"), 1, _failing_check),
    Trial("a part that hangs", ("--fault", faults.HANG, "--only", "device"), 1, _hang),
    Trial("a part that crashes", ("--fault", faults.CRASH, "--only", "device"), 1, _crash),
    Trial("a missing extension", ("--fault", faults.NO_EXTENSION, "--only", "device"), 0, _no_extension),
)
