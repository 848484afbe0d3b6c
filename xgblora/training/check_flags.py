"""Flags that are out of range, that contradict each other, or that a method refuses."""

from typing import Any

from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from xgblora.adapters.rank1_linear import scale_of
from xgblora.boosting.shrinkage import Shrinkage
from xgblora.boosting.starts import FIRST_STARTS, REINITS, check_share
from xgblora.errors import InputError, check_not_negative, check_positive
from xgblora.ops.update import RULES
from xgblora.training.flag import OF_ADAPTERS, Needs, asked_for, needing
from xgblora.training.population_flags import check_population
from xgblora.training.refused_flags import check_refused
from xgblora.zo.one_sided import check_normalise
from xgblora.zo.update_rule import check_beta

METHODS = ("xgblora", "lora", "full")
TRAINERS = ("zo", "regular", "population", "none")


def check_flags(args: Any) -> None:
    """Raise InputError if a flag of `args`, an `XGBLoRAArguments`, is out of range or two contradict each other."""
    if args.trainer not in TRAINERS:
        raise InputError(f"trainer={args.trainer}: must be one of {', '.join(TRAINERS)}")
    given = [name for name in METHODS if getattr(args, name)]
    if len(given) > 1:
        raise InputError(f"--{given[0]} and --{given[1]}: choose one of them")
    if args.full:
        _check_full(args)
    scale_of(args.lora_alpha, args.lora_r)
    _check_rounds(args)
    check_positive("zo_eps", args.zo_eps)
    for name in ("learning_rate", "weight_decay", "warmup_steps"):
        check_not_negative(name, getattr(args, name))
    if args.trainer != "regular" and (args.bf16 or args.fp16):
        name, dtype = ("bf16", "bfloat16") if args.bf16 else ("fp16", "float16")
        raise InputError(f"{name}=True: is for backpropagation; a run by forwards takes --dtype {dtype}")
    if args.zo_optimizer not in RULES:
        raise InputError(f"zo_optimizer={args.zo_optimizer}: must be one of {', '.join(RULES)}")
    if args.trainer == "zo":
        for flag, name in args.flags_of_optimizer.items():
            (check_positive if name == "epsilon" else check_beta)(flag, getattr(args, flag))
    if args.trunk_cache_gb is not None:
        check_not_negative("trunk_cache_gb", args.trunk_cache_gb)
    if args.zo_directions < 1:
        raise InputError(f"zo_directions={args.zo_directions}: must be 1 or more")
    if args.zo_agree_steps < 0:
        raise InputError(f"zo_agree_steps={args.zo_agree_steps}: must be 0 or more")
    check_normalise("zo_normalise", args.zo_normalise, args.zo_two_sided, args.zo_directions)
    if args.max_steps == 0 or args.max_steps < -1:
        raise InputError(f"max_steps={args.max_steps}: must be 1 or more, or -1 to train num_train_epochs epochs")
    check_positive("num_train_epochs", args.num_train_epochs)
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise InputError(f"{name}={getattr(args, name)}: must be 1 or more")
    for name in ("logging_steps", "eval_steps"):
        if getattr(args, name) is not None:
            check_positive(name, getattr(args, name))
    check_population(args)
    check_refused(args)
    if args.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
        raise InputError(
            f"train_sampling_strategy={args.train_sampling_strategy}: goes by lengths that the examples do not "
            "have; give random or sequential"
        )
    check_report_to(args.report_to)
    if not 0 <= args.seed < 1 << 32:
        raise InputError(f"seed={args.seed}: must be from 0 to 4294967295")


def _check_full(args: Any) -> None:
    if args.trainer == "regular":
        raise InputError("full=True: is for forward passes alone; backpropagation trains adapters, give --trainer zo")
    for name, default in needing(args, *OF_ADAPTERS).items():
        if getattr(args, name) != default:
            raise InputError(f"{name}={getattr(args, name)}: --full trains without adapters and rounds; leave it out")
    if args.zo_pairing == "paired":
        raise InputError("zo_pairing=paired: --full holds one sign of the weights at a time; leave it out")


