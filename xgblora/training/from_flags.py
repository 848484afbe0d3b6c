"""What the flags make of a model: what is trained, what merges it, and the zeroth-order step over it."""

from collections.abc import Callable, Sized
from functools import partial

from torch import nn

from xgblora.adapters import FullParameters, Trainable, attach
from xgblora.boosting import Booster, FullFineTuning
from xgblora.errors import InputError
from xgblora.population import Population
from xgblora.population.schedule import linear
from xgblora.scoring.forms import CLASSIFIER, form_of
from xgblora.scoring.forms.classifier import is_of_head
from xgblora.training.arguments import XGBLoRAArguments
from xgblora.training.hard_examples import HardExamples
from xgblora.training.population_step import PopulationStep
from xgblora.zo import ZeroOrder
from xgblora.zo.exchange import Exchange


def trainable_of(model: nn.Module, args: XGBLoRAArguments) -> Trainable:
    """The adapters of `model`, attached, or with `full` all its parameters. A classification head has some always."""
    if args.full:
        return FullParameters(model.to(args.device), seed=args.seed)
    return attach(
        model,
        _targets(args.target_modules),
        alpha=args.lora_alpha,
        rank=args.rank,
        seed=args.seed,
        depths=args.depths,
        head=partial(is_of_head, model) if form_of(model) is CLASSIFIER else None,
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
        colsample=args.xgblora_colsample if args.has_rounds else 1.0,
    )


def forward_step_of(
    booster: Booster | FullFineTuning,
    objective: Callable,
    args: XGBLoRAArguments,
    exchange: Exchange,
    steps: Callable[[], int],
) -> ZeroOrder | PopulationStep | None:
    """What steps by forward passes alone; None with backpropagation.

    Args:
        booster: over what is trained.
        objective: `(model, batch) -> losses`.
        args: the flags.
        exchange: with the other processes of a zeroth-order run.
        steps: how many the run has, asked as it goes.
    """
    if args.trainer == "zo":
        return zero_order_of(booster.adapters, objective, args, exchange)
    if args.trainer == "population":
        return PopulationStep(population_of(booster, args, steps), objective, args.members)
    return None


def population_of(booster: Booster, args: XGBLoRAArguments, steps: Callable[[], int]) -> Population:
    """The population of `booster`; its rate is that of a constant schedule.

    Args:
        booster, args: as the others have them.
        steps: how many the run has, asked as it goes.

    Raises:
        InputError: the booster cannot take its steps.
    """
    sigma = args.sigma
    if args.sigma_end is not None:

        def sigma(step: int) -> float:
            return linear(args.sigma, args.sigma_end, steps())(step)

    return Population(
        booster.adapters,
        booster,
        sigma=sigma,
        lr=args.learning_rate,
        pairs=args.pairs,
        shaping=args.shaping,
        decay=args.decay,
        noise_reuse=args.noise_reuse,
        seed=args.seed,
    )


def hard_examples_of(examples: Sized | None, args: XGBLoRAArguments) -> HardExamples | None:
    """What draws the batches from `examples`; None where hard ones are drawn as all others.

    Raises:
        InputError: nobody knows how many there are.
    """
    if not args.xgblora_hard_examples or args.trainer != "zo" or examples is None:
        return None
    if not isinstance(examples, Sized):
        raise InputError("xgblora_hard_examples: the training set must have a length")
    return HardExamples(
        len(examples),
        args.train_batch_size,
        args.xgblora_hard_examples,
        seed=args.seed,
        # of a step all, and one more
        ahead=args.gradient_accumulation_steps + 1,
        drop_last=args.dataloader_drop_last,
    )


def zero_order_of(
    adapters: Trainable, objective: Callable, args: XGBLoRAArguments, exchange: Exchange | None = None
) -> ZeroOrder:
    """The zeroth-order step over `adapters`, with the other processes of the `exchange`."""
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
        exchange=exchange,
    )


def _targets(target_modules: list[str] | None) -> str | list[str] | None:
    """One entry may be a regular expression, several are names."""
    return target_modules[0] if target_modules and len(target_modules) == 1 else target_modules
