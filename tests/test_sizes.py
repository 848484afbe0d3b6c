"""What CONTRIBUTING says of sizes: functions of 60 lines at most, files of 400, kernels apart."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_LINES, FUNCTION_LINES = 400, 60


def sources() -> list[Path]:
    """All Python files that git knows, kernels apart; none outside a repository."""
    done = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in done.stdout.split() if not name.startswith("kernels/")]


@pytest.mark.skipif(not sources(), reason="this is no checkout of git")
def test_no_file_and_no_function_is_too_long():
    too_long = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > FILE_LINES:
            too_long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    too_long.append(f"{path.relative_to(ROOT)}, {node.name}: {lines} lines")
    assert too_long == []
