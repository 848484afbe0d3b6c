"""`report.html` as a browser shows it."""

import numpy as np
import pytest

from tests.browser import browser, opened
from xgblora.comparison.figures import Curve, draw
from xgblora.comparison.report import make
from xgblora.comparison.web_page import page


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def report(finished, tmp_path):
    runs = [
        finished(method, seed=seed, held_out=held_out, zo_eps=1e-3, learning_rate=rate, data_dir="a/long/place" * 9)
        for method, held_out, rate in (("lora_zo", 0.6, 1e-4), ("xgblora_zo", 0.8, 2e-4))
        for seed in (0, 1)
    ]
    figure = tmp_path / "loss.png"
    curve = Curve("lora_zo", np.arange(50.0), np.linspace(1.0, 0.5, 50)[None])
    draw(figure, [curve], title="title", xlabel="step", ylabel="loss")
    path = tmp_path / "report.html"
    path.write_text(page(make(runs, {}, [0, 1]), "opt-mini on SST2", [figure]), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 400])
def test_everything_is_seen_and_nothing_is_wider_than_the_window(chromium, report, width):
    shown = opened(chromium, report, width=width)
    assert (shown.said, shown.fetched) == ([], [])
    assert shown.spills <= 0
    parts = shown.parts("h1, h2, div, img, details")
    assert {part["name"] for part in parts} == {"H1", "H2", "DIV", "IMG", "DETAILS"}
    folded = shown.parts("details *:not(summary)")
    for part in parts:
        assert part["right"] <= width, part
        assert (part["width"] > 0 and part["height"] > 0) or part in folded, part
        # a picture, and not the words that stand for one
        assert part["name"] != "IMG" or (part["pixels"] > 1000 and part["height"] > 200), part


def test_what_is_the_same_is_folded_until_asked_for(chromium, report):
    shown = opened(chromium, report, width=400)
    assert not shown.page.get_by_text("zo_eps").is_visible()
    shown.page.locator("summary").click()
    assert shown.page.get_by_text("zo_eps").is_visible()
    # and a value that is too long scrolls inside of its table
    assert shown.spills <= 0
