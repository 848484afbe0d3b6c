"""One command for a machine with a GPU and no network: checks, GPU tests and benchmarks, written to one file.

    python scripts/gpu_suite.py

builds the CUDA extension where nvcc is, compares every kernel with the eager reference on the GPU, runs the tests
marked `gpu`, runs those of the merge under compute-sanitizer where that is, runs the benchmarks, and writes
`benchmarks/results/<gpu>.json` with the device, its ceilings, the versions, every check and every benchmark; the
benchmarks append their rows to `benchmarks/results/<gpu>.csv`. The exit status is 0 only if all checks and tests
passed; a benchmark is not reported as passed on a red check. A short table of the ratios comes last.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# set for the process that starts anew after an installation
ONCE = "XGBLORA_GPU_SUITE_INSTALLED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="results file (default: benchmarks/results/<gpu>.json)")
    parser.add_argument("--skip_benchmarks", action="store_true", help="checks and tests only")
    parser.add_argument("--tune", action="store_true", help="run scripts/tune_kernels.py first; takes long")
    arguments = parser.parse_args()
    install()
    # for `benchmarks`, which is not installed
    sys.path.insert(0, str(ROOT))
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device: this suite is for a machine with a GPU")
    if arguments.tune:
        subprocess.run([sys.executable, str(ROOT / "scripts" / "tune_kernels.py")], check=True)
    from benchmarks.record import slug
    from xgblora.atomic_file import write_text

    name = torch.cuda.get_device_properties(0).name
    output = arguments.output or ROOT / "benchmarks" / "results" / f"{slug(name)}.json"
    for results in run_suite(skip_benchmarks=arguments.skip_benchmarks):
        # as far as it got, for a machine that is taken away meanwhile
        write_text(output, json.dumps(results, indent=1) + "\n")
    print(f"\nresults: {output}\n")
    print_table(results)
    if not is_green(results) or results.get("benchmarks", {}).get("status", 0) != 0:
        sys.exit(1)


def install() -> None:
    """Install this checkout without a network where it, or the extension that nvcc could build, is missing."""
    program = "import xgblora.kernels; from xgblora.ops.extension import extension; print(extension().state)"
    found = subprocess.run([sys.executable, "-c", program], cwd=tempfile.gettempdir(), capture_output=True, text=True)
    buildable = "built with" not in found.stdout and os.environ.get("XGBLORA_BUILD_CUDA") != "0" and has_nvcc()
    # a second process does not try again: what nvcc cannot build, it cannot build twice
    if (found.returncode == 0 and not buildable) or ONCE in os.environ:
        return
    command = ["pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    # the editable finder is read at start-up
    sys.exit(subprocess.run([sys.executable, *sys.argv], env={**os.environ, ONCE: "1"}).returncode)


def has_nvcc() -> bool:
    """Whether there is an nvcc where the build looks for one."""
    sys.path.insert(0, str(ROOT / "csrc"))
    from build_extension import BuildError, find_nvcc

    try:
        return bool(find_nvcc(os.environ))
    except BuildError:
        return False


def is_green(results: dict) -> bool:
    """Whether all checks, tests and the sanitizer passed."""
    statuses = [results["tests"]["status"], results["sanitizer"].get("status", 0)]
    return all(check["passed"] for check in results["checks"]) and not any(statuses)


def run_suite(*, skip_benchmarks: bool) -> Iterator[dict]:
    """Everything that the results file holds, each time that there is more of it."""
    import torch

    from xgblora.environment import versions
    from xgblora.ops.extension import extension
    from xgblora.ops.merge_rank1 import ROUNDINGS
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
        "extension": {"state": extension().state},
        "checks": [asdict(check) for check in self_check(device)],
    }
    if extension().module is not None:
        results["extension"] |= {name: extension().module.merge_facts(name, 0) for name in ROUNDINGS}
    print(f"extension: {results['extension']}")
    for check in results["checks"]:
        print(f"{'ok  ' if check['passed'] else 'FAIL'} {check['operation']} {check['case']}: {check['detail']}")
    results["tests"] = outcome_of(run_pytest(["tests", "-m", "gpu", "-q", *side_by_side()]))
    yield results
    results["sanitizer"] = run_sanitizer()
    yield results
    if skip_benchmarks:
        return
    if not is_green(results):
        print("benchmarks not run: a check or a test failed")
        return
    results["benchmarks"] = run_benchmarks()
    results["ceilings"] = ceilings()
    yield results


def ceilings() -> dict:
    """What the device does at most, measured: bytes a second of a copy, FLOP/s of a matrix product."""
    import torch

    from benchmarks.ceilings import bytes_per_second, flops_per_second

    device = torch.device("cuda")
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    return {
        "bytes_per_second": bytes_per_second(device),
        "flops_per_second": {name: flops_per_second(device, dtype) for name, dtype in dtypes.items()},
    }


def print_table(results: dict) -> None:
    """A line for each benchmark: the median of ours, and its ratio to each floor and peer."""
    failed = [check for check in results["checks"] if not check["passed"]]
    print(f"checks: {len(results['checks']) - len(failed)} passed, {len(failed)} failed")
    print(f"tests:  {results['tests']['summary']}")
    for case in results.get("benchmarks", {}).get("cases", []):
        ratios = {name.removeprefix("ours_over_"): value for name, value in case.items() if "ours_over_" in name}
        line = ", ".join(f"{value:.3f} x {name}" for name, value in ratios.items())
        print(f"{case['median_seconds'] * 1e6:12.1f} us  {case['name'].removeprefix('test_')}: {line}")


def side_by_side() -> list[str]:
    """Let pytest use more than one process, where it can: most of the time goes into compiling kernels."""
    return ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []


def run_sanitizer() -> dict:
    """The merge under compute-sanitizer: no access out of bounds, none misaligned."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer not found: the merge was not run under it")
        return {"summary": "compute-sanitizer not found"}
    tests = ["tests/csrc/test_merge_gpu.py", "-q", "-k", "all_shapes or misaligned_storage"]
    # torch's cache would hand out pieces of large blocks, whose ends are not those of the tensors
    under = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9"]
    done = run_pytest(tests, under=under, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    # what it says in a sandbox that hides the driver from it; then no kernel can run under it
    if "Device not supported" in done.stdout:
        return {"summary": "compute-sanitizer does not support this device here: the merge was not run under it"}
    return outcome_of(done)


def run_pytest(
    arguments: list[str], *, under: list[str] | None = None, **variables: str
) -> subprocess.CompletedProcess:
    """Run pytest on this checkout, below the command `under`, with `variables` set, and print the end of its output."""
    command = [*(under or []), sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout[-4000:])
    return done


def outcome_of(done: subprocess.CompletedProcess) -> dict:
    """The exit status and the last line of a run of pytest."""
    return {"status": done.returncode, "summary": done.stdout.strip().splitlines()[-1]}


def run_benchmarks() -> dict:
    """Run `benchmarks/` and keep, for each benchmark, the median seconds and what it compared itself with."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "benchmarks.json"
        outcome = outcome_of(run_pytest(["benchmarks", "--benchmark-only", "-q", f"--benchmark-json={report}"]))
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


if __name__ == "__main__":
    main()
