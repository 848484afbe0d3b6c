"""Minutes on a machine with a GPU and no network, well spent: checks, exactness, speed, tests, tuning, in one file.

    python scripts/gpu_suite.py --minutes 8

runs the stages of `benchmarks/gpu/stages.py` in the order of what they are worth, each in a process of its own with a
bound of its own, and writes `benchmarks/results/<gpu>.json` whenever there is more to say: whenever the process is
killed, the file is whole. A stage that does not fit into the minutes any more is skipped and named; a part that fails,
hangs or takes its process with it keeps its name, its figures and the ends of its output, and the others go on. The
checkout is installed first where it is not, the CUDA extension built for this GPU where there is nvcc. The exit status
is 0 only if nothing failed. `scripts/gpu_page.py` makes docs/gpu.md of the file.

    python scripts/gpu_suite.py --rehearse

drives the same stages on the CPU, with tiny shapes and the interpreter of Triton, and then makes things go wrong one
after the other: each must be named in the results file.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# for `benchmarks`, which is not installed, and for the package before it is
sys.path.insert(0, str(ROOT))
from benchmarks.gpu import faults, rehearsal
from benchmarks.gpu.install import installed
from benchmarks.gpu.report import summary
from benchmarks.gpu.results import FORMAT, Results, StageResult
from benchmarks.gpu.schedule import Suite, child_environment
from benchmarks.gpu.stages import STAGES
from benchmarks.results_file import FOLDER, commit, slug

PROBE = """
import json, torch
there = torch.cuda.is_available()
facts = torch.cuda.get_device_properties(0) if there else None
print(json.dumps({"name": facts.name, "capability": f"{facts.major}{facts.minor}"} if there else None))
"""


def main() -> None:
    arguments = parse()
    # as an interrupt: what was begun is ended and temporary files go
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if arguments.rehearse and arguments.fault is None:
            sys.exit(0 if rehearsal.rehearse(arguments.output) else 1)
        sys.exit(0 if run(arguments) else 1)
    except KeyboardInterrupt:
        sys.exit("interrupted")


def parse() -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="all of it, installation included (default: 8)")
    parser.add_argument(
        "--only", choices=[stage.name for stage in STAGES], help="this stage; the file keeps the others"
    )
    parser.add_argument("--output", type=Path, help="results file (default: benchmarks/results/<gpu>.json)")
    parser.add_argument("--commit", help="of the checkout, where git cannot say it")
    parser.add_argument("--rehearse", action="store_true", help="try everything on the CPU, and what goes wrong")
    parser.add_argument("--fault", choices=faults.FAULTS, help="with --rehearse: run once, with this fault")
    arguments = parser.parse_args()
    if not 0 < arguments.minutes < float("inf"):
        sys.exit(f"error: --minutes {arguments.minutes:g}: must be more than 0, such as 8")
    if arguments.fault is not None and not arguments.rehearse:
        sys.exit(f"error: --fault {arguments.fault}: belongs to --rehearse")
    return arguments


def run(arguments: argparse.Namespace) -> bool:
    """Run the stages; whether something passed and nothing failed."""
    began = time.time()
    gpu = None if arguments.rehearse else probe()
    name = slug(gpu["name"]) if gpu else "rehearsal"
    output = arguments.output or FOLDER / f"{name}.json"
    results = Results(output, facts_of(arguments, began), [])
    results.stages = [StageResult.waiting(stage) for stage in STAGES if arguments.only in (None, stage.name)]
    put_aside(output, results, keep=arguments.only is not None)
    with tempfile.TemporaryDirectory(prefix="gpu-suite-") as folder:
        environment = child_environment(output, Path(folder), rehearsal=arguments.rehearse)
        if gpu is not None:
            results.facts["install"] = installed(ROOT, Path(folder), gpu["capability"], environment)
        flags = ["--rehearse", "--fault", arguments.fault] if arguments.rehearse else []
        Suite(results, Path(folder), began + 60 * arguments.minutes, flags, environment).run()
    print("\n".join(["", *summary(json.loads(output.read_text(encoding="utf-8"))), f"results: {output}"]))
    return results.is_green


def facts_of(arguments: argparse.Namespace, began: float) -> dict:
    """What the file says of the run itself."""
    return {
        "minutes": arguments.minutes,
        "commit": arguments.commit or commit() or None,
        "started": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(began)),
        "rehearsal": arguments.rehearse,
    }


def put_aside(output: Path, results: Results, *, keep: bool) -> None:
    """Write the file for the first time; an earlier one keeps its other stages in it, or is put beside it.

    Exits with one line if the file cannot be written.
    """
    try:
        if output.exists():
            earlier = json.loads(output.read_text(encoding="utf-8"))
            if keep and earlier.get("format") == FORMAT and earlier["rehearsal"] == results.facts["rehearsal"]:
                results.keep(earlier)
            else:
                output.replace(output.with_name(f"{output.name}.previous"))
        results.write()
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: --output {output}: {error}")


def probe() -> dict:
    """Name and capability of the GPU, asked of a process of its own, so that this one stays clear of it."""
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        sys.exit("error: torch did not say within 120 s which GPU there is")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        sys.exit(f"error: torch cannot be used here: {last}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found is None:
        sys.exit("error: no CUDA device: this suite is for a machine with a GPU; --rehearse tries it without one")
    return found


if __name__ == "__main__":
    main()
