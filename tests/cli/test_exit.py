"""How commands end."""

import os
import subprocess
import sys
import textwrap

import pytest

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
