"""What decides the rest of a run: a checkpoint says it, and a run that goes on from there must say the same.

Each flag says what it decides where it is declared (`flag.py`); here stands in which runs that counts. Whatever else is
may change when a run is resumed: where and how often it logs, saves and reports, the sizes and moments of evaluations
that decide nothing, the device, and how long it trains where nothing depends on that (docs/resuming.md).
"""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.check_schedule import goes_by_evaluations
from xgblora.training.flag import Decides, flags_of
from xgblora.training.task_flags import TaskArguments

_SCHEDULES_WITHOUT_END = ("constant", "constant_with_warmup", "inverse_sqrt")


def identity_of_flags(args: XGBLoRAArguments) -> dict[str, Any]:
    """What of the flags decides the rest of a run: name -> JSON value, what decides which others count first."""
    names = ["method", *_deciding(args, _what_counts(args))]
    if args.trainer == "zo":
        names += args.flags_of_optimizer
    return {name: _plain(getattr(args, name)) for name in names}


def identity_of_task(task: TaskArguments, *, seed: int, max_length: int) -> dict[str, Any]:
    """What decides a run beside the flags of the trainer. The examples say it all; these say which flag it was.

    Args:
        task: the flags.
        seed: what the examples were drawn by.
        max_length: the longest text in tokens.
    """
    counts = [Decides.TASK, Decides.ANSWERS] if task.objective == "f1" else [Decides.TASK]
    flags = {name: getattr(task, name) for name in _deciding(task, counts)}
    return {**flags, "train_set_seed": seed, "max_length": max_length}


def identity_of_examples(training: Sequence[Any], development: Sequence[Any]) -> dict[str, str]:
    """What of the encoded examples decides a run: one changed token or label, or another order, is another run."""
    sets = {"training": training, "development": development}
    return {f"the digest of the {name} examples": _digest(examples) for name, examples in sets.items()}


def identity_of_prompts(prompts: Sequence[Any], *, max_length: int, max_new_tokens: int) -> dict[str, Any]:
    """What decides a run by rewards beside its flags: its prompts, and how long a text may get, in tokens."""
    lengths = {"max_length": max_length, "max_new_tokens": max_new_tokens}
    return {**lengths, "the digest of the prompts": _digest(prompts)}


def identity_of_rewards(rewards: Sequence[Any]) -> dict[str, str]:
    """What of the files of rewards decides a run: what stands in them. What they import is not looked at."""
    return {
        f"the digest of {one.path}": hashlib.sha256(Path(one.path).read_bytes()).hexdigest()[:12] for one in rewards
    }


def _deciding(arguments: TaskArguments | XGBLoRAArguments, counts: Collection[Decides]) -> list[str]:
    """The flags that decide something of what `counts`, in the order of `Decides`."""
    flags = flags_of(arguments)
    return [name for what in Decides if what in counts for name, flag in flags.items() if flag.decides is what]


def _what_counts(args: XGBLoRAArguments) -> set[Decides]:
    """What the flags of this run can decide."""
    by_steps = args.boosts and not args.xgblora_adaptive_merge
    evaluations = args.xgblora_adaptive_merge or args.load_best_model_at_end or goes_by_evaluations(args)
    counts = {
        Decides.RUN: True,
        Decides.ROUNDS: True,
        Decides.BOOSTING: args.boosts,
        Decides.ADAPTIVE_RULE: args.boosts and args.xgblora_adaptive_merge,
        Decides.STEPS_RULE: by_steps,
        Decides.EPOCHS_RULE: by_steps and not args.xgblora_steps_per_iteration,
        Decides.ESTIMATE: args.trainer == "zo",
        Decides.POPULATION: args.trainer == "population",
        Decides.GRADIENT: args.trainer == "regular",
        Decides.WARMUP: _plain(args.lr_scheduler_type) != "constant",
        Decides.EVALUATIONS: evaluations,
        Decides.BEST_MODEL: args.load_best_model_at_end,
        Decides.HELD_OUT_LOSS: _held_out_loss_decides(args),
    }
    ends = _end_decides(args, warms_up=counts[Decides.WARMUP], evaluations=evaluations)
    counts |= {Decides.STEPS: ends, Decides.EPOCHS: ends and args.max_steps <= 0}
    return {what for what, does in counts.items() if does}


def _end_decides(args: XGBLoRAArguments, *, warms_up: bool, evaluations: bool) -> bool:
    """Whether a longer run would be another one from the start."""
    ends = _plain(args.lr_scheduler_type) not in _SCHEDULES_WITHOUT_END
    narrows = args.trainer == "population" and args.sigma_end is not None
    # a run is evaluated where it ends, whatever the number of that step
    return ends or narrows or evaluations or (warms_up and 0 < args.warmup_steps < 1)


def _held_out_loss_decides(args: XGBLoRAArguments) -> bool:
    by_rounds = args.xgblora_adaptive_merge or args.load_best_round_at_end or args.shrinkage.factor is None
    return by_rounds or args.load_best_model_at_end or goes_by_evaluations(args)


def _plain(value: Any) -> Any:
    """The value of a member of an enumeration, everything else as it is."""
    return getattr(value, "value", value)


def _digest(examples: Sequence[Any]) -> str:
    return hashlib.sha256("\n".join(map(repr, examples)).encode()).hexdigest()[:12]