def _check_rounds(args: Any) -> None:
    policy = args.merge_policy_of_flags
    for name, default in needing(args, Needs.ROUNDS).items():
        if args.lora and getattr(args, name) != default:
            raise InputError(f"{name}={getattr(args, name)}: plain LoRA has no rounds; use --xgblora")
    if args.xgblora_reinit not in REINITS:
        raise InputError(f"xgblora_reinit={args.xgblora_reinit}: must be one of {', '.join(REINITS)}")
    if args.lora_init not in FIRST_STARTS:
        raise InputError(f"lora_init={args.lora_init}: must be one of {', '.join(FIRST_STARTS)}")
    check_share("xgblora_colsample", args.xgblora_colsample)
    _check_hard_examples(args)
    if args.shrinkage != Shrinkage() and not REINITS[args.xgblora_reinit].starts_at_zero:
        raise InputError(
            f"xgblora_reinit={args.xgblora_reinit}: the base takes back all that a round started with; use "
            "--xgblora_shrinkage 1.0"
        )
    if args.shrinkage != Shrinkage() and args.xgblora_adaptive_merge:
        raise InputError(
            "xgblora_adaptive_merge=True: goes by the losses of adapters that are merged whole; use "
            "--xgblora_shrinkage 1.0"
        )
    if args.xgblora_adaptive_merge and args.eval_strategy != "steps":
        raise InputError(
            f"xgblora_adaptive_merge=True: needs --eval_strategy steps and --eval_steps, not {args.eval_strategy}"
        )
    if args.early_stopping_rounds < 0:
        raise InputError(f"early_stopping_rounds={args.early_stopping_rounds}: must be 0 or more")
    if args.early_stopping_rounds and policy.rule == "none":
        raise InputError(
            f"early_stopping_rounds={args.early_stopping_rounds}: there are no rounds without merges; give "
            "--xgblora_steps_per_iteration, --xgblora_merge_frequency or --xgblora_adaptive_merge"
        )
    for name in ("early_stopping_rounds", "load_best_round_at_end"):
        if getattr(args, name) and args.load_best_model_at_end:
            raise InputError(f"--{name} and --load_best_model_at_end: choose one of them")


def _check_hard_examples(args: Any) -> None:
    share = args.xgblora_hard_examples
    if not 0.0 <= share < 1.0:
        raise InputError(f"xgblora_hard_examples={share}: must be 0 or more and below 1")
    others = {"train_sampling_strategy": "random", "dataloader_num_workers": 0}
    for name, needed in others.items():
        if share and getattr(args, name) != needed:
            raise InputError(f"{name}={getattr(args, name)}: --xgblora_hard_examples draws the batches; leave it out")


def check_development_set(args: Any, held_out: object) -> None:
    """Raise InputError if a flag needs one development set and `held_out` is not one."""
    wanted = asked_for(args, Needs.ONE_DEVELOPMENT_SET)
    if wanted and args.trainer != "none" and (held_out is None or isinstance(held_out, dict)):
        found = "none" if held_out is None else f"a dict of {len(held_out)}"
        raise InputError(f"eval_dataset: {wanted[0]} needs one development set to measure rounds on, not {found}")


def refuse_rewards(args: Any) -> None:
    """Raise InputError where a task's batches are to be trained on, and `args` learn from rewards."""
    if args.by_rewards:
        raise InputError(
            f"reward={args.reward}: is for xgblora-train, on --prompts; on the batches of a task leave it out"
        )


def check_batches(args: Any, examples: int) -> None:
    """Raise InputError if so many training examples make no batch, and a run no step."""
    size = args.per_device_train_batch_size
    if args.trainer != "none" and args.dataloader_drop_last and examples < size:
        raise InputError(
            f"dataloader_drop_last=True: drops the only batch, num_train={examples} is fewer than "
            f"per_device_train_batch_size={size}"
        )


def check_report_to(report_to: None | str | list[str]) -> None:
    """Raise InputError if it names something that transformers does not report to, or that is not installed."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"report_to={name}: must be none, all, or of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        if name not in get_available_reporting_integrations():
            raise InputError(f"report_to={name}: is not installed")
