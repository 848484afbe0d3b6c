"""The pages that people read: README and docs, their blocks and the commands in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(path: Path, program: str) -> list[list[str]]:
    """The words of the indented commands of a page that begin with `program`, lines that end in a backslash joined."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(rf"^    {program}(?: (.*))?$", text, flags=re.MULTILINE)
    return [line.split("#")[0].replace('"', "").split() for line in lines]
