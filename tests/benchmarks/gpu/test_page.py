"""docs/gpu.md and the README's lines: made of results files, and those in the repository of the files in it."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.page import GOALS, page, readme_lines, with_lines
from benchmarks.gpu.report import summary

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "gpu_page.py"


@pytest.fixture
def file(tmp_path, results) -> Path:
    path = tmp_path / "sample-gpu.json"
    path.write_text(json.dumps(results))
    return path


def make(tmp_path, *files):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- made by scripts/gpu_page.py -->\nold\n<!-- until here -->\nafter\n")
    command = [sys.executable, SCRIPT, *files, "--docs", tmp_path / "docs", "--readme", readme]
    return subprocess.run(command, capture_output=True, text=True), tmp_path / "docs" / "gpu.md", readme


def test_the_page_the_figure_and_the_readme_come_from_the_file(tmp_path, file):
    done, written, readme = make(tmp_path, file)
    assert (done.returncode, done.stderr) == (0, "")
    text = written.read_text()
    assert "## Sample GPU" in text
    assert "| opt-350m, bfloat16, 16 x 64 tokens | 9.00 | 16.00 | 1.023 | 9.00 | 4.89 | 5.78 | 6.67 | 2.33 |" in text
    assert "`merge_rank1_` | 8 x 8192 x 8192, remainder | a copy of the bytes | 1600.0 | 1430.0 | 1.119" in text
    assert (tmp_path / "docs" / "gpu" / "sample-gpu.png").read_bytes().startswith(b"\x89PNG")
    lines = readme.read_text()
    assert lines.startswith("before\n") and lines.endswith("\nafter\n") and "old" not in lines
    assert "| zeroth-order step / two bare forwards, OPT-350m | at most 1.050 | 1.023 |" in lines


def test_what_failed_hung_or_was_left_out_is_on_the_page(results):
    text = page([results], ["gpu/sample.png"])
    assert "Checks: 1 held, 1 did not." in text
    assert (
        "- checks / perturb, triton: bfloat16 [1023] gaussian; 1 of 4092 values differ; at [3, 7]: 1.5, not 1" in text
    )
    assert "- checks / hangs: hung: because" in text
    assert "- tuning: takes about 40 s, 3 s are left" in text


def test_a_goal_that_is_missed_is_said_to_be_by_the_worst_case(results):
    (merge,) = [goal for goal in GOALS if goal.timing == "merge_rank1_"]
    assert merge.found(results) == pytest.approx(1600 / 1430)
    assert merge.verdict(results) == "89% (missed)"
    assert merge.asked == "at least 90%"
    assert "89% (missed)" in readme_lines([results])


def test_a_figure_that_was_not_measured_is_said_to_be_none(results):
    results["stages"] = [stage for stage in results["stages"] if stage["name"] != "kernels"]
    assert readme_lines([results]).count("not measured") == 3


def test_several_devices_stand_side_by_side(results):
    other = copy.deepcopy(results)
    other["stages"][0]["parts"][0]["records"][0]["value"]["name"] = "Another GPU"
    assert "| goal | Sample GPU | Another GPU |" in readme_lines([results, other])
    assert "## Another GPU" in page([results, other], ["gpu/a.png", "gpu/b.png"])


def test_without_a_file_the_page_says_which_command_makes_one():
    assert "python scripts/gpu_suite.py --minutes 8" in page([], [])
    assert readme_lines([]).startswith("GPU figures: not yet measured")


def test_the_lines_at_the_end_of_a_run_name_ratios_and_failures(results):
    lines = "\n".join(summary(results))
    assert "9000.0 us  step, opt-350m, bfloat16, 16 x 64 tokens: 0.562 of uncaptured, 1.023 of floor" in lines
    assert "FAILED  checks / hangs: hung: because" in lines
    assert "left out  tuning: takes about 40 s, 3 s are left" in lines


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', '{"format": 1', '{"format": 1}'])
def test_what_is_no_results_file_is_one_line(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    done, written, readme = make(tmp_path, path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}: no results file of scripts/gpu_suite.py")
    assert done.stderr.count("\n") == 1
    assert not written.exists() and "old" in readme.read_text()


def test_a_ratio_that_is_no_number_is_left_out(results):
    (step, _) = results["stages"][2]["parts"]
    step["records"][0]["ours_over"]["floor"] = "nan"
    assert "| zeroth-order step / two bare forwards, OPT-350m | at most 1.050 | not measured |" in readme_lines(
        [results]
    )
    assert "opt-350m" not in "\n".join(summary(results))


def test_a_rehearsal_is_no_measurement(tmp_path, results):
    path = tmp_path / "rehearsal.json"
    path.write_text(json.dumps({**results, "rehearsal": True}))
    done, written, _ = make(tmp_path, path)
    assert (done.returncode, done.stderr) == (1, f"error: {path}: of a rehearsal: its figures are a CPU's\n")
    assert not written.exists()


def test_a_readme_without_a_place_is_refused():
    with pytest.raises(ValueError, match="no place between"):
        with_lines("nothing here", "lines")


def test_the_page_in_the_repository_is_the_one_that_the_script_makes(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text())
    done = subprocess.run(
        [sys.executable, SCRIPT, "--docs", tmp_path, "--readme", readme], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "gpu.md").read_text() == (ROOT / "docs" / "gpu.md").read_text()
    assert readme.read_text() == (ROOT / "README.md").read_text()
