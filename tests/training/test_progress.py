"""What a person sees while a run goes on: one bar on a terminal, a line of the log now and then elsewhere."""

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from transformers import TrainerState

from tests.fixtures.runs import unchanged_logger
from xgblora.training.progress import Progress, ShowProgress, fitted

ROOT = Path(__file__).parents[2]
PARTS = ["step 120/800", "loss 0.5243", "round 3", "accuracy 0.9250", "45.2 steps/s", "0:15 left"]
LINE = re.compile(r"step \d+/\d+(, (loss|accuracy) \d\.\d{4}|, round \d|, [\d.]+ steps/s|, \d+:\d\d left)*")


class TestProgress:
    """What is said, and in which order."""

    def test_the_loss_is_smoothed_and_begins_at_the_first(self):
        progress = Progress(steps=10, first=0, begun=0.0)
        progress.add(2.0)
        assert progress.parts(1, 0.0, None) == ["step 1/10", "loss 2.0000"]
        progress.add(1.0)
        # weights 0.8 and 1
        assert progress.parts(2, 0.0, None)[1] == f"loss {(0.8 * 2.0 + 1.0) / 1.8:.4f}"

    def test_the_pace_is_of_the_steps_of_this_process(self):
        progress = Progress(steps=300, first=100, begun=1000.0, metric="accuracy 0.9000")
        said = progress.parts(200, 1050.0, 4)
        assert said == ["step 200/300", "round 4", "accuracy 0.9000", "2.0 steps/s", "0:50 left"]
        assert progress.parts(110, 1000.0 + 200.0, None)[2:] == ["0.05 steps/s", "1:03:20 left"]
        assert progress.parts(100, 1050.0, None) == ["step 100/300", "accuracy 0.9000"]


class TestFitted:
    """A line as wide as the terminal."""

    def test_what_is_left_is_a_bar(self):
        line = fitted(PARTS, 0.5, 120)
        assert line == ", ".join(PARTS) + " [" + "#" * 15 + "." * 15 + "]"

    @pytest.mark.parametrize("width", range(1, 120))
    def test_a_narrow_terminal_has_the_first_parts_whole(self, width):
        line = fitted(PARTS, 0.25, width)
        assert len(line) <= width
        if width >= len(PARTS[0]):
            said = line.partition(" [")[0].split(", ")
            assert said == PARTS[: len(said)]

    def test_the_bar_ends_where_the_run_does(self):
        assert fitted(["step 8/8"], 1.0, 20) == "step 8/8 [#########]"
        assert fitted(["step 0/8"], 0.0, 20) == "step 0/8 [.........]"


@pytest.fixture(scope="module")
def flags(tiny_flags, tmp_path_factory) -> list[str]:
    given = [flag for flag in tiny_flags if not flag.startswith("--disable_tqdm")]
    folder = tmp_path_factory.mktemp("shown") / "run"
    given += [f"--output_dir={folder}", "--max_steps=20", "--xgblora_steps_per_iteration=5", "--overwrite"]
    return [*given, "--save_model=false"]


PROGRAM = """
import sys
from matplotlib.figure import Figure
from xgblora.cli.train import main
Figure.savefig = lambda figure, path, **options: open(path, "wb").close()
main(sys.argv[1:])
"""


def shown_on_a_terminal(flags: list[str], width: int, **environment: str) -> str:
    """All that a run writes to a terminal of `width` columns."""
    terminal, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *flags],
        stdout=other_end,
        stderr=other_end,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    os.close(other_end)
    written = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:
            # what a Linux terminal says when the program has ended
            break
        if not part:
            break
        written += part
    os.close(terminal)
    assert process.wait() == 0, written.decode()
    return written.decode("ascii")


def screen(written: str) -> list[str]:
    """The lines that stay when all is written."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        cells = ""
        for drawn in line.split("\r"):
            cells = drawn + cells[len(drawn) :]
        lines.append(cells.rstrip())
    return lines


def test_a_terminal_that_does_not_say_its_size_has_a_bar(monkeypatch):
    terminal, other_end = pty.openpty()
    with open(other_end, "w", encoding="ascii") as stream:
        assert os.get_terminal_size(stream.fileno()) == (0, 0)
        monkeypatch.setattr(sys, "stderr", stream)
        bar, state = ShowProgress(None), TrainerState(max_steps=20, global_step=5)
        bar.on_train_begin(None, state, None)
        bar.on_step_end(None, state, None)
        bar.on_train_end(None, state, None)
        written = os.read(terminal, 1 << 16)
    os.close(terminal)
    assert b"step 5/20 [#######" in written


class TestTerminal:
    """A run on a terminal."""

    @pytest.fixture(scope="class")
    def written(self, flags) -> str:
        return shown_on_a_terminal(flags, 100, NO_COLOR="1")

    def test_one_bar_goes_on_below_the_lines_that_stay(self, written):
        lines = screen(written)
        merges = [line for line in lines if "Merging" in line]
        assert merges == [f"XGBLoRA: Merging and reinitializing at step {step}" for step in (5, 10, 15, 20)]
        evaluations = [line for line in lines if "Evaluated" in line]
        assert [line.partition(": loss")[0] for line in evaluations] == [
            f"XGBLoRA: Evaluated at step {step}" for step in (10, 20)
        ]
        # the bar stays where it ended, once
        (bar,) = [line for line in lines if line.startswith("step ")]
        assert bar.startswith("step 20/20, loss ")
        assert LINE.fullmatch(bar.partition(" [")[0])
        assert ", round 5, accuracy " in bar

    def test_no_line_is_broken(self, written):
        for line in screen(written):
            assert not re.search(r".(step \d+/|XGBLoRA: )", line), line

    def test_no_colour_and_no_movement_of_the_cursor(self, written):
        assert "\x1b" not in written

    def test_the_log_has_no_bar(self, written, flags):
        (folder,) = (flag.partition("=")[2] for flag in flags if flag.startswith("--output_dir"))
        log = (Path(folder) / "train.log").read_text(encoding="utf-8")
        assert "Evaluated at step 20" in log
        assert "step 20/20" not in log
        assert "\r" not in log


def test_where_there_is_no_terminal_every_logging_step_is_a_line(flags, train_tiny, caplog):
    with unchanged_logger():
        # which a command does not hand on
        logging.getLogger("xgblora").addHandler(caplog.handler)
        train_tiny(None, "--disable_tqdm=false", *flags)
    lines = [message for message in caplog.messages if message.startswith("step ")]
    assert [line.partition(",")[0] for line in lines] == [f"step {step}/20" for step in (5, 10, 15, 20)]
    assert all(LINE.fullmatch(line) for line in lines)
    assert "accuracy" in lines[2] and "accuracy" not in lines[1]
