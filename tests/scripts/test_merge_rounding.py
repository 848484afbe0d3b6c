"""scripts/merge_rounding.py: what each rounding keeps of small merges."""

from pathlib import Path

import pytest
import torch

from tests.fixtures.files import imported

PATH = Path(__file__).parents[2] / "scripts" / "merge_rounding.py"


def test_remainders_keep_all_and_nearest_loses_most(monkeypatch):
    with imported(PATH) as script:
        monkeypatch.setattr(script, "SIZE", 64)
        measured = {name: script.measure(torch.bfloat16, name, 20) for name in script.ROUNDINGS}
    assert measured["remainder"][2] == 1.0
    assert measured["remainder"][0] == pytest.approx(1.0, abs=0.1)
    assert measured["nearest"][0] < measured["remainder"][0]
    assert min(measured["nearest"][1], measured["stochastic"][1]) > measured["remainder"][1]
