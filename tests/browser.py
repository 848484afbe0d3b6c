"""A headless Chromium, for the pages that people open."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
LAID_OUT = """names => [...document.querySelectorAll(names)].map(part => {
    const box = part.getBoundingClientRect();
    return {name: part.tagName, right: box.right, width: box.width, height: box.height, pixels: part.naturalWidth}
})"""


@dataclass
class Opened:
    """A page in the browser.

    Attributes:
        page: playwright's.
        said: lines of the console, and errors.
        fetched: addresses that were asked for, the page's own and what is inside of it aside.
    """

    page: object
    said: list[str]
    fetched: list[str]

    @property
    def spills(self) -> int:
        """Pixels that the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    def parts(self, names: str) -> list[dict]:
        """Where the elements that a CSS selector names are."""
        return self.page.evaluate(LAID_OUT, names)


@contextmanager
def browser() -> Iterator[object]:
    """Playwright's browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason='needs pip install -e ".[browser]"')
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs one of {', '.join(NAMES)}: apt-get install chromium")
    with playwright.sync_playwright() as running:
        yield running.chromium.launch(executable_path=program)


def opened(browser, path: Path, *, width: int) -> Opened:
    """The page at `path` in a window of `width` pixels."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    shown = Opened(page, [], [])
    page.on("console", lambda line: shown.said.append(line.text))
    page.on("pageerror", lambda error: shown.said.append(str(error)))
    page.on("request", lambda request: shown.fetched.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    shown.fetched = [url for url in shown.fetched if url != path.as_uri() and not url.startswith("data:")]
    return shown
