"""Where results files stand, what they are called, and which commit they are of. It imports no torch."""

import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


def slug(name: str) -> str:
    """A file name for a device name: "NVIDIA H200" becomes "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str:
    """The commit of this checkout, with a `+` if anything but results was changed since; empty without git."""
    try:
        found = _git("rev-parse", "--short", "HEAD").stdout.strip()
        changed = _git("diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)benchmarks/results").returncode
    except OSError:  # there is no such program
        return ""
    return found and found + ("+" if changed else "")


def _git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], cwd=FOLDER.parent, capture_output=True, text=True)
