"""How commands end."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from xgblora.cli.exit import exits_with_one_line
from xgblora.errors import InputError


def ended(capsys, error: BaseException) -> tuple[int, str]:
    @exits_with_one_line
    def main():
        raise error

    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code, capsys.readouterr().err


def test_an_input_error_is_its_line_and_status_2(capsys):
    assert ended(capsys, InputError("flag=1: must be 2")) == (2, "error: flag=1: must be 2\n")


def test_an_interrupt_is_status_130(capsys):
    assert ended(capsys, KeyboardInterrupt()) == (130, "interrupted\n")


@pytest.mark.parametrize(
    "error, said",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a"),
            "error: runs/a: No space left on device; mend it, and ",
        ),
        (MemoryError("no memory"), "error: no memory; mend it, and "),
        (torch.OutOfMemoryError("CUDA out of memory."), "error: CUDA out of memory.; mend it, and "),
    ],
)
def test_a_machine_that_has_no_room_is_one_line_that_says_how_to_go_on(capsys, error, said):
    status, line = ended(capsys, error)
    assert status == 1
    assert line.startswith(said)
    assert line.endswith("--resume_from_checkpoint last\n")


def test_sigterm_is_status_143_and_one_line(capsys):
    @exits_with_one_line
    def main():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 143
    assert capsys.readouterr().err == "terminated; a run with checkpoints goes on by --resume_from_checkpoint last\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_it_at_once(name):
    program = f"""
        import os, signal, time
        from xgblora.cli.exit import exits_with_one_line
        @exits_with_one_line
        def main():
            try:
                os.kill(os.getpid(), signal.{name})
                time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.{name})
                time.sleep(60)
        main()
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, timeout=60)
    assert process.returncode == -getattr(signal, name)


def test_any_other_error_keeps_its_traceback():
    @exits_with_one_line
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_the_result_and_the_arguments_pass_through():
    assert exits_with_one_line(lambda *arguments: arguments)(1, 2) == (1, 2)


@pytest.mark.skipif(os.name != "posix", reason="pipes that break are POSIX's")
def test_a_reader_that_went_away_ends_the_command_in_silence():
    program = """
        from xgblora.cli.exit import exits_with_one_line
        @exits_with_one_line
        def main():
            for line in range(100_000):
                print(line)
        main()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141
