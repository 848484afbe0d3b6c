"""Build of `xgblora._C` with nvcc, for setup.py: no torch, no CUDA library at run time, one compiler call.

    XGBLORA_BUILD_CUDA=auto|1|0      build where nvcc is found (default); fail without it; do not build
    XGBLORA_CUDA_ARCHS="80;90"       architectures to compile for; PTX of the newest is added for GPUs that come later

What came of it is written to `xgblora/_build.json`, which `xgblora.ops.extension` reads.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from build import SOURCE, BuildError, Outcome, Target, compiled, first_error, wanted

EXTENSION = "xgblora._C"
SOURCES = ("merge.cu", "bindings.cpp")
RECORD = "_build.json"
VARIABLE = "XGBLORA_BUILD_CUDA"
DEFAULT_ARCHITECTURES = (80, 86, 89, 90, 100, 120)
DEFAULT_CUDA = Path("/usr/local/cuda")


@dataclass(frozen=True)
class Compiler:
    """An nvcc: where it is, its release, such as "13.0", and the architectures that it knows."""

    path: Path
    release: str
    architectures: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What a build will do: compile, or leave the extension out for `reason`.

    Attributes:
        compiler: None where the extension is left out.
        architectures: what to compile for.
        required: whether a failure of the compiler fails the build.
        reason: why the extension is left out.
    """

    compiler: Compiler | None = None
    architectures: tuple[int, ...] = ()
    required: bool = False
    reason: str = ""


def plan_build(environment: Mapping[str, str], platform: str = sys.platform) -> Plan:
    """What to do under `environment`.

    Raises:
        BuildError: a variable is wrong, or XGBLORA_BUILD_CUDA=1 and there is no compiler.
    """
    mode, named = wanted(environment, VARIABLE), named_architectures(environment)
    if mode == "0":
        return Plan(reason="XGBLORA_BUILD_CUDA=0")
    try:
        if platform != "linux":
            raise BuildError(f"built on Linux only, this is {platform}")
        compiler = ask_compiler(find_nvcc(environment))
    except BuildError as error:
        if mode == "1":
            raise BuildError(f"XGBLORA_BUILD_CUDA=1: {error}") from None
        return Plan(reason=str(error))
    return Plan(compiler, choose_architectures(named, compiler), required=mode == "1")


def named_architectures(environment: Mapping[str, str]) -> tuple[int, ...]:
    """The architectures that XGBLORA_CUDA_ARCHS names, sorted; empty where it is not set."""
    value = environment.get("XGBLORA_CUDA_ARCHS", "").strip()
    if not value:
        return ()
    parts = [part.strip() for part in value.split(";")]
    if not all(re.fullmatch(r"[0-9]{2,3}", part) for part in parts):
        raise BuildError(f"XGBLORA_CUDA_ARCHS={value}: must be numbers separated by ';', such as 80;90")
    return tuple(sorted({int(part) for part in parts}))


def choose_architectures(named: tuple[int, ...], compiler: Compiler) -> tuple[int, ...]:
    """Those that are named, all of which `compiler` must know; without names, those of the default that it knows."""
    unknown = [str(number) for number in named if number not in compiler.architectures]
    if unknown:
        raise BuildError(
            f"XGBLORA_CUDA_ARCHS={';'.join(map(str, named))}: nvcc {compiler.release} does not know "
            f"{', '.join(unknown)}, it knows {', '.join(map(str, compiler.architectures))}"
        )
    return named or tuple(number for number in DEFAULT_ARCHITECTURES if number in compiler.architectures)


def find_nvcc(environment: Mapping[str, str], default: Path = DEFAULT_CUDA) -> Path:
    """nvcc of CUDA_HOME or CUDA_PATH, which must have it where they are set; else of PATH; else of `default`."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if environment.get(variable):
            nvcc = Path(environment[variable]) / "bin" / "nvcc"
            if not nvcc.exists():
                raise BuildError(f"nvcc not found in {variable}={environment[variable]}")
            return nvcc
    found = shutil.which("nvcc", path=environment.get("PATH", ""))
    nvcc = Path(found) if found else default / "bin" / "nvcc"
    if not nvcc.exists():
        raise BuildError("nvcc not found")
    return nvcc


def ask_compiler(nvcc: Path) -> Compiler:
    """What `nvcc` says of itself."""
    answers = []
    for question in ("--version", "--list-gpu-code"):
        done = subprocess.run([nvcc, question], capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"{nvcc} {question} failed: {first_error(done.stderr)}")
        answers.append(done.stdout)
    release = re.search(r"release ([0-9.]+)", answers[0])
    architectures = sorted({int(number) for number in re.findall(r"\bsm_([0-9]+)\b", answers[1])})
    return Compiler(nvcc, release.group(1) if release else "unknown", tuple(architectures))


def compile_command(plan: Plan, includes: list[str], output: Path) -> list[str]:
    """The nvcc call that makes the extension at `output`.

    No fused multiply-add on the device or the host: the contract rounds each operation once. The CUDA runtime is linked
    in, so that the module imports where there is no GPU, and beside a torch of any CUDA release.
    """
    newest = max(plan.architectures)
    return [
        str(plan.compiler.path),
        *("-shared", "-O3", "-std=c++17", "--fmad=false", "-cudart=static", "--threads=0"),
        *("-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"),
        *(f"-gencode=arch=compute_{number},code=sm_{number}" for number in plan.architectures),
        f"-gencode=arch=compute_{newest},code=compute_{newest}",
        *(f"-I{include}" for include in includes),
        *(str(SOURCE / name) for name in SOURCES),
        *("-o", str(output)),
    ]


def compile_extension(plan: Plan, output: Path) -> Outcome:
    """Run the compiler; an `Outcome` that says why where that fails."""
    name = f"nvcc {plan.compiler.release}"
    outcome = compiled(lambda includes: compile_command(plan, includes, output), output, name)
    if not outcome.built:
        return outcome
    newest = max(plan.architectures)
    return replace(outcome, nvcc=plan.compiler.release, architectures=plan.architectures, ptx=newest)


def cuda_target(plan: Plan) -> Target:
    """The extension as `build.commands` builds it."""
    return Target(
        EXTENSION,
        SOURCES,
        RECORD,
        VARIABLE,
        required=plan.required,
        reason=plan.reason,
        compile=lambda output: compile_extension(plan, output),
    )
