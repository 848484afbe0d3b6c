"""The site builds without a warning, as mkdocs.yml has it."""

import subprocess
import sys

import pytest
import yaml

from tests.browser import browser, opened
from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as mkdocs.yml says; a link to a page, a heading or a file that is not there is a warning."""
    pytest.importorskip("material", reason='needs pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_builds_and_every_warning_is_an_error(site):
    assert (site / "index.html").is_file()
    assert "https://fonts" not in (site / "index.html").read_text(encoding="utf-8")


def test_a_browser_shows_its_start_page_from_the_folder_alone(site):
    with browser() as running:
        for width in (1280, 400):
            shown = opened(running, site / "index.html", width=width)
            assert shown.said == []
            assert all(url.startswith(site.as_uri()) for url in shown.fetched)
            assert shown.spills <= 0
            (loop,) = shown.parts("article img")
            assert loop["pixels"] > 1000
            assert loop["right"] <= width


def test_every_page_is_in_its_navigation():
    def files(entries) -> set[str]:
        found = set()
        for value in entries.values() if isinstance(entries, dict) else entries:
            found |= {value} if isinstance(value, str) else files(value)
        return found

    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert files(settings["nav"]) == pages
