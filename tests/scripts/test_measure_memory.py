"""scripts/measure_memory.py: bytes that follow from the shape of the model."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "measure_memory.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("measure_memory", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_parameters_with_adamw_need_their_gradients_and_two_moments(script):
    row = script.measure("small", "full_adamw")
    assert row["weights_bytes"] == script.measure("small", "inference")["weights_bytes"]
    assert row["peak_bytes"] > 3 * row["weights_bytes"]
