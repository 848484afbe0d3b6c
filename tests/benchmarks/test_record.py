"""The results file: rows are appended, and the plot takes the newest of each case."""

import csv
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from benchmarks import record
from benchmarks.measure import Timing
from tests.fixtures.files import imported

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[2] / "scripts" / "plot_benchmarks.py"


@pytest.fixture
def plot_benchmarks():
    with imported(SCRIPT) as module:
        yield module


def run_of(seconds: float, folder: Path) -> Path:
    ways = {"step": Timing(seconds, seconds, seconds), "floor": Timing(1.0, 1.0, 1.0)}
    record.add("test_step", "step", ways, {"ours_over_floor": seconds, "share_of_flops": 0.5}, CPU)
    (path,) = record.write(folder)
    return path


def test_rows_are_appended_below_one_heading(tmp_path):
    run_of(1.5, tmp_path)
    path = run_of(1.25, tmp_path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["way"], row["median_seconds"], row["ours_over_way"]) for row in rows] == [
        *(("step", "1.5", ""), ("floor", "1", "1.5")),
        *(("step", "1.25", ""), ("floor", "1", "1.25")),
    ]
    assert rows[0]["torch"] == version("torch") and rows[0]["share_of_flops"] == "0.500"


def test_the_figure_is_of_the_newest_rows(tmp_path, plot_benchmarks):
    run_of(1.5, tmp_path)
    path = run_of(1.25, tmp_path)
    with open(path, newline="") as file:
        (row,) = plot_benchmarks.newest(list(csv.DictReader(file)))
    assert row["ours_over_way"] == "1.25"
    plot_benchmarks.draw([row], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
