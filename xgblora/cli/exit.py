"""How a command ends when the input is wrong: one line on standard error and status 2."""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from xgblora.errors import InputError
from xgblora.process_group import AgreedInputError, ProcessFailure, leave_together, process_number
from xgblora.spelling import one_line

_GO_ON = "a run with checkpoints goes on by --resume_from_checkpoint last"


def exits_with_one_line(main: Callable) -> Callable:
    """Turn an InputError of `main` into its message and status 2, an interrupt into status 130.

    SIGTERM ends it with status 143, and a file that cannot be written, or memory that is not there, with status 1, each
    in one line; what a run has written by then is whole, and the line says how it goes on.
    The line comes out above a bar that is still there.
    A reader that went away (`| head`) ends the command without a word, with the status that a shell expects, 141.
    """

    @functools.wraps(main)
    def run(*arguments, **keywords):
        try:
            with ending_on_signals():
                result = main(*arguments, **keywords)
            sys.stdout.flush()
            return result
        except InputError as error:
            # what was typed may have lines of its own; of several processes one has the line
            if str(error):
                tqdm.write(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
            if isinstance(error, AgreedInputError):
                leave_together(2)
            sys.exit(2)
        except ProcessFailure as error:
            if str(error):
                tqdm.write(f"error: {error}; {_GO_ON}", file=sys.stderr)
                error.let_others_look()
            sys.exit(1)
        except BrokenPipeError:
            # Python flushes once more as it ends, and would complain again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except KeyboardInterrupt:
            _say_once("interrupted")
            sys.exit(130)
        except Terminated:
            _say_once(f"terminated; {_GO_ON}")
            sys.exit(143)
        except (OSError, MemoryError, torch.OutOfMemoryError) as error:
            place = f"{error.filename}: " if getattr(error, "filename", None) else ""
            reason = getattr(error, "strerror", None) or one_line(error, limit=200)
            tqdm.write(f"error: {place}{reason}; mend it, and {_GO_ON}", file=sys.stderr)
            sys.exit(1)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            # killed from outside, most often because there was no memory left
            print(f"error: {one_line(error, limit=200)}; fewer workers need less memory; {_GO_ON}", file=sys.stderr)
            sys.exit(1)

    return run


def _say_once(line: str) -> None:
    """Write a line to standard error; of several processes the first one does."""
    if not process_number():
        tqdm.write(line, file=sys.stderr)


class Terminated(BaseException):
    """SIGTERM came. No `except Exception` keeps it from ending the command."""


_RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
# a handler that is another is the caller's, and stays
_UNTOUCHED = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise an exception while the block runs, so that files are left whole.

    A second one ends the process at once, as SIGKILL does.
    """

    def end(number, frame):
        signal.signal(number, signal.SIG_DFL)
        raise _RAISED[number]

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: ours for number, ours in _UNTOUCHED.items() if signal.getsignal(number) is ours}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
