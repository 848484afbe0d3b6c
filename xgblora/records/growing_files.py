"""Files that grow by whole lines, and what of them a run keeps that goes on from an earlier step."""

import os
from collections.abc import Callable
from pathlib import Path


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
