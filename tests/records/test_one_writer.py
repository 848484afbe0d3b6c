"""One process at a time in a folder: who is kept out, when it is free again, and what is left of the lock."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from tests.fixtures.together import FLAGS
from xgblora.errors import InputError
from xgblora.records.one_writer import only_one
from xgblora.training import XGBLoRATrainer

OF_RUNS = {"flag": "output_dir", "who": "another run"}
LINE = "output_dir={}: another run is at work there; wait for its end, or choose another folder"
HOLDING = """
import os, sys
from pathlib import Path
from xgblora.records.one_writer import only_one
with only_one(Path(sys.argv[1]), flag="", who=""):
    if not os.fork():
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def is_free(start_processes, tmp_path):
    """A function that says whether another process gets the folder."""

    def ask() -> bool:
        def work(number):
            try:
                with only_one(tmp_path / "run", **OF_RUNS):
                    return True
            except InputError as error:
                assert str(error) == LINE.format(tmp_path / "run")
                return False

        (ended,) = start_processes(1, work).ended()
        return ended.value

    return ask


def test_another_process_is_kept_out_until_the_block_ends_and_nothing_is_left(is_free, tmp_path):
    with only_one(tmp_path / "run", **OF_RUNS):
        assert not is_free()
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []
    assert is_free()
    with only_one(tmp_path / "run", **OF_RUNS):
        (tmp_path / "run" / "file").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_a_killed_process_frees_it_at_once_though_one_that_it_forked_lives(is_free, tmp_path):
    holding = subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holding.stdout.readline() == "held\n"
    assert not is_free()
    os.kill(holding.pid, signal.SIGKILL)
    holding.wait()
    assert is_free()
    holding.communicate()


def test_with_children_it_is_held_by_what_keeps_it_open(tmp_path):
    with only_one(tmp_path, **OF_RUNS, with_children=True) as keep_open:
        with (
            pytest.raises(InputError, match="at work there"),
            only_one(tmp_path, **OF_RUNS, with_children=True),
        ):
            pass
        left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=keep_open)
    with (
        pytest.raises(InputError, match="at work there"),
        only_one(tmp_path, **OF_RUNS, with_children=True),
    ):
        pass
    left.communicate(b"\n")
    with only_one(tmp_path, **OF_RUNS, with_children=True):
        pass


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, caplog):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr("xgblora.records.one_writer.logger.propagate", True)
    with only_one(tmp_path / "run", **OF_RUNS):
        pass
    assert f"{tmp_path / 'run'}: no lock keeps a second run out (No locks available)" in caplog.text


@pytest.mark.parametrize("flags", [("--xgblora",), ("--trainer=regular", "--resume_from_checkpoint=last")])
def test_a_second_run_in_the_folder_ends_in_one_line_and_changes_nothing(
    flags, run_in, start_processes, train_tiny, tmp_path, monkeypatch
):
    step, seen = XGBLoRATrainer.training_step, []

    def contents():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def starting_another(*arguments):
        if len(seen) == 2:
            # as a checkpoint that is being written
            (tmp_path / "run" / ".checkpoint-9.x1").mkdir()
            before = contents()
            seen.extend(start_processes(1, lambda number: train_tiny(tmp_path / "run", *flags)).ended())
            assert contents() == before
        seen.append(None)
        return step(*arguments)

    monkeypatch.setattr(XGBLoRATrainer, "training_step", starting_another)
    done = run_in(tmp_path / "run", *flags, "--max_steps=4", "--num_dev=0")
    assert (seen[2].status, seen[2].errors) == (2, [f"error: {LINE.format(tmp_path / 'run')}"])
    assert [step for step, _ in done.losses] == ["1", "2", "3", "4"]
    assert not (done.folder / ".lock").exists()


def test_several_processes_are_kept_out_together(train_together, tmp_path):
    with only_one(tmp_path / "run", **OF_RUNS):
        ended = train_together(2, tmp_path / "run", *FLAGS)
    assert [one.status for one in ended] == [2, 2], ended
    assert [len(one.errors) for one in ended] == [1, 0]
    assert LINE.format(tmp_path / "run") in ended[0].errors[0]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "inside"
    with pytest.raises(InputError, match=r"output_dir=.*file.inside: cannot be written"), only_one(inside, **OF_RUNS):
        pass
