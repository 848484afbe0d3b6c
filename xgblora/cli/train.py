"""`xgblora-train`: fine-tune a language model on a task and show what it gained."""

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path

from xgblora import demo
from xgblora.cli.exit import exits_with_one_line
from xgblora.cli.flags import FlagParser
from xgblora.errors import InputError
from xgblora.freed_memory import keep_freed_memory
from xgblora.runs.console import show_on_terminal
from xgblora.runs.dry_run import dry_run
from xgblora.runs.evolve import evolve
from xgblora.runs.fine_tune import fine_tune
from xgblora.runs.measure_only import measure_only
from xgblora.settings_file import read_settings
from xgblora.training.arguments import FLAGS, XGBLoRAArguments
from xgblora.training.processes import refusing_together
from xgblora.training.recipes import flags_of_recipe
from xgblora.training.task_flags import TaskArguments

DESCRIPTION = """Fine-tune a language model with XGBLoRA (boosted rank-1 adapters) or LoRA: by forward passes
alone, by evolution from rewards, or by backpropagation. Without --model_name it fine-tunes the small model of the
package on its review data.
A first argument that ends in .yaml, .yml or .json is read for flags; those on the command line win."""

_SCALARS = str | int | float | bool | None
# Flags that `--help` shows: ours, and the ones of transformers that most runs set.
SHOWN_FLAGS = {"help", "help_all", *(name for name, flag in FLAGS.items() if flag.shown)}


@exits_with_one_line
def main(arguments: list[str] | None = None) -> None:
    """Entry point; `arguments` defaults to those of the command line."""
    show_on_terminal()
    keep_freed_memory()
    with refusing_together():
        task, args = parse(sys.argv[1:] if arguments is None else arguments)
    if args.by_rewards:
        evolve(task, args)
    elif args.trainer == "none":
        measure_only(task, args)
    else:
        dry_run(task, args) if task.dry_run else fine_tune(task, args)


def parse(arguments: list[str]) -> tuple[TaskArguments, XGBLoRAArguments]:
    """The flags of `arguments`, over those of a file, over those of the demonstration if no model is named.

    Raises:
        InputError: a flag or the file is wrong.
    """
    parser = build_parser(show_all="--help_all" in arguments)
    arguments = with_flags_of_file(arguments, parser.flags())
    set_defaults(parser, arguments)
    return parser.parse(arguments)


def with_flags_of_file(arguments: list[str], known: set[str]) -> list[str]:
    """`arguments` with the flags of the file in place of its name, if the first one names a file.

    Raises:
        InputError: the file is wrong, or names a flag that is not `known`.
    """
    if arguments and not arguments[0].startswith("-") and arguments[0].endswith((".yaml", ".yml", ".json")):
        return [*read_flags(Path(arguments[0]), known), *arguments[1:]]
    return arguments


def names_of(arguments: list[str]) -> set[str]:
    """The names of the flags among `arguments`, however they are spelled."""
    flags = (argument for argument in arguments if argument.startswith("-"))
    return {flag.split("=")[0].lstrip("-").replace("-", "_") for flag in flags}


def set_defaults(parser: FlagParser, arguments: list[str]) -> None:
    """Let what a recipe sets, and over that what the demonstration does, be the defaults of `parser`.

    The demonstration is what runs unless `arguments` name a model.

    Raises:
        InputError: there is no such recipe.
    """
    given = names_of(arguments)
    # help ends the program, and shows the defaults of the flags themselves
    if given & {"help", "help_all", "h"}:
        return
    demonstration = {} if "model_name" in given else flags_of_demonstration(given)
    parser.set_defaults(**demonstration)
    known, _ = parser.parse_known_args(arguments)
    values = {name: getattr(known, name) for name in {*given, "objective"} if hasattr(known, name)}
    recipe = flags_of_recipe(known.recipe, values) if known.recipe else {}
    parser.set_defaults(**{**recipe, **demonstration})


def flags_of_demonstration(given: Collection[str]) -> dict[str, object]:
    """What the demonstration sets in a run with the flags `given`."""
    flags = demo.flags()
    if "prompts" in given:
        # the demonstration's model on prompts of one's own
        return {name: flags[name] for name in ("model_name", "dtype")}
    if {"task_name", "task_file", "data_dir"} & set(given):
        # the demonstration's model on another task
        del flags["task_name"], flags["data_dir"], flags["objective"]
    if "full" in given:
        flags["learning_rate"] = demo.LEARNING_RATE_OF_FULL_PARAMETERS
    return flags


def build_parser(*, show_all: bool) -> FlagParser:
    """The parser; its help shows our flags and the common ones of transformers, or all 150 with `show_all`."""
    parser = FlagParser(
        (TaskArguments, XGBLoRAArguments),
        usage="xgblora-train [FLAGS.yaml] [--flag value ...]",
        description=DESCRIPTION,
        epilog="All flags of transformers.TrainingArguments are taken; --help_all lists them.",
    )
    parser.add_argument("--help_all", action="help", help="show every flag and exit")
    if not show_all:
        for action in parser._actions:
            if action.dest not in SHOWN_FLAGS:
                action.help = argparse.SUPPRESS
    return parser


def read_flags(path: Path, known: set[str]) -> list[str]:
    """The flags in a YAML or JSON file, as a command line would give them; those without a value are left out.

    Raises:
        InputError: the file is missing, is no mapping, or names an unknown flag.
    """
    flags = read_settings(path) or {}
    if not isinstance(flags, dict):
        raise InputError(f"{path}: must hold flags as `name: value` lines")
    unknown = sorted(map(str, set(flags) - known))
    if unknown:
        raise InputError(f"{path}: unknown flag {unknown[0]}")
    for name, value in flags.items():
        if not _is_plain(value):
            raise InputError(
                f"{path}: {name} must be a value, a list of values, or a mapping for a flag that takes one"
            )
    return [word for name, value in flags.items() if value is not None for word in as_arguments(name, value)]


def _is_plain(value: object) -> bool:
    """Whether a flag can have this value of a file: a scalar, a list of scalars, or what JSON can say."""
    if isinstance(value, list):
        return all(isinstance(one, _SCALARS) for one in value)
    if isinstance(value, dict):
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            # dates, sets, bytes
            return False
    return isinstance(value, _SCALARS | dict)


def as_arguments(name: str, value: object) -> list[str]:
    """A flag as a command line gives it."""
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]
