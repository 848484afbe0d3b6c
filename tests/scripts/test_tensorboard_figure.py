"""scripts/tensorboard_figure.py: a figure of a run's event file."""

import sys
from pathlib import Path

import pytest

from tests.fixtures.files import imported

PATH = Path(__file__).parents[2] / "scripts" / "tensorboard_figure.py"


@pytest.fixture
def script():
    with imported(PATH) as module:
        yield module


def test_a_panel_for_each_scalar_that_there_is(script, tmp_path):
    scalars = {"train/loss": ([1, 2], [0.5, 0.4]), "train/update_norm": ([2], [0.1]), "of something else": ([1], [1.0])}
    script.draw(scalars, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_events(script, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(PATH), str(tmp_path)])
    with pytest.raises(SystemExit, match="has no event file of TensorBoard"):
        script.main()
