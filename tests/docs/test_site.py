"""The site builds without a warning, as mkdocs.yml has it."""

import subprocess
import sys

import pytest
import yaml

from tests.docs.pages import ROOT


def test_it_builds_and_every_warning_is_an_error(tmp_path):
    pytest.importorskip("material", reason='needs pip install -e ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()
    assert "https://fonts" not in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_every_page_is_in_its_navigation():
    def files(entries) -> set[str]:
        found = set()
        for value in entries.values() if isinstance(entries, dict) else entries:
            found |= {value} if isinstance(value, str) else files(value)
        return found

    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert files(settings["nav"]) == pages
