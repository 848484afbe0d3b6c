"""Build of `xgblora._host`, C++ for CPU tensors, for setup.py: one call of the machine's C++ compiler.

    XGBLORA_BUILD_HOST=auto|1|0      build where a C++ compiler is found (default); fail without it; do not build

It holds its loops once for each instruction set and chooses at run time, so it runs on every processor of the platform
and nothing depends on the machine that built it. What came of it is written to `xgblora/_build_host.json`, which
`xgblora.ops.host_extension` reads.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from build import SOURCE, BuildError, Outcome, Target, compiled, wanted

EXTENSION = "xgblora._host"
SOURCES = ("host.cpp", "host_bindings.cpp")
RECORD = "_build_host.json"
VARIABLE = "XGBLORA_BUILD_HOST"
COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class HostPlan:
    """What a build will do: compile, or leave the extension out for `reason`.

    Attributes:
        compiler: the words that a call of it begins with; empty where the extension is left out.
        required: whether a failure of the compiler fails the build.
        reason: why the extension is left out.
    """

    compiler: tuple[str, ...] = ()
    required: bool = False
    reason: str = ""


def plan_host(environment: Mapping[str, str], platform: str = sys.platform) -> HostPlan:
    """What to do under `environment`.

    Raises:
        BuildError: a variable is wrong, or XGBLORA_BUILD_HOST=1 and there is no compiler.
    """
    mode = wanted(environment, VARIABLE)
    if mode == "0":
        return HostPlan(reason=f"{VARIABLE}=0")
    try:
        if platform not in ("linux", "darwin"):
            raise BuildError(f"built on Linux and macOS only, this is {platform}")
        compiler = find_compiler(environment)
    except BuildError as error:
        if mode == "1":
            raise BuildError(f"{VARIABLE}=1: {error}") from None
        return HostPlan(reason=str(error))
    return HostPlan(compiler, required=mode == "1")


def find_compiler(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The C++ compiler that CXX names, with its arguments, which must be there where it is set; else one of PATH."""
    path = environment.get("PATH", "")
    named = shlex.split(environment.get("CXX", ""))
    if named:
        if shutil.which(named[0], path=path) is None:
            raise BuildError(f"no C++ compiler: CXX={environment['CXX']} not found")
        return tuple(named)
    for name in COMPILERS:
        found = shutil.which(name, path=path)
        if found:
            return (found,)
    raise BuildError(f"no C++ compiler: none of {', '.join(COMPILERS)} found")


def host_command(
    compiler: tuple[str, ...], includes: list[str], output: Path, platform: str = sys.platform
) -> list[str]:
    """The compiler call that makes the extension at `output`.

    No fused multiply-add: the contract rounds each operation once. No -march: see above.
    """
    return [
        *compiler,
        *(("-bundle", "-undefined", "dynamic_lookup") if platform == "darwin" else ("-shared",)),
        *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wno-unknown-pragmas"),
        *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
        *(f"-I{include}" for include in includes),
        *(str(SOURCE / name) for name in SOURCES),
        *("-o", str(output)),
    ]


def compile_host(plan: HostPlan, output: Path) -> Outcome:
    """Run the compiler; an `Outcome` that says why where that fails."""
    name = Path(plan.compiler[0]).name
    outcome = compiled(lambda includes: host_command(plan.compiler, includes, output), output, name)
    if not outcome.built:
        return outcome
    asked = subprocess.run([*plan.compiler, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True)
    return replace(outcome, compiler=f"{name} {asked.stdout.strip()}".strip())


def host_target(plan: HostPlan) -> Target:
    """The extension as `build.commands` builds it."""
    return Target(
        EXTENSION,
        SOURCES,
        RECORD,
        VARIABLE,
        required=plan.required,
        reason=plan.reason,
        compile=lambda output: compile_host(plan, output),
    )
