"""`plan_rewards`, the first stage of a run by rewards: what its flags decide. It needs no model."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgblora.errors import InputError
from xgblora.rewards import parse_rewards, prompts_by_chat, prompts_by_template
from xgblora.rewards.functions import Reward
from xgblora.rewards.prompts import Prompt
from xgblora.runs.device_map import check_device_map
from xgblora.runs.language_model import refuse_missing_model
from xgblora.runs.place import Place, place_of
from xgblora.tasks.files import Row, read_rows
from xgblora.training import processes
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.evolution import sampling_of
from xgblora.training.task_flags import TaskArguments

# what says which task it is, its examples, and how they are measured
_OF_TASKS = {"task_name", "task_file", "data_dir", "head", "num_train", "num_dev", "num_eval", "train_set_seed"}
_OF_TASKS |= {"objective", "num_demos", "one_demo_set_per_example", "sfc", "icl_sfc"}


@dataclass(frozen=True)
class RewardPlan:
    """A run by rewards as its flags have it.

    Attributes:
        task, args: the flags.
        rewards: what completions are judged by.
        rows, held_out: those to learn from, and those to evaluate.
        place: where it writes, and what it goes on from.
    """

    task: TaskArguments
    args: XGBLoRAArguments
    rewards: tuple[Reward, ...]
    rows: list[Row]
    held_out: list[Row]
    place: Place


def plan_rewards(task: TaskArguments, args: XGBLoRAArguments, held: ExitStack) -> RewardPlan:
    """Check the flags, read the rows, and choose the folder.

    Args:
        task, args: the flags.
        held: what keeps other runs out of the folder, see `place_of`.

    Raises:
        InputError: a flag or a file is wrong, or the folder holds another run, or one is at work there.
    """
    processes.check_processes(args)
    check_device_map(task, args)
    refuse_missing_model(task.model_name)
    for name, value in vars(task).items():
        if name in _OF_TASKS and value != getattr(TaskArguments, name):
            raise InputError(f"{name}={value}: is for a task, and a run by rewards learns from --prompts; leave it out")
    sampling_of(args, task.max_new_tokens)
    rewards = parse_rewards(args.reward, args.reward_weights)
    rows = _rows_of("prompts", args.prompts)
    held_out = _rows_of("eval_prompts", args.eval_prompts) if args.eval_prompts else []
    if args.prompts_per_step > len(rows):
        raise InputError(f"prompts_per_step={args.prompts_per_step}: {args.prompts} has {len(rows)} rows")
    if args.prompt_template is not None:
        # now, because it needs no model
        read_prompts([*rows, *held_out], args, None)
    place = place_of(task, args, Path(args.prompts).stem, held)
    return RewardPlan(task, args, rewards, rows, held_out, place)


def read_prompts(rows: list[Row], args: XGBLoRAArguments, tokenizer: Any) -> list[Prompt]:
    """The prompts of rows as the flags have them; the tokenizer is for its chat template.

    Raises:
        InputError: a row has not what the template needs, or there is no template.
    """
    if args.prompt_template is not None:
        return prompts_by_template(rows, args.prompt_template)
    return prompts_by_chat(rows, tokenizer, args.prompt_column)


def _rows_of(flag: str, name: str) -> list[Row]:
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{flag}={name}: there is no such file")
    rows = read_rows(path)
    if not rows:
        raise InputError(f"{flag}={name}: there are no rows in it")
    return rows
