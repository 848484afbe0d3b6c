"""What the builds of `xgblora._C` and `xgblora._host` share, for setup.py: no torch, one compiler call each.

A build is a `Target`: the file that plans it says what to compile and how. What came of each is written to a record in
`xgblora/`, which `xgblora.ops.extension` reads.
"""

import json
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOURCE = Path(__file__).resolve().parent
ROOT = SOURCE.parent


class BuildError(Exception):
    """The extension cannot be built, or a variable is wrong; the message is one line."""


@dataclass(frozen=True)
class Outcome:
    """What a record holds: whether the extension was built, and with what or why not.

    Attributes:
        compiler: the C++ compiler of `xgblora._host`, name and version.
        nvcc: the release of that of `xgblora._C`.
        architectures: what there is machine code for.
        ptx: the architecture of the PTX.
        seconds: how long the compiler took.
    """

    built: bool
    reason: str = ""
    compiler: str = ""
    nvcc: str = ""
    architectures: tuple[int, ...] = ()
    ptx: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Target:
    """An extension as setuptools is told of it.

    Attributes:
        name: such as "xgblora._C".
        sources: files of csrc.
        record: the file in `xgblora/` that says what came of it.
        variable: the environment variable that asks for it.
        required: whether a failure of the compiler fails the build.
        reason: why it is left out; empty where it is built.
        compile: makes it at a path, and says what came of that.
    """

    name: str
    sources: tuple[str, ...]
    record: str
    variable: str
    required: bool
    reason: str
    compile: Callable[[Path], Outcome]


def wanted(environment: Mapping[str, str], variable: str) -> str:
    """The value of `variable`: "auto", "1" or "0"."""
    value = environment.get(variable, "auto").strip().lower()
    if value not in ("auto", "1", "0"):
        raise BuildError(f"{variable}={value}: must be auto, 1 or 0")
    return value


def compiled(command: Callable[[list[str]], list[str]], output: Path, name: str) -> Outcome:
    """Run the compiler; an `Outcome` that says why where that fails, else the seconds that it took.

    Args:
        command: the call, given the folders of the headers of pybind11 and Python.
        output: what it makes.
        name: what the reason of a failure calls the compiler.
    """
    try:
        import pybind11
    except ImportError:
        return Outcome(built=False, reason="pybind11 is not installed")
    output.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    call = command([pybind11.get_include(), sysconfig.get_path("include")])
    done = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        return Outcome(built=False, reason=f"{name} failed: {first_error(done.stdout)}")
    return Outcome(built=True, seconds=round(time.monotonic() - start, 1))


def extensions(targets: list[Target]) -> list[Extension]:
    """`ext_modules` of setup(): empty where nothing is compiled, so that the wheel is one for every platform."""
    return [
        Extension(target.name, [f"csrc/{name}" for name in target.sources], optional=not target.required)
        for target in targets
        if not target.reason
    ]


def commands(targets: list[Target]) -> dict[str, type]:
    """`cmdclass` of setup(): the stock commands, and the record of what came of each extension."""

    class BuildPython(build_py):
        def run(self):
            super().run()
            folder = ROOT if self.editable_mode else Path(self.build_lib)
            for target in targets:
                if target.reason:
                    record(target, Outcome(built=False, reason=target.reason), folder / "xgblora")

    class BuildExtension(build_ext):
        def build_extension(self, extension):
            (target,) = (target for target in targets if target.name == extension.name)
            outcome = target.compile(Path(self.get_ext_fullpath(extension.name)))
            if target.required and not outcome.built:
                sys.exit(f"error: {target.variable}=1: {outcome.reason}")
            folders = [Path(self.build_lib), *([ROOT] if self.editable_mode else [])]
            for folder in folders:
                record(target, outcome, folder / "xgblora")

    return {"build_py": BuildPython, "build_ext": BuildExtension}


def record(target: Target, outcome: Outcome, folder: Path) -> None:
    """Write `outcome` into `folder`; where nothing was built, remove what an earlier build left there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / target.record).write_text(json.dumps(asdict(outcome)) + "\n", encoding="utf-8")
    if not outcome.built:
        for stale in folder.glob(f"{target.name.removeprefix('xgblora.')}.*.so"):
            stale.unlink()


def first_error(text: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no message"])[0]
