"""One command for a machine with a GPU and no network: checks, GPU tests and benchmarks, written to one file.

    python scripts/gpu_suite.py

compares every kernel with the eager reference on the GPU, runs the tests marked `gpu`, runs the benchmarks, and writes
`benchmarks/results/<gpu>.json` with the device, the versions, every check and every benchmark. The exit status is 0
only if all checks and tests passed; a benchmark is not reported as passed on a red check.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="results file (default: benchmarks/results/<gpu>.json)")
    parser.add_argument("--skip_benchmarks", action="store_true", help="checks and tests only")
    arguments = parser.parse_args()
    install_if_missing()
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device: this suite is for a machine with a GPU")
    results = run_suite(skip_benchmarks=arguments.skip_benchmarks)
    output = arguments.output or ROOT / "benchmarks" / "results" / f"{slug(results['device']['name'])}.json"
    from xgblora.atomic_file import write_text

    write_text(output, json.dumps(results, indent=1) + "\n")
    print(f"\nresults: {output}")
    failed = [check for check in results["checks"] if not check["passed"]]
    if failed or results["tests"]["status"] != 0 or results.get("benchmarks", {}).get("status", 0) != 0:
        sys.exit(1)


def install_if_missing() -> None:
    """Install this checkout without a network if `xgblora.kernels` cannot be imported."""
    command = [sys.executable, "-c", "import xgblora.kernels"]
    if subprocess.run(command, cwd=tempfile.gettempdir(), capture_output=True).returncode != 0:
        install = ["pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
        subprocess.run([sys.executable, "-m", *install], check=True)
        # the editable finder is read at start-up
        sys.exit(subprocess.run([sys.executable, *sys.argv]).returncode)


def run_suite(*, skip_benchmarks: bool) -> dict:
    """Everything that the results file holds."""
    import torch

    from xgblora.environment import versions
    from xgblora.ops.self_check import self_check

    device = torch.device("cuda")
    facts = torch.cuda.get_device_properties(device)
    results = {
        "device": {
            "name": facts.name,
            "memory_bytes": facts.total_memory,
            "capability": f"{facts.major}.{facts.minor}",
            "cuda": torch.version.cuda,
        },
        "versions": versions(),
        "commit": commit(),
        "checks": [asdict(check) for check in self_check(device)],
    }
    for check in results["checks"]:
        print(f"{'ok  ' if check['passed'] else 'FAIL'} {check['operation']} {check['case']}: {check['detail']}")
    results["tests"] = run_pytest(["tests", "-m", "gpu", "-q"])
    green = results["tests"]["status"] == 0 and all(check["passed"] for check in results["checks"])
    if skip_benchmarks:
        return results
    if not green:
        print("benchmarks not run: a check or a test failed")
        return results
    results["benchmarks"] = run_benchmarks()
    return results


def run_pytest(arguments: list[str]) -> dict:
    """Run pytest on this checkout; its exit status and last line."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout[-4000:])
    return {"status": done.returncode, "summary": done.stdout.strip().splitlines()[-1]}


def run_benchmarks() -> dict:
    """Run `benchmarks/` and keep, for each benchmark, the median seconds and what it compared itself with."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "benchmarks.json"
        outcome = run_pytest(["benchmarks", "--benchmark-only", "-q", f"--benchmark-json={report}"])
        entries = json.loads(report.read_text())["benchmarks"] if report.exists() else []
    return {
        **outcome,
        "cases": [
            {"name": entry["name"], "median_seconds": entry["stats"]["median"], **entry["extra_info"]}
            for entry in entries
        ],
    }


def commit() -> str | None:
    """The commit of this checkout, None outside git."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def slug(name: str) -> str:
    """A file name for a device name: "NVIDIA H200" becomes "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
