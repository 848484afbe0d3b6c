"""The process of a stage: what it says of each part, and when it runs none."""

import io
import json
import time
from pathlib import Path

import pytest

from benchmarks.gpu.child import Speaker, carry_out
from benchmarks.gpu.stages import NotHere, Part, Setting


def said(run, *, estimate: float = 0.0, left: float = 60.0) -> list[dict]:
    file = io.StringIO()
    setting = Setting("cpu", True, Path(), time.time() + left)
    carry_out(Part("one", run, estimate, 5.0), setting, Speaker(file))
    return [json.loads(line) for line in file.getvalue().splitlines()]


@pytest.fixture(autouse=True)
def printed_to_a_file(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.child._printed", lambda: 7)


def test_a_part_that_passes_says_its_records_between_beginning_and_end():
    begin, record, end = said(lambda: [{"check": "a", "passed": True}])
    assert (begin["event"], begin["bound"], begin["at"]) == ("begin", 5.0, 7)
    assert record == {"part": "one", "record": {"check": "a", "passed": True}}
    assert (end["event"], end["state"], end["reason"]) == ("end", "passed", "")


def test_a_record_that_did_not_hold_fails_the_part():
    end = said(lambda: [{"passed": True}, {"passed": False}, {"passed": False}])[-1]
    assert (end["state"], end["reason"]) == ("failed", "2 did not hold")


def test_an_exception_is_one_line(capsys):
    def run():
        yield {"note": "first"}
        raise RuntimeError("several\nlines")

    _, record, end = said(run)
    assert record["record"] == {"note": "first"}
    assert (end["state"], end["reason"]) == ("failed", "RuntimeError: several lines")
    assert "Traceback" in capsys.readouterr().err, "the file keeps the end of what was printed"


def test_what_is_not_here_is_skipped_with_its_reason():
    def run():
        raise NotHere("no nvcc")
        yield

    end = said(run)[-1]
    assert (end["state"], end["reason"]) == ("skipped", "no nvcc")


def test_a_part_that_does_not_fit_any_more_never_begins():
    (end,) = said(lambda: pytest.fail("it began"), estimate=10.0, left=4.0)
    assert (end["state"], end["reason"]) == ("skipped", "needs about 10 s, 4 s are left")


def test_an_infinite_error_is_a_word():
    record = said(lambda: [{"largest_error": float("inf"), "values": (float("nan"), 1.0)}])[1]["record"]
    assert record == {"largest_error": "inf", "values": ["nan", 1.0]}
