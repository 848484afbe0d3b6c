"""The one error a person is shown: bad input, said in one line."""


class InputError(ValueError):
    """A flag, argument or file is wrong. The message is one line: its name, its value, and what would be right.

    Commands print the message alone and exit with status 2; from Python it is a `ValueError`.
    """
