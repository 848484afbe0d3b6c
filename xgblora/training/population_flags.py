"""The flags of evolution (`--trainer population`), by an objective or by rewards, and what of them goes together."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from xgblora.errors import InputError, check_positive
from xgblora.population import SHAPINGS
from xgblora.population.shaping import NEED_PAIRS
from xgblora.rewards.pool import ON_FAILURE
from xgblora.training.check_schedule import goes_by_evaluations
from xgblora.training.flag import Decides, Needs, declare, needing

_of_population = partial(
    declare,
    decides=Decides.POPULATION,
    needs=(Needs.POPULATION,),
    idle=dict.fromkeys(("zo", "regular", "none"), "it has no population"),
)
_of_rewards = partial(
    _of_population, needs=(Needs.POPULATION, Needs.REWARDS), in_comparison="it is on a task, without rewards"
)


@dataclass
class PopulationArguments:
    """Evolution."""

    reward: list[str] | None = _of_rewards(
        None, "FILE.py:function, one or more: what a completion is worth, reward(prompt, completion, row)."
    )
    reward_weights: list[float] | None = _of_rewards(None, "A weight for each reward; 1 without it.")
    reward_workers: int = _of_rewards(1, "Processes that rewards run in.", decides=Decides.PASSING)
    reward_time_limit: float = _of_rewards(
        10.0, "Seconds for one reward of one text; the process that takes longer is replaced."
    )
    on_failure: Literal[ON_FAILURE] = _of_rewards(
        "count",
        "A reward that fails, count: its member has failed in this step; stop: the run ends.",
        decides=Decides.PASSING,
    )
    prompts: str | None = _of_rewards(
        None, "Rows that become prompts: .jsonl, .json, .csv, .tsv or .parquet.", decides=Decides.EXAMPLES
    )
    eval_prompts: str | None = _of_rewards(
        None, "Rows that are held out, completed greedily every --eval_steps.", decides=Decides.PASSING
    )
    prompt_template: str | None = _of_rewards(
        None,
        'Prompt of a row, columns in braces: "{question} = "; the tokenizer\'s chat template without it.',
        decides=Decides.EXAMPLES,
    )
    prompt_column: str | None = _of_rewards(
        None,
        "Column for the chat template: messages, or what the user says; messages or prompt without it.",
        decides=Decides.EXAMPLES,
    )
    members: int = _of_population(32, "Members of the population.")
    sigma: float = _of_population(0.02, "Size of the perturbation of a member's weights.")
    sigma_end: float | None = _of_population(None, "Size at the last step, reached in a line; --sigma without it.")
    pairs: bool = _of_population(True, "Members are the two signs of one perturbation, in pairs.")
    shaping: Literal[tuple(SHAPINGS)] = _of_population(
        "prompt-baseline", "From rewards to the weights of members (docs/rewards.md)."
    )
    decay: float = _of_population(1.0, "What all earlier steps are multiplied with at each step; 1.0: nothing fades.")
    noise_reuse: int = _of_population(1, "Steps that share one draw of noise.")
    prompts_per_step: int = _of_rewards(8, "Prompts that all members complete in a step.")
    completions: int = _of_rewards(1, "Completions of a prompt by each member.")
    temperature: float = _of_rewards(1.0, "Of sampling in training; 0: the likeliest token.")
    top_p: float = _of_rewards(1.0, "Share of the probability that sampling draws from; 1.0: all.")
    stop: list[str] | None = _of_rewards(None, "Strings before which a completion ends.")


_NEED_RULE = {
    "load_best_model_at_end": False,
    "lora": False,
    "full": False,
    "xgblora_adaptive_merge": False,
    "load_best_round_at_end": False,
    "early_stopping_rounds": 0,
}


def check_population(args: Any) -> None:
    """Raise InputError if a flag of `args`, an `XGBLoRAArguments`, does not go with evolution."""
    if args.trainer != "population":
        for name in ("reward", "prompts"):
            if getattr(args, name) is not None:
                raise InputError(f"{name}={getattr(args, name)}: needs --trainer population, not {args.trainer}")
        return
    for name, needed in _NEED_RULE.items():
        if getattr(args, name) != needed:
            raise InputError(f"{name}={getattr(args, name)}: must be {needed} with --trainer population")
    for name in ("learning_rate", "sigma", "sigma_end"):
        if getattr(args, name) is not None:
            check_positive(name, getattr(args, name))
    for name in ("members", "noise_reuse", "prompts_per_step", "completions"):
        if getattr(args, name) < 1:
            raise InputError(f"{name}={getattr(args, name)}: must be 1 or more")
    _check_members(args)
    if args.by_rewards:
        _check_rewards(args)
        return
    for name, default in needing(args, Needs.REWARDS).items():
        if getattr(args, name) != default:
            raise InputError(f"{name}={getattr(args, name)}: is for rewards; give --reward and --prompts too")


def _check_rewards(args: Any) -> None:
    for name, says in (("reward", "FILE.py:function"), ("prompts", "a file of rows")):
        if not getattr(args, name):
            raise InputError(f"{name} is missing: a run by rewards needs --{name}, {says}")
    if goes_by_evaluations(args):
        raise InputError(
            f"lr_scheduler_type={getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}: goes by losses of "
            "development examples, which a run by rewards has not; give constant, linear, cosine or another"
        )
    for what in ("eval", "save", "logging"):
        strategy = getattr(args, f"{what}_strategy")
        if getattr(strategy, "value", strategy) not in ("no", "steps"):
            raise InputError(f"{what}_strategy={getattr(strategy, 'value', strategy)}: must be no or steps here")
        often = getattr(args, f"{what}_steps")
        if often is not None and (often < 1 or often != int(often)):
            raise InputError(f"{what}_steps={often}: must be a whole number, 1 or more, with rewards")


def _check_members(args: Any) -> None:
    if args.members < 2 or (args.pairs and args.members % 2):
        raise InputError(f"members={args.members}: must be 2 or more{', and even with --pairs' if args.pairs else ''}")
    if SHAPINGS.get(args.shaping) in NEED_PAIRS and not args.pairs:
        raise InputError(f"shaping={args.shaping}: compares the two of a pair; needs --pairs true")
