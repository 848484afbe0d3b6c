"""What the builds of both extensions share: the variable, the call of the compiler, the record of what came of it."""

import json
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("environment", "value"),
    [({}, "auto"), ({"XGBLORA_BUILD_CUDA": "1"}, "1"), ({"XGBLORA_BUILD_CUDA": " AUTO "}, "auto")],
)
def test_what_is_wanted(build, environment, value):
    assert build.wanted(environment, "XGBLORA_BUILD_CUDA") == value


@pytest.mark.parametrize("value", ["yes", "2", "", "true"])
def test_what_is_wanted_must_be_known(build, value):
    with pytest.raises(build.BuildError, match=rf"^XGBLORA_BUILD_CUDA={value}: must be auto, 1 or 0$"):
        build.wanted({"XGBLORA_BUILD_CUDA": value}, "XGBLORA_BUILD_CUDA")


@pytest.mark.parametrize(("status", "reason"), [(0, ""), (1, "own 1.2 failed: header.h:3: error: what")])
def test_what_came_of_the_compiler(build, tmp_path, capsys, status, reason):
    pytest.importorskip("pybind11", reason="needs pybind11")
    calls, output = [], tmp_path / "new" / "_own.so"

    def command(includes):
        calls.append(includes)
        assert output.parent.exists()
        return [sys.executable, "-c", f"print('In file\\nheader.h:3: error: what'); raise SystemExit({status})"]

    outcome = build.compiled(command, output, "own 1.2")
    assert (outcome.built, outcome.reason) == (status == 0, reason)
    assert all(Path(folder).is_dir() for folder in calls[0])
    assert ("error: what" in capsys.readouterr().err) == (status != 0), "all that a compiler said is shown"


def test_the_record_replaces_what_an_earlier_build_left(build, tmp_path):
    stale, other = (tmp_path / f"{name}.cpython-311-x86_64-linux-gnu.so" for name in ("_C", "_host"))
    stale.touch()
    other.touch()
    target = build.Target(
        "xgblora._C", (), "_build.json", "XGBLORA_BUILD_CUDA", required=False, reason="", compile=None
    )
    outcome = build.Outcome(built=True, nvcc="12.8", architectures=(90,), ptx=90)
    build.record(target, outcome, tmp_path)
    assert stale.exists()
    build.record(target, build.Outcome(built=False, reason="nvcc not found"), tmp_path)
    assert not stale.exists()
    assert other.exists(), "that of the other extension"
    assert json.loads((tmp_path / "_build.json").read_text())["reason"] == "nvcc not found"
