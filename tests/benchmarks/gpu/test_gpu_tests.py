"""The stage that runs the GPU tests: which files, in how many processes, and what is kept of them."""

import os
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.gpu import gpu_tests
from benchmarks.gpu.gpu_tests import FIRST, read_report, run_file, shared_out

ROOT = Path(__file__).parents[3]


def test_the_most_telling_files_come_first_and_none_is_missing():
    found = gpu_tests.test_files(ROOT)
    assert tuple(found[: len(FIRST)]) == FIRST
    assert len(set(found)) == len(found)
    assert "tests/adapters/test_arena.py" in found
    assert "tests/adapters/test_attach.py" not in found


def test_cores_are_shared_out():
    assert shared_out(5, 16) == [8, 2, 2, 2, 2]
    assert shared_out(1, 16) == [16]
    assert shared_out(3, 2) == [0, 0, 0]
    assert shared_out(0, 2) == []


def test_a_report_gives_the_name_the_message_and_the_ends_of_each_failure(tmp_path):
    path = tmp_path / "report.xml"
    path.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped message="no"/></testcase>'
        '<testcase name="c[64]"><failure message="AssertionError:\n off">line 1\nline 2</failure></testcase>'
        "</testsuite></testsuites>"
    )
    passed, skipped, failures = read_report(path)
    assert (passed, skipped) == (1, 1)
    (failure,) = failures
    assert failure["test"] == "c[64]"
    assert failure["message"] == "AssertionError: off"
    assert failure["output"]["first"] == ["line 1", "line 2"]


def test_a_file_in_which_nothing_ran_is_a_note_and_no_success():
    skipped = gpu_tests.Outcome("tests/a.py", 0, 1.0, passed=0, skipped=5, failures=[], output="")
    assert skipped.record() == {"note": "tests/a.py: 0 passed, 0 failed, 5 skipped"}
    broken = gpu_tests.Outcome("tests/a.py", 4, 1.0, passed=0, skipped=0, failures=[], output="no such file")
    assert broken.record()["passed"] is False


def test_a_report_that_was_cut_off_is_none(tmp_path):
    path = tmp_path / "report.xml"
    path.write_text("<testsuites><testsuite><testcase")
    assert read_report(path) == (0, 0, [])


@pytest.mark.skipif(find_spec("xdist") is None, reason="needs pytest-xdist")
def test_a_file_that_fails_and_one_that_takes_too_long_are_both_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    head = "import time, pytest\npytestmark = pytest.mark.gpu\n"
    (tmp_path / "test_wrong.py").write_text(f"{head}def test_one():\n    assert 1 == 2\n")
    (tmp_path / "test_slow.py").write_text(f"{head}def test_one():\n    print('begun', flush=True); time.sleep(60)\n")
    wrong = run_file("test_wrong.py", time.time() + 300, processes=2).record()
    assert (wrong["passed"], wrong["case"]) == (False, "0 passed, 1 failed, 0 skipped")
    assert wrong["failures"][0]["message"] == "assert 1 == 2"
    began = time.time()
    slow = run_file("test_slow.py", time.time() + 11, select="one", **{"GPU_SUITE_TEST": os.getcwd()}).record()
    assert slow["passed"] is False
    assert slow["case"].startswith("stopped after")
    assert any("test_one" in line for line in slow["output"]["first"]), "which test it was at"
    assert time.time() - began < 30
