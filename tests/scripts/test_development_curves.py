"""scripts/development_curves.py: a figure of runs' evaluations."""

import runpy
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "development_curves.py"


@pytest.fixture
def drawing(monkeypatch, tmp_path):
    """A function `(*runs)` that runs the script; the figure's path."""

    def draw(*runs: str) -> Path:
        monkeypatch.setattr(sys, "argv", [str(PATH), "--output", str(tmp_path / "curves.png"), *runs])
        runpy.run_path(str(PATH), run_name="__main__")
        return tmp_path / "curves.png"

    return draw


def test_two_runs(drawing, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        entries = [f'{{"step": {step}, "eval_loss": {1 / step}, "eval_accuracy": 0.5}}\n' for step in (10, 20)]
        (tmp_path / name / "eval_loss.jsonl").write_text("".join(entries))
    figure = drawing(f"one = 1={tmp_path / 'a'}", str(tmp_path / "b"))
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_evaluations(drawing, tmp_path):
    with pytest.raises(SystemExit, match=r"there is no .*eval_loss.jsonl; give NAME=FOLDER"):
        drawing(f"one={tmp_path}")
