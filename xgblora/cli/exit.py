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
            with ending_on_sigterm():
                result = main(*arguments, **keywords)
            sys.stdout.flush()
            return result
        except InputError as error:
            # what was typed may have lines of its own
            tqdm.write(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:
            # Python flushes once more as it ends, and would complain again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except KeyboardInterrupt:
            tqdm.write("interrupted", file=sys.stderr)
            sys.exit(130)
        except Terminated:
            tqdm.write(f"terminated; {_GO_ON}", file=sys.stderr)
            sys.exit(143)
        except (OSError, MemoryError, torch.OutOfMemoryError) as error:
            place = f"{error.filename}: " if getattr(error, "filename", None) else ""
            reason = getattr(error, "strerror", None) or one_line(error, limit=200)
            tqdm.write(f"error: {place}{reason}; mend it, and {_GO_ON}", file=sys.stderr)
            sys.exit(1)

    return run


class Terminated(BaseException):
    """SIGTERM came. No `except Exception` keeps it from ending the command."""


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` while the block runs, so that files are left whole; a second one ends at once."""

    def terminate(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    ours = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    # a handler that is there already is the caller's
    ours = ours and before is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)
