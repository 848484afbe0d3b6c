"""The choices of the build of `xgblora._C`: variables, compiler, architectures, command, and what came of it."""

import re
from pathlib import Path

import pytest

KNOWN = (75, 80, 86, 89, 90, 100)


@pytest.fixture
def toolkit(tmp_path):
    """A function that makes a folder with an `nvcc` in its bin that answers as release 12.8, or fails."""

    def make(name: str = "cuda", *, fails: bool = False) -> Path:
        nvcc = tmp_path / name / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        codes = "\\n".join(f"sm_{number}" for number in KNOWN)
        answer = f'case "$1" in --version) echo "release 12.8, V12.8.93";; *) printf "{codes}\\n";; esac'
        nvcc.write_text("#!/bin/sh\n" + ("echo 'nvcc fatal: error 7' >&2; exit 1\n" if fails else f"{answer}\n"))
        nvcc.chmod(0o755)
        return tmp_path / name

    return make


def nowhere(tmp_path) -> dict[str, str]:
    """An environment in which there is no nvcc."""
    return {"CUDA_HOME": str(tmp_path / "nowhere"), "PATH": str(tmp_path)}


@pytest.mark.parametrize(
    ("value", "numbers"), [("90", (90,)), ("90;80", (80, 90)), (" 80 ; 90 ;90", (80, 90)), ("", ()), ("120", (120,))]
)
def test_named_architectures(build_extension, value, numbers):
    assert build_extension.named_architectures({"XGBLORA_CUDA_ARCHS": value}) == numbers


@pytest.mark.parametrize("value", ["ninety", "8.0", "80,90", "80;", "9", "sm_90", "80;90a"])
def test_named_architectures_must_be_numbers(build, build_extension, value):
    with pytest.raises(build.BuildError, match=r"^XGBLORA_CUDA_ARCHS=.*: must be numbers separated by ';'"):
        build_extension.plan_build({"XGBLORA_CUDA_ARCHS": value, "XGBLORA_BUILD_CUDA": "0"})


def test_the_default_is_what_the_compiler_knows_of_it(build_extension):
    compiler = build_extension.Compiler(Path("nvcc"), "12.8", KNOWN)
    assert build_extension.choose_architectures((), compiler) == (80, 86, 89, 90, 100)
    assert build_extension.choose_architectures((75, 90), compiler) == (75, 90)


def test_a_named_architecture_that_the_compiler_does_not_know_is_an_error(build, build_extension, toolkit):
    environment = {"CUDA_HOME": str(toolkit()), "XGBLORA_CUDA_ARCHS": "90;130"}
    with pytest.raises(
        build.BuildError,
        match=r"^XGBLORA_CUDA_ARCHS=90;130: nvcc 12\.8 does not know 130, it knows 75, 80, 86, 89, 90, 100$",
    ):
        build_extension.plan_build(environment, "linux")


class TestTheCompiler:
    """Where nvcc is looked for."""

    def test_cuda_home_comes_before_cuda_path_before_path(self, build_extension, toolkit, tmp_path):
        home, other, third = toolkit("home"), toolkit("path"), toolkit("third")
        environment = {"CUDA_HOME": str(home), "CUDA_PATH": str(other), "PATH": str(third / "bin")}
        for variable, folder in (("CUDA_HOME", home), ("CUDA_PATH", other), ("PATH", third)):
            assert build_extension.find_nvcc(environment) == folder / "bin" / "nvcc"
            del environment[variable]
        fourth = toolkit("fourth")
        assert build_extension.find_nvcc({"PATH": str(tmp_path)}, default=fourth) == fourth / "bin" / "nvcc"

    def test_none_anywhere(self, build, build_extension, tmp_path):
        with pytest.raises(build.BuildError, match=r"^nvcc not found$"):
            build_extension.find_nvcc({"PATH": str(tmp_path)}, default=tmp_path / "no cuda")

    def test_a_cuda_home_without_one_is_said_to_be(self, build, build_extension, tmp_path):
        with pytest.raises(build.BuildError, match=r"^nvcc not found in CUDA_HOME=.*nowhere$"):
            build_extension.find_nvcc(nowhere(tmp_path))

    def test_what_it_says_of_itself(self, build_extension, toolkit):
        nvcc = toolkit() / "bin" / "nvcc"
        assert build_extension.ask_compiler(nvcc) == build_extension.Compiler(nvcc, "12.8", KNOWN)


