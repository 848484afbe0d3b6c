"""What decides the rest of a run: a checkpoint says it, and a run that goes on from there must say the same.

Whatever is not here may change when a run is resumed: where and how often it logs, saves and reports, the sizes and
moments of evaluations that decide nothing, the device, and how long it trains where nothing depends on that
(docs/resuming.md).
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from xgblora.training.arguments import NUMBERS_OF_OPTIMIZERS, XGBLoRAArguments

_OF_EVERY_RUN = (
    "method",
    "trainer",
    "seed",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "train_sampling_strategy",
    "data_seed",
    "dataloader_drop_last",
    "rounding",
    "xgblora_reinit",
    "xgblora_shrinkage",
    "xgblora_colsample",
    "early_stopping_rounds",
    "load_best_round_at_end",
    "load_best_model_at_end",
)
_OF_ESTIMATES = (
    "zo_eps",
    "zo_directions",
    "zo_distribution",
    "zo_two_sided",
    "zo_normalise",
    # sums are taken in another order
    "zo_pairing",
    "zo_optimizer",
)
_OF_BACKPROPAGATION = (
    "optim",
    "optim_args",
    "optim_target_modules",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "bf16",
    "fp16",
    "neftune_noise_alpha",
)
_OF_ADAPTIVE_MERGING = ("ema", "patience", "threshold", "min_steps", "max_steps")
_OF_EVALUATIONS = ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "staged_eval")
_SCHEDULES_WITHOUT_END = ("constant", "constant_with_warmup", "inverse_sqrt")


def identity_of_flags(args: XGBLoRAArguments) -> dict[str, Any]:
    """What of the flags decides the rest of a run: name -> JSON value, what decides which others count first."""
    schedule = _plain(args.lr_scheduler_type)
    # with dropout the next mask depends on how often numbers were drawn, and each evaluation draws one
    when_evaluated = args.xgblora_adaptive_merge or args.load_best_model_at_end or args.trainer == "regular"
    shares = [args.warmup_steps] if schedule != "constant" else []
    names = [*_OF_EVERY_RUN, *_of_merges(args)]
    if args.trainer == "zo":
        names += [*_OF_ESTIMATES, *NUMBERS_OF_OPTIMIZERS[args.zo_optimizer]]
    if args.trainer == "regular":
        names += _OF_BACKPROPAGATION
    if schedule != "constant":
        names.append("warmup_steps")
    if when_evaluated:
        names += _OF_EVALUATIONS
        shares.append(args.eval_steps or 0)
    if args.load_best_model_at_end:
        names += ["metric_for_best_model", "greater_is_better"]
    if _held_out_loss_decides(args):
        names.append("per_device_eval_batch_size")
    # the adaptive rule ends its last round with the run
    if (
        schedule not in _SCHEDULES_WITHOUT_END
        or args.xgblora_adaptive_merge
        or any(0 < number < 1 for number in shares)
    ):
        names += ["max_steps"] if args.max_steps > 0 else ["max_steps", "num_train_epochs"]
    return {name: _plain(getattr(args, name)) for name in names}


def identity_of_examples(training: Sequence[Any], development: Sequence[Any]) -> dict[str, str]:
    """What of the encoded examples decides a run: one changed token or label, or another order, is another run."""
    sets = {"training": training, "development": development}
    return {f"the digest of the {name} examples": _digest(examples) for name, examples in sets.items()}


def _of_merges(args: XGBLoRAArguments) -> list[str]:
    if not args.boosts:
        return []
    if args.xgblora_adaptive_merge:
        return ["xgblora_adaptive_merge", *(f"xgblora_adaptive_{name}" for name in _OF_ADAPTIVE_MERGING)]
    by_steps = ["xgblora_adaptive_merge", "xgblora_steps_per_iteration"]
    return by_steps if args.xgblora_steps_per_iteration else [*by_steps, "xgblora_merge_frequency"]


def _held_out_loss_decides(args: XGBLoRAArguments) -> bool:
    by_rounds = args.xgblora_adaptive_merge or args.load_best_round_at_end or args.shrinkage.factor is None
    return by_rounds or args.load_best_model_at_end


def _plain(value: Any) -> Any:
    """The value of a member of an enumeration, everything else as it is."""
    return getattr(value, "value", value)


def _digest(examples: Sequence[Any]) -> str:
    return hashlib.sha256("\n".join(map(repr, examples)).encode()).hexdigest()[:12]
