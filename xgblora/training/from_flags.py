"""What the flags make of a model: what is trained, what merges it, and the zeroth-order step over it."""

from collections.abc import Callable

from torch import nn

from xgblora.adapters import Depths, FullParameters, Trainable, attach
from xgblora.boosting import Booster, FullFineTuning
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.zo import ZeroOrder


def trainable_of(model: nn.Module, args: XGBLoRAArguments) -> Trainable:
    """The adapters of `model`, attached, or with `full` all its parameters."""
    if args.full:
        return FullParameters(model.to(args.device), seed=args.seed)
    return attach(
        model,
        _targets(args.target_modules),
        alpha=args.lora_alpha,
        rank=args.rank,
        seed=args.seed,
        depths=Depths.parse(args.xgblora_layers),
    )


def booster_of(adapters: Trainable, args: XGBLoRAArguments) -> Booster | FullFineTuning:
    """What merges and records `adapters`."""
    if args.full:
        return FullFineTuning(adapters)
    return Booster(
        adapters,
        rounding=args.rounding,
        remainders=args.remainders,
        reinit=args.start,
        colsample=args.xgblora_colsample,
    )


def zero_order_of(adapters: Trainable, objective: Callable, args: XGBLoRAArguments) -> ZeroOrder:
    """The zeroth-order step over `adapters`."""
    return ZeroOrder(
        adapters,
        objective,
        eps=args.zo_eps,
        lr=args.learning_rate,
        pairing=args.zo_pairing,
        optimizer=args.update_rule,
        seed=args.seed,
        weight_decay=args.weight_decay,
        distribution=args.zo_distribution,
        capture=args.zo_capture,
        estimator=args.estimator,
    )


def _targets(target_modules: list[str] | None) -> str | list[str] | None:
    """One entry may be a regular expression, several are names."""
    return target_modules[0] if target_modules and len(target_modules) == 1 else target_modules
