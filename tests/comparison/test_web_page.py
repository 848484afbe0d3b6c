"""`report.html`: one file, no network, with the table, the figures and what differs."""

import base64
from html.parser import HTMLParser

import pytest

from xgblora.comparison.report import make
from xgblora.comparison.web_page import page


class Reader(HTMLParser):
    """The cells of the tables, the text, and everything that a browser would fetch."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self):
        super().__init__()
        self.rows, self.text, self.fetched, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


@pytest.fixture
def made(finished):
    runs = [
        finished(method, seed=seed, held_out=held_out, zo_eps=1e-3)
        for method, held_out in (("lora_zo", 0.6), ("xgblora_zo", 0.8))
        for seed in (0, 1)
    ]
    return make(runs, {}, [0, 1])


@pytest.fixture
def figure(tmp_path):
    path = tmp_path / "loss_by_forwards.png"
    path.write_bytes(b"\x89PNG pixels")
    return path


def test_it_has_the_table_and_what_it_says(made, figure):
    reader = read(page(made, "opt-mini on SST2", [figure]))
    shares = [row[:2] for row in reader.rows[:4]]
    assert shares[1:] == [["zero-shot", "50.0 ± 0.0%"], ["lora_zo", "60.0 ± 0.0%"], ["xgblora_zo", "80.0 ± 0.0%"]]
    assert any("20.0 points of held-out accuracy ahead of lora_zo" in text for text in reader.text)


def test_it_needs_nothing_but_itself(made, figure):
    reader = read(page(made, "opt-mini on SST2", [figure]))
    (source,) = reader.fetched
    kind, _, data = source.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == figure.read_bytes()


def test_what_differs_stands_apart_from_what_is_the_same(finished, figure):
    runs = [
        finished("lora_zo", learning_rate=1e-4, zo_eps=1e-3),
        finished("xgblora_zo", learning_rate=2e-4, zo_eps=1e-3),
    ]
    reader = read(page(make(runs, {}, [0]), "title", [figure]))
    place = reader.rows.index(["method", "learning_rate"])
    assert reader.rows[place + 1 : place + 3] == [["lora_zo", "0.0001"], ["xgblora_zo", "0.0002"]]
    assert ["zo_eps", "0.001"] in reader.rows
    assert not any(row[:1] == ["learning_rate"] for row in reader.rows)


def test_names_are_text_and_no_markup(made, figure):
    text = page(made, "<script>alert(1)</script>", [figure])
    assert "<script>" not in text
    assert "<script>alert(1)</script>" in "".join(read(text).text)
