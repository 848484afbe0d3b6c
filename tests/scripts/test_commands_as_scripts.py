"""The scripts that are commands by another name."""

from pathlib import Path

import pytest

from tests.fixtures.files import imported
from xgblora.cli import compare, train

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(("name", "command"), [("run_xgblora", train.main), ("compare_xgblora_lora", compare.main)])
def test_a_script_is_the_command(name, command):
    with imported(SCRIPTS / f"{name}.py") as script:
        assert script.main is command
