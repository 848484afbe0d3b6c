"""What the commands share: flags from dataclasses, every mistake in one line."""

import argparse
import difflib

from transformers import HfArgumentParser

from xgblora.errors import InputError, in_one_line

# words of other programs, and the flag that says the same here
SAID_ELSEWHERE = {
    "batch_size": "--per_device_train_batch_size",
    "bs": "--per_device_train_batch_size",
    "cpu": "--use_cpu",
    "epochs": "--num_train_epochs",
    "lr": "--learning_rate",
    "model": "--model_name",
    "model_name_or_path": "--model_name",
    "no_cuda": "--use_cpu",
    "output": "--output_dir",
    "resume": "--resume_from_checkpoint",
    "steps": "--max_steps",
    "task": "--task_name",
}


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
        try:
            with in_one_line(Exception):
                *parsed, unknown = self.parse_args_into_dataclasses(
                    arguments, return_remaining_strings=True, look_for_args_file=False
                )
        except InputError as error:
            raise InputError(self._with_its_flag(str(error), arguments)) from None
        if unknown:
            raise InputError(self._about_unknown(unknown[0]))
        return tuple(parsed)

    def error(self, message: str):
        """What argparse calls when a value is wrong."""
        raise InputError(message)

    def _about_unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word}: is no flag; flags begin with --"
        name = word.split("=")[0].lstrip("-").replace("-", "_")
        if name in ("cuda", "device", "gpu"):
            return f"{word}: unknown flag; a GPU is used where there is one, and --use_cpu leaves it alone"
        if SAID_ELSEWHERE.get(name, "").removeprefix("--") in self.flags():
            return f"{word}: unknown flag; here it is {SAID_ELSEWHERE[name]}"
        close = difflib.get_close_matches(name, self.flags(), n=1)
        return f"{word}: unknown flag" + (f"; did you mean --{close[0]}?" if close else "")

    def _with_its_flag(self, message: str, arguments: list[str]) -> str:
        """What transformers says of a value, "x is not a valid SaveStrategy", with the flag that has it."""
        value, told, _ = message.partition(" is not a valid ")
        if not told:
            return message
        given, _ = self.parse_known_args(arguments)
        flags = [f"{name}={value}: " for name, of_flag in vars(given).items() if of_flag == value]
        return "".join(flags[:1]) + message


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except those that are nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)
