"""Files that grow by whole lines, and what of them a run keeps that goes on from an earlier step."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from xgblora.atomic_file import write_text


def lines_up_to(last_step: int, path: Path, step_of: Callable[[str], int], *, heading: int = 0) -> str:
    """The lines of a file after its heading, up to `last_step` or the first that a killed process left unreadable."""
    lines = path.read_bytes().split(b"\n")[heading:-1] if path.exists() else []
    kept = []
    for line in lines:
        try:
            text = line.decode("utf-8")
            if step_of(text) > last_step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(text + "\n")
    return "".join(kept)


def cut_jsonl(path: Path, last_step: int) -> None:
    """Leave of a file of one JSON object a line what a run keeps that goes on from `last_step`; none if it is new."""
    write_text(path, lines_up_to(last_step, path, lambda line: json.loads(line)["step"]) if last_step else "")


def cut_csv(path: Path, last_step: int, columns: str) -> None:
    """As `cut_jsonl`, of a table whose first column is the step; `columns` is its heading."""
    kept = lines_up_to(last_step, path, lambda line: int(line.split(",")[0]), heading=1) if last_step else ""
    write_text(path, columns + "\n" + kept)


def append(path: Path, text: str) -> None:
    """Write `text`, whole lines, at the end of a file.

    Raises:
        FileNotFoundError: somebody removed it since the run began it; one that begins in the middle would look whole.
    """
    append_bytes(path, text.encode("utf-8"))


def append_bytes(path: Path, content: bytes) -> None:
    """As `append`, of bytes."""
    # r+ and not a, which makes a file that is not there
    with open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(content)
