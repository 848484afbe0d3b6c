"""A command in this process, and how it ended: never by a traceback."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.fixtures.runs import unchanged_logger


@dataclass(frozen=True)
class Ending:
    """How a command ended, and what it left in the folder where it was started."""

    status: int
    output: str
    errors: list[str]
    left: list[str]


@pytest.fixture
def ending_of(tmp_path, monkeypatch) -> Callable[..., Ending]:
    """A function `(main, words)` that runs a command in an empty folder; what it raises beside SystemExit goes on."""
    folder = tmp_path / "work"

    def run(main: Callable, words: list[str]) -> Ending:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chdir(folder)
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), unchanged_logger():
            try:
                main(words)
                status = 0
            except SystemExit as exit:
                status = exit.code or 0
        left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        return Ending(status, output.getvalue(), errors.getvalue().splitlines(), left)

    monkeypatch.chdir(tmp_path)
    return run


def assert_clean(ending: Ending) -> None:
    """Status 0, or status 2 with one clear line and nothing written."""
    assert ending.status in (0, 2), ending
    if ending.status == 2:
        said = [line for line in ending.errors if line.startswith("error: ")]
        assert len(said) == 1, ending.errors
        assert said == ending.errors[-1:], ending.errors
        assert len(said[0]) > len("error: ") + 5, said
        assert ending.left == [], ending


@pytest.fixture(scope="session")
def count() -> Callable[..., int]:
    """A function `(few, share)`: how many inputs a test tries, its share of XGBLORA_FUZZ where that is set."""
    whole = os.environ.get("XGBLORA_FUZZ")

    def chosen(few: int, share: float = 1.0) -> int:
        return max(few, round(share * int(whole))) if whole else few

    return chosen
