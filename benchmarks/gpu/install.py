"""Makes the checkout importable on a machine without a network, and builds the CUDA extension for the GPU there.

Whatever fails is said in the results file, with the ends of the output, and costs no more than itself: without pip or
a fit setuptools the package is found through links, without the extension the merge runs in Triton.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.results import ends_of

BOUND = 120.0
PROBE = "import xgblora.kernels; from xgblora.ops.extension import extension; print(extension().state)"


def installed(root: Path, folder: Path, capability: str, environment: dict[str, str]) -> dict:
    """Install `root` where it, or the extension that nvcc could build, is missing.

    Args:
        root: the checkout.
        folder: for links, if it comes to that.
        capability: of the GPU, such as "90": the only architecture that is compiled for.
        environment: of the processes to come; changed where they need it to find the package.

    Returns:
        What the results file says of it: `state`, `seconds`, and `output` of an installation that failed.
    """
    began = time.time()
    state = probe(folder, environment)
    if (state.startswith("built with") and not is_stale(root)) or (state and not has_nvcc(root)):
        return {"state": f"found installed; extension: {state}", "seconds": 0.0}
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    variables = {**environment, "XGBLORA_CUDA_ARCHS": environment.get("XGBLORA_CUDA_ARCHS", capability)}
    status, output = run([*command, "-e", str(root)], folder, variables)
    state = probe(folder, environment)
    found = {"state": f"installed; extension: {state}", "seconds": round(time.time() - began, 1)}
    if state and status == 0:
        return found
    if not state:
        use_links(root, folder, environment)
        state = probe(folder, environment)
        found["state"] = f"pip failed, found through links; extension: {state}" if state else "cannot be imported"
    return {**found, "output": ends_of(output)}


def probe(folder: Path, environment: dict[str, str]) -> str:
    """What `xgblora-env` says of the extension, asked outside the checkout; empty where the import fails."""
    status, output = run([sys.executable, "-c", PROBE], folder, environment)
    return output.strip().splitlines()[-1] if status == 0 and output.strip() else ""


def has_nvcc(root: Path) -> bool:
    """Whether there is an nvcc where the build looks for one, and is allowed to."""
    if os.environ.get("XGBLORA_BUILD_CUDA") == "0":
        return False
    program = "import os, sys; sys.path.insert(0, sys.argv[1]); import build_extension as build; "
    program += "print(bool(build.find_nvcc(os.environ)))"
    done = subprocess.run([sys.executable, "-c", program, str(root / "csrc")], capture_output=True, text=True)
    return done.stdout.strip() == "True"


def is_stale(root: Path) -> bool:
    """Whether a source of the extension is newer than what was built of it here."""
    built = [path.stat().st_mtime for path in (root / "xgblora").glob("_C*.so")]
    return bool(built) and max(path.stat().st_mtime for path in (root / "csrc").iterdir()) > min(built)


def use_links(root: Path, folder: Path, environment: dict[str, str]) -> None:
    """Let `environment` find the package in a folder of links: `xgblora.kernels` is elsewhere in the checkout."""
    package = folder / "linked" / "xgblora"
    package.mkdir(parents=True, exist_ok=True)
    for path in (root / "xgblora").iterdir():
        (package / path.name).symlink_to(path)
    (package / "kernels").symlink_to(root / "kernels")
    # the checkout as current folder would come first otherwise
    paths = [str(package.parent), str(root), environment.get("PYTHONPATH", "")]
    environment.update(PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join(filter(None, paths)))


def run(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of a command that may take `BOUND` seconds."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BOUND
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, f"{type(error).__name__}: {error}"
    return done.returncode, done.stdout.decode(errors="replace")
