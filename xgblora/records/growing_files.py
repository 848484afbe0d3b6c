"""Files that grow by whole lines, and what of them a run keeps that goes on from an earlier step."""

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
    """Write `text`, whole lines, at the end of a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
