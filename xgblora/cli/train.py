"""`xgblora-train`: fine-tune a language model on a task and show what it gained."""

import argparse
import difflib
import json
import sys
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from xgblora import demo
from xgblora.cli.exit import exits_with_one_line
from xgblora.errors import InputError
from xgblora.training.arguments import AdapterArguments, TaskArguments, XGBLoRAArguments
from xgblora.training.console import show_on_terminal
from xgblora.training.fine_tune import fine_tune

DESCRIPTION = """Fine-tune a language model with XGBLoRA (boosted rank-1 adapters) or LoRA, by forward passes alone
or by backpropagation. Without --model_name it fine-tunes the small model of the package on its review data.
A first argument that ends in .yaml, .yml or .json is read for flags; those on the command line win."""

# Flags that `--help` shows: ours, and the ones of transformers that most runs set.
SHOWN_FLAGS = {
    *TaskArguments.__annotations__,
    *AdapterArguments.__annotations__,
    "help",
    "help_all",
    "output_dir",
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_steps",
    "num_train_epochs",
    "weight_decay",
    "warmup_steps",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "per_device_eval_batch_size",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "resume_from_checkpoint",
    "load_best_model_at_end",
    "report_to",
    "seed",
    "use_cpu",
}


@exits_with_one_line
def main(arguments: list[str] | None = None) -> None:
    """Entry point; `arguments` defaults to those of the command line."""
    show_on_terminal()
    task, args = parse(sys.argv[1:] if arguments is None else arguments)
    fine_tune(task, args)


def parse(arguments: list[str]) -> tuple[TaskArguments, XGBLoRAArguments]:
    """The flags of `arguments`, over those of a file, over those of the demonstration if no model is named.

    Raises:
        InputError: a flag or the file is wrong.
    """
    parser = build_parser(show_all="--help_all" in arguments)
    known = {action.dest for action in parser._actions}
    if arguments and arguments[0].endswith((".yaml", ".yml", ".json")):
        arguments = [*read_flags(Path(arguments[0]), known), *arguments[1:]]
    given = {argument.split("=")[0].lstrip("-").replace("-", "_") for argument in arguments}
    if not given & {"model_name", "help", "help_all", "h"}:
        parser.set_defaults(**demo.flags())
    try:
        task, args, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    except InputError:
        raise
    except ValueError as error:  # transformers' own checks of its flags
        raise InputError(" ".join(str(error).split())) from None
    if unknown:
        close = difflib.get_close_matches(unknown[0].split("=")[0].lstrip("-"), known, n=1)
        raise InputError(f"{unknown[0]}: unknown flag" + (f"; did you mean --{close[0]}?" if close else ""))
    return task, args


def build_parser(*, show_all: bool) -> HfArgumentParser:
    """The parser; its help shows our flags and the common ones of transformers, or all 150 with `show_all`."""
    parser = HfArgumentParser(
        (TaskArguments, XGBLoRAArguments),
        usage="xgblora-train [FLAGS.yaml] [--flag value ...]",
        description=DESCRIPTION,
        epilog="All flags of transformers.TrainingArguments are taken; --help_all lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("--help_all", action="help", help="show every flag and exit")
    for action in parser._actions:
        # transformers adds a spelling with hyphens to every flag; it works, and the help is half as long without it
        action.option_strings = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        if not show_all and action.dest not in SHOWN_FLAGS:
            action.help = argparse.SUPPRESS
    return parser


def read_flags(path: Path, known: set[str]) -> list[str]:
    """The flags in a YAML or JSON file, as a command line would give them; those without a value are left out.

    Raises:
        InputError: the file is missing, is no mapping, or names an unknown flag.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        flags = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML or JSON ({' '.join(str(error).split())})") from None
    if not isinstance(flags, dict):
        raise InputError(f"{path}: must hold flags as `name: value` lines")
    unknown = sorted(map(str, set(flags) - known))
    if unknown:
        raise InputError(f"{path}: unknown flag {unknown[0]}")
    return [word for name, value in flags.items() if value is not None for word in _as_arguments(name, value)]


def _as_arguments(name: str, value: object) -> list[str]:
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]
