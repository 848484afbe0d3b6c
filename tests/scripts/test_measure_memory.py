"""scripts/measure_memory.py: bytes that follow from the shape of the model."""

from pathlib import Path

import pytest

from tests.fixtures.files import imported

PATH = Path(__file__).parents[2] / "scripts" / "measure_memory.py"


@pytest.fixture(scope="module")
def script():
    with imported(PATH) as module:
        yield module


def test_all_parameters_with_adamw_need_their_gradients_and_two_moments(script):
    row = script.measure("small", "full_adamw")
    assert row["weights_bytes"] == script.measure("small", "inference")["weights_bytes"]
    assert row["peak_bytes"] > 3 * row["weights_bytes"]
