"""The choices of the build of `xgblora._host`: variables, compiler, command, and what came of it."""

from pathlib import Path

import pytest


@pytest.fixture
def compiler(tmp_path):
    """A function that makes a compiler of that name in a folder of its own; it says `text` and exits with `status`."""

    def make(name: str, text: str = "12.2.0", status: int = 0) -> Path:
        path = tmp_path / f"bin-{name}" / name
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
        path.chmod(0o755)
        return path

    return make


def test_cxx_comes_before_path_with_its_arguments(build_host, compiler):
    gcc, own = compiler("g++"), compiler("own")
    environment = {"PATH": f"{gcc.parent}:{own.parent}"}
    assert build_host.plan_host(environment, "linux") == build_host.HostPlan((str(gcc),))
    assert build_host.plan_host({**environment, "CXX": "own -m64"}, "darwin").compiler == ("own", "-m64")


@pytest.mark.parametrize(
    ("environment", "platform", "reason"),
    [
        ({"XGBLORA_BUILD_HOST": "0"}, "linux", "XGBLORA_BUILD_HOST=0"),
        ({}, "linux", "no C++ compiler: none of c++, g++, clang++ found"),
        ({"CXX": "nowhere++ -O1"}, "linux", "no C++ compiler: CXX=nowhere++ -O1 not found"),
        ({}, "win32", "built on Linux and macOS only, this is win32"),
    ],
)
def test_left_out_with_the_reason_or_an_error_where_it_is_required(
    build, build_host, tmp_path, environment, platform, reason
):
    environment = {"PATH": str(tmp_path), **environment}
    plan = build_host.plan_host(environment, platform)
    assert plan == build_host.HostPlan(reason=reason)
    assert build.extensions([build_host.host_target(plan)]) == []
    if "XGBLORA_BUILD_HOST" not in environment:
        with pytest.raises(build.BuildError) as raised:
            build_host.plan_host({**environment, "XGBLORA_BUILD_HOST": "1"}, platform)
        assert str(raised.value) == f"XGBLORA_BUILD_HOST=1: {reason}"


def test_a_value_that_is_not_known_is_refused(build, build_host):
    with pytest.raises(build.BuildError, match=r"^XGBLORA_BUILD_HOST=yes: must be auto, 1 or 0$"):
        build_host.plan_host({"XGBLORA_BUILD_HOST": "yes"})


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_command_rounds_each_operation_once_for_every_processor(build_host, platform):
    command = build_host.host_command(("g++",), ["include"], Path("_host.so"), platform)
    assert {"-ffp-contract=off", "-Iinclude", "-O3"} <= set(command)
    assert not [word for word in command if word.startswith(("-march", "-mtune", "-ffast", "-Ofast"))]
    assert all(Path(word).exists() for word in command if word.endswith(".cpp"))


def test_a_compiler_that_fails_leaves_the_reason(build_host, compiler, tmp_path, capsys):
    pytest.importorskip("pybind11", reason="needs pybind11")
    plan = build_host.HostPlan((str(compiler("g++", "host.h:3: error: what", 1)),))
    outcome = build_host.compile_host(plan, tmp_path / "out" / "_host.so")
    assert (outcome.built, outcome.reason) == (False, "g++ failed: host.h:3: error: what")
    assert "error: what" in capsys.readouterr().err, "all that the compiler said is shown"


def test_what_it_was_built_with_is_kept(build_host, compiler, tmp_path):
    pytest.importorskip("pybind11", reason="needs pybind11")
    target = build_host.host_target(build_host.HostPlan((str(compiler("g++")),)))
    outcome = target.compile(tmp_path / "out" / "_host.so")
    assert (outcome.built, outcome.compiler) == (True, "g++ 12.2.0")
