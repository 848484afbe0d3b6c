"""How a command ends when the input is wrong: one line on standard error and status 2."""

import functools
import os
import sys
from collections.abc import Callable

from tqdm import tqdm

from xgblora.errors import InputError


def exits_with_one_line(main: Callable) -> Callable:
    """Turn an InputError of `main` into its message and status 2, an interrupt into status 130.

    The line comes out above a bar that is still there. A reader that went away (`| head`) ends the command without a
    word, with the status that a shell expects, 141.
    """

    @functools.wraps(main)
    def run(*arguments, **keywords):
        try:
            result = main(*arguments, **keywords)
            sys.stdout.flush()
            return result
        except InputError as error:
            tqdm.write(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:
            # Python flushes once more as it ends, and would complain again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except KeyboardInterrupt:
            tqdm.write("interrupted", file=sys.stderr)
            sys.exit(130)

    return run
