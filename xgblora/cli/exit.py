"""How a command ends when the input is wrong: one line on standard error and status 2."""

import functools
import sys
from collections.abc import Callable

from xgblora.errors import InputError


def exits_with_one_line(main: Callable) -> Callable:
    """Turn an InputError of `main` into its message and status 2, an interrupt into status 130."""

    @functools.wraps(main)
    def run(*arguments, **keywords):
        try:
            return main(*arguments, **keywords)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run
