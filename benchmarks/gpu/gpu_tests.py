"""Stage: the tests marked `gpu`, a process a file, as many at once as there are cores, the most telling files first."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.results import ends_of
from benchmarks.gpu.stages import NotHere, Part, Setting

ROOT = Path(__file__).resolve().parents[2]
# the rest follows in the order of its names
FIRST = ("tests/kernels/test_gpu.py", "tests/zo/test_step_graphs_gpu.py", "tests/csrc/test_merge_gpu.py")
FILE_BOUND = 75.0
# pytest's exit status where no test was selected
NO_TESTS = 5
SANITIZED = ("tests/csrc/test_merge_gpu.py", "misaligned_storage")
SANITIZER_BOUND = 50.0
# that much earlier than the stage a file's tests end, so that what they found is read
MARGIN = 8.0


@dataclass(frozen=True)
class Outcome:
    """What came of the tests of a file."""

    file: str
    status: int | None
    seconds: float
    passed: int
    skipped: int
    failures: list[dict]
    output: str

    def record(self) -> dict:
        """For the results file."""
        stopped = "" if self.status is not None else f"stopped after {self.seconds:.0f} s; "
        case = f"{stopped}{self.passed} passed, {len(self.failures)} failed, {self.skipped} skipped"
        if self.status in (0, NO_TESTS) and not self.passed:
            # that nothing ran is no success
            return {"note": f"{self.file}: {case}"}
        record = {"check": self.file, "case": case, "passed": self.status == 0, "seconds": round(self.seconds, 1)}
        if not record["passed"]:
            record |= {"failures": self.failures, "output": ends_of(self.output)}
        return record


def parts(setting: Setting) -> Iterable[Part]:
    """The tests, then the merge under compute-sanitizer."""
    return [
        Part("files", lambda: files(setting), 10, 600),
        Part("sanitizer", lambda: sanitizer(setting), 15, SANITIZER_BOUND + 2 * MARGIN),
    ]


def files(setting: Setting) -> Iterator[dict]:
    """A record for each file, in the order in which they end."""
    if find_spec("pytest") is None:
        raise NotHere("pytest is not here")
    chosen = test_files(ROOT)[: 1 if setting.tiny else None]
    workers = max(1, min(len(chosen), os.cpu_count() or 1))
    spread = find_spec("xdist") and not setting.tiny
    shares = shared_out(len(chosen), os.cpu_count() or 1) if spread else [0] * len(chosen)
    with ThreadPoolExecutor(workers) as pool:
        waiting = [
            pool.submit(run_file, file, setting.deadline, processes=share)
            for file, share in zip(chosen, shares, strict=True)
        ]
        for done in as_completed(waiting):
            yield done.result().record()


def shared_out(files: int, cores: int) -> list[int]:
    """How many processes each file gets: half of the cores the first, which compiles most, the rest by shares.

    0 where one is enough: pytest itself then runs the tests.
    """
    if files == 0:
        return []
    first = cores // 2 if files > 1 else cores
    shares = [first, *[(cores - first) // max(files - 1, 1)] * (files - 1)]
    return [share if share > 1 else 0 for share in shares]


def test_files(root: Path) -> list[str]:
    """The test files that have a test marked `gpu`, the most telling first."""
    marked = re.compile(r"\bmark\.gpu\b")
    found = sorted(
        path.relative_to(root).as_posix()
        for path in (root / "tests").rglob("test_*.py")
        if marked.search(path.read_text(encoding="utf-8")) and "benchmarks" not in path.parts
    )
    return [*(file for file in FIRST if file in found), *(file for file in found if file not in FIRST)]


def run_file(
    file: str,
    deadline: float,
    *,
    bound: float = FILE_BOUND,
    processes: int = 0,
    under: tuple[str, ...] = (),
    select: str = "",
    **variables: str,
) -> Outcome:
    """Run the GPU tests of a file, for `bound` seconds at most, and read what pytest says of each."""
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*under, sys.executable, "-m", "pytest", file, "-m", "gpu", "-v", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", *(["-k", select] if select else [])]
        command += ["-n", str(processes)] if processes else []
        bound = max(1.0, min(bound, deadline - time.time() - MARGIN))
        # files run side by side
        environment = {"OMP_NUM_THREADS": "2", **os.environ, **variables}
        # not a pipe: what a stopped process started would keep its end of it
        log = Path(folder) / "output.txt"
        with open(log, "wb") as printed:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT)
            try:
                status = process.wait(bound)
            except subprocess.TimeoutExpired:
                stop(process)
                status = None
        output = log.read_text(encoding="utf-8", errors="replace")
        passed, skipped, failures = read_report(report)
    return Outcome(file, status, time.time() - began, passed, skipped, failures, output)


def stop(process: subprocess.Popen) -> None:
    """Interrupt pytest, which then ends its processes and writes its report, and end it where it does not."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(MARGIN / 2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def read_report(path: Path) -> tuple[int, int, list[dict]]:
    """How many tests passed and were skipped, and the name, message and ends of each that failed."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        # pytest ended before it wrote it, or while it did
        return 0, 0, []
    passed, skipped, failures = 0, 0, []
    for case in cases:
        wrong = [child for child in case if child.tag in ("failure", "error")]
        if wrong:
            message = " ".join((wrong[0].get("message") or "").split())[:400]
            failures.append({"test": case.get("name"), "message": message, "output": ends_of(wrong[0].text or "")})
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, skipped, failures


def sanitizer(setting: Setting) -> Iterator[dict]:
    """The merge under compute-sanitizer: no access out of bounds, none misaligned."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise NotHere("compute-sanitizer is not here")
    if setting.device_type == "cpu":
        raise NotHere("no GPU in a rehearsal")
    file, select = SANITIZED
    # torch's cache would hand out pieces of large blocks, whose ends are not those of the tensors
    under = (program, "--tool", "memcheck", "--error-exitcode", "9")
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    outcome = run_file(file, setting.deadline, bound=SANITIZER_BOUND, under=under, select=select, **variables)
    # what it says in a sandbox that hides the driver from it; then no kernel can run under it
    if "Device not supported" in outcome.output:
        raise NotHere("compute-sanitizer does not support this device here")
    if outcome.status is None:
        raise NotHere(f"not finished after {outcome.seconds:.0f} s")
    yield outcome.record()
