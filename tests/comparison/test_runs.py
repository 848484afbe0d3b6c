"""Single runs: what stands in their folders, how they are started and stopped."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from xgblora.comparison import runs
from xgblora.errors import InputError

posix = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


def finishing(run) -> int:
    run.folder.step_loss.write_text("step,loss\n")
    run.folder.write_metrics({})
    return 0


def crashing(run) -> int:
    run.console.write_text("first\n\n" + "".join(f"line {number}\n" for number in range(7)))
    return 3


def test_a_folder_that_is_not_there_or_empty_is_fine(planned):
    run = planned()
    runs.check(run)
    run.folder.path.mkdir()
    runs.check(run)


def test_the_same_run_begun_or_finished_is_fine(planned):
    run = planned()
    runs.carry_out(run, crashing)
    runs.check(run)
    assert not run.done
    assert runs.carry_out(run, finishing) is None
    runs.check(run)
    assert run.done


def test_how_a_crash_ended_is_kept(planned):
    ended = runs.carry_out(planned(), crashing)
    assert ended == runs.Ended(3, ["line 2", "line 3", "line 4", "line 5", "line 6"])


def test_other_settings_are_refused_and_named(planned):
    runs.carry_out(planned(learning_rate=1e-3), finishing)
    with pytest.raises(InputError, match=r"lora_zo-seed0 was run with learning_rate=0.001, and now it is 0.1; choose"):
        runs.check(planned(learning_rate=0.1))


def test_what_makes_no_difference_may_differ(planned):
    runs.carry_out(planned(disable_tqdm=True, output_dir="a", unknown_today=1), finishing)
    runs.check(planned(disable_tqdm=False, output_dir="b"))


def test_a_folder_of_something_else_is_refused_and_never_removed(planned):
    run = planned()
    run.folder.path.mkdir()
    file = run.folder.path / "mine"
    file.write_text("mine")
    for anew in (False, True):
        with pytest.raises(InputError, match="lora_zo-seed0 was not written by a comparison"):
            runs.check(run, anew=anew)
    runs.forget(run)
    assert file.exists()


def test_a_run_that_is_forgotten_begins_anew(planned):
    run = planned()
    runs.carry_out(run, finishing)
    runs.forget(run)
    assert not run.folder.path.exists()


def test_names_say_what_was_swept():
    assert runs.folder_name("lora_zo", 2, {}) == "lora_zo-seed2"
    assert runs.folder_name("lora_zo", 0, {"learning_rate": 3e-4}) == "lora_zo-seed0-learning_rate-0.0003"


def test_output_is_appended_and_the_status_given(tmp_path):
    console = tmp_path / "console.log"
    for _ in range(2):
        program = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(5)"
        assert runs.wait_for([sys.executable, "-c", program], console) == 5
    assert console.read_text() == "out\nerr\n" * 2


@pytest.fixture
def terminal_sigint():
    """Ctrl-C as on a terminal: a shell starts what runs in the background with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@posix
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, None)])
def test_a_signal_stops_the_process_and_then_the_comparison(tmp_path, number, status, terminal_sigint):
    console = tmp_path / "console.log"
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ending, runs.stopping_on_sigterm():
        threading.Thread(target=signal_when_written, args=(console, number), daemon=True).start()
        runs.wait_for([sys.executable, "-c", program], console)
    assert getattr(ending.value, "code", None) == status
    with pytest.raises(ProcessLookupError):
        os.kill(int(console.read_text()), 0)


def signal_when_written(path: Path, number: int) -> None:
    while not (path.exists() and path.read_text().endswith("\n")):
        time.sleep(0.01)
    os.kill(os.getpid(), number)