class TestThePlan:
    """XGBLORA_BUILD_CUDA against what is there."""

    def test_with_a_compiler(self, build, build_extension, toolkit):
        environment = {"CUDA_HOME": str(toolkit())}
        plan = build_extension.plan_build(environment, "linux")
        assert (plan.compiler.release, plan.architectures, plan.required) == ("12.8", (80, 86, 89, 90, 100), False)
        assert build_extension.plan_build({**environment, "XGBLORA_BUILD_CUDA": "1"}, "linux").required
        (extension,) = build.extensions([build_extension.cuda_target(plan)])
        assert extension.name == "xgblora._C"
        assert all((Path(build.ROOT) / source).exists() for source in extension.sources)

    @pytest.mark.parametrize(
        ("environment", "platform", "reason"),
        [
            ({"XGBLORA_BUILD_CUDA": "0"}, "linux", r"^XGBLORA_BUILD_CUDA=0$"),
            ({}, "linux", r"^nvcc not found in CUDA_HOME=.*nowhere$"),
            ({}, "win32", r"^built on Linux only, this is win32$"),
            ({}, "darwin", r"^built on Linux only, this is darwin$"),
        ],
    )
    def test_left_out_with_the_reason(self, build, build_extension, tmp_path, environment, platform, reason):
        plan = build_extension.plan_build({**nowhere(tmp_path), **environment}, platform)
        assert plan.compiler is None
        assert re.search(reason, plan.reason)
        assert build.extensions([build_extension.cuda_target(plan)]) == []

    @pytest.mark.parametrize(("platform", "reason"), [("linux", "nvcc not found"), ("win32", "built on Linux only")])
    def test_required_and_not_possible_is_one_line(self, build, build_extension, tmp_path, platform, reason):
        environment = {**nowhere(tmp_path), "XGBLORA_BUILD_CUDA": "1"}
        with pytest.raises(build.BuildError, match=rf"^XGBLORA_BUILD_CUDA=1: {reason}") as raised:
            build_extension.plan_build(environment, platform)
        assert "\n" not in str(raised.value)

    def test_a_compiler_that_does_not_run_is_the_reason(self, build_extension, toolkit):
        plan = build_extension.plan_build({"CUDA_HOME": str(toolkit(fails=True))}, "linux")
        assert plan.reason.endswith("--version failed: nvcc fatal: error 7")


def test_the_command_rounds_each_operation_once_and_needs_no_cuda_library(build_extension):
    plan = build_extension.Plan(build_extension.Compiler(Path("nvcc"), "12.8", KNOWN), (80, 90))
    command = build_extension.compile_command(plan, ["include"], Path("_C.so"))
    assert {"--fmad=false", "-cudart=static", "-Iinclude"} <= set(command)
    assert "-ffp-contract=off" in command[command.index("-Xcompiler") + 1]
    assert [word for word in command if word.startswith("-gencode")] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


def test_a_compiler_that_fails_leaves_the_reason(build_extension, toolkit, tmp_path, capsys):
    pytest.importorskip("pybind11", reason="needs pybind11")
    compiler = build_extension.Compiler(toolkit(fails=True) / "bin" / "nvcc", "12.8", KNOWN)
    outcome = build_extension.compile_extension(build_extension.Plan(compiler, (90,)), tmp_path / "out" / "_C.so")
    assert (outcome.built, outcome.reason) == (False, "nvcc 12.8 failed: nvcc fatal: error 7")
    assert "nvcc fatal" in capsys.readouterr().err, "all that the compiler said is shown"
