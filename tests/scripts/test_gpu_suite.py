"""The GPU suite where there is no GPU: it says so, and its rehearsal finds every fault named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_suite.py"


def suite(*flags: object, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=170)


def test_without_a_gpu_it_refuses_in_one_line():
    done = suite(CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (1, "")
    line = "error: no CUDA device: this suite is for a machine with a GPU; --rehearse tries it without one\n"
    assert done.stderr == line


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--minutes", "0"), "error: --minutes 0: must be more than 0, such as 8\n"),
        (("--minutes", "nan"), "error: --minutes nan: must be more than 0, such as 8\n"),
        (("--fault", "hang"), "error: --fault hang: belongs to --rehearse\n"),
    ],
)
def test_wrong_flags_are_one_line(flags, line):
    done = suite(*flags)
    assert (done.returncode, done.stderr) == (1, line)


def test_stages_that_do_not_fit_any_more_are_skipped_and_named(tmp_path):
    done = suite("--rehearse", "--fault", "none", "--minutes", "0.01", "--output", tmp_path / "r.json")
    assert done.returncode == 1, "a run in which nothing passed is no success"
    stages = json.loads((tmp_path / "r.json").read_text())["stages"]
    assert {stage["state"] for stage in stages} == {"skipped"}
    assert stages[1]["reason"] == "takes about 70 s, 0 s are left"
    assert "left out  checks: takes about 70 s, 0 s are left" in done.stdout
    suite("--rehearse", "--fault", "none", "--minutes", "0.01", "--output", tmp_path / "r.json")
    assert (tmp_path / "r.json.previous").is_file(), "an earlier file is not lost"


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    done = suite("--rehearse", "--fault", "none", "--output", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: --output {tmp_path}: ") and done.stderr.count("\n") == 1


def test_the_rehearsal_names_every_fault_and_every_kill_leaves_a_whole_file(tmp_path):
    """The whole suite on a CPU without `datasets`, then what goes wrong: the longest test, 30 s of two cores."""
    done = suite("--rehearse", "--output", tmp_path / "r.json", XGBLORA_BACKEND="auto")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 13 and all(line.startswith("ok   ") for line in lines[:-1])
    assert lines[-1].startswith("rehearsal passed")
    assert json.loads((tmp_path / "r.json").read_text())["rehearsal"] is True
