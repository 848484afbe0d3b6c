"""What the commands share: flags from dataclasses, every mistake in one line."""

import argparse
import difflib

from transformers import HfArgumentParser

from xgblora.errors import InputError, in_one_line


class FlagParser(HfArgumentParser):
    """transformers' parser of dataclasses: no abbreviations, a help that lists each flag once, and errors in one line.

    Args:
        dataclasses: one or several, their fields the flags.
        texts: `usage`, `description`, `epilog`.
    """

    def __init__(self, dataclasses: type | tuple[type, ...], **texts: str):
        super().__init__(dataclasses, allow_abbrev=False, formatter_class=_Help, **texts)
        for action in self._actions:
            # transformers adds a spelling with hyphens to every flag; it works, and the help is half as long without it
            action.option_strings = [name for name in action.option_strings if "-" not in name.lstrip("-")]
            if any(name.startswith("--no_") for name in action.option_strings):
                # the other spelling of a flag that is on by default, with the same words
                action.help = argparse.SUPPRESS

    def flags(self) -> set[str]:
        """The names of all flags."""
        return {action.dest for action in self._actions}

    def numeric_flags(self) -> dict[str, type]:
        """The flags that take one number, and its kind, int or float."""
        return {action.dest: action.type for action in self._actions if action.type in (int, float)}

    def add_spelling(self, flag: str, spelling: str) -> None:
        """Take `--spelling` for `--flag`."""
        action = self._option_string_actions[f"--{flag}"]
        action.option_strings.append(f"--{spelling}")
        self._option_string_actions[f"--{spelling}"] = action

    def rename(self, flag: str, spelling: str) -> None:
        """Call `--flag` `--spelling`, which may be a word that no field of a dataclass can have as its name."""
        action = self._option_string_actions.pop(f"--{flag}")
        action.option_strings = [f"--{spelling}"]
        self._option_string_actions[f"--{spelling}"] = action

    def parse(self, arguments: list[str]) -> tuple:
        """An instance of each dataclass, and the namespace of what `add_argument` added, if anything.

        Raises:
            InputError: a flag is unknown or its value is wrong.
        """
        # transformers' own checks of its flags, and what it opens and imports for them: wrong in dozens of ways
        with in_one_line(Exception):
            *parsed, unknown = self.parse_args_into_dataclasses(
                arguments, return_remaining_strings=True, look_for_args_file=False
            )
        if unknown:
            raise InputError(self._about_unknown(unknown[0]))
        return tuple(parsed)

    def error(self, message: str):
        """What argparse calls when a value is wrong."""
        raise InputError(message)

    def _about_unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word}: is no flag; flags begin with --"
        close = difflib.get_close_matches(word.split("=")[0].lstrip("-"), self.flags(), n=1)
        return f"{word}: unknown flag" + (f"; did you mean --{close[0]}?" if close else "")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except those that are nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)
