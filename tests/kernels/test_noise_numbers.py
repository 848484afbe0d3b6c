"""The numbers of the noise stand once in Python."""

import ast
from pathlib import Path

from xgblora.kernels import noise_numbers as numbers

ROOT = Path(__file__).parent.parent.parent
HOME = ROOT / "kernels" / "noise_numbers.py"
INTEGERS = {*numbers.PHILOX_MULTIPLIERS, *numbers.PHILOX_KEY_INCREMENTS, numbers.SQRT_HALF_BITS}


def integers_in(path: Path) -> set[int]:
    """The integers that a file writes out."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and type(node.value) is int}


def test_no_other_file_writes_them_out():
    assert integers_in(HOME) >= INTEGERS
    others = [path for room in ("kernels", "xgblora") for path in (ROOT / room).rglob("*.py") if path != HOME]
    assert [path for path in others if integers_in(path) & INTEGERS] == []
    # pi and ln 2, without which there is no angle and no logarithm
    for path in (ROOT / "kernels" / "philox.py", ROOT / "xgblora" / "ops" / "noise.py"):
        assert "math." not in path.read_text(encoding="utf-8"), path
