"""The log as a terminal shows it."""

import ast
import io
import sys
from pathlib import Path

import pytest

from tests.fixtures.runs import unchanged_logger
from xgblora.runs.console import logger, show_on_terminal

ROOT = Path(__file__).parents[2]


def literals(path: Path) -> list[str]:
    """The text of a file that may be printed: all strings but docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and ast.get_docstring(n)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node.value for node in strings if id(node) not in docstrings]


@pytest.mark.parametrize("room", ["runs", "training", "cli", "comparison", "boosting", "zo", "adapters"])
def test_what_is_printed_is_in_the_code_page_of_windows(room):
    for path in (ROOT / "xgblora" / room).rglob("*.py"):
        for text in literals(path):
            assert text.encode("cp1252", errors="replace").decode("cp1252") == text, path


def test_what_a_code_page_lacks_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252", newline="\n"))
    with unchanged_logger():
        logger.handlers.clear()
        show_on_terminal()
        logger.info("r\u00e9sum\u00e9 \u00b1 \u2192 \u6a21\u578b")
    sys.stdout.flush()
    assert written.getvalue() == "r\u00e9sum\u00e9 \u00b1 \\u2192 \\u6a21\\u578b\n".encode("cp1252")
