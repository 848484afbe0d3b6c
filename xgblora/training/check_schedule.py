"""Schedules of the learning rate on one number: tried as the flags are read, read off where no trainer drives it."""

from typing import Any

import torch
from transformers import get_scheduler

from xgblora.errors import InputError, in_one_line


def check_schedule(args: Any) -> None:
    """Raise InputError if the schedule of `args`, an `XGBLoRAArguments`, cannot be made or cannot take a step."""
    if not isinstance(args.lr_scheduler_kwargs, dict | None):
        raise InputError(f"lr_scheduler_kwargs={args.lr_scheduler_kwargs}: must be a mapping, {{name: value, ...}}")
    about = f"lr_scheduler_type={_name(args)} with lr_scheduler_kwargs={args.lr_scheduler_kwargs}: "
    with in_one_line(ValueError, TypeError, KeyError, ArithmeticError, AttributeError, about=about):
        optimizer, schedule = _schedule(args, args.max_steps if args.max_steps > 0 else 1000)
        optimizer.step()
        schedule.step(*([0.0] if goes_by_evaluations(args) else []))


def rates_of(args: Any, steps: int) -> list[float]:
    """The learning rate at each of `steps` steps, by a schedule that does not go by evaluations."""
    optimizer, schedule = _schedule(args, steps)
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return rates


def _schedule(args: Any, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """The schedule of a run of so many steps, and the optimizer that it drives, on one number."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
    )
    return optimizer, schedule


def goes_by_evaluations(args: Any) -> bool:
    """Whether the learning rate follows what is measured on the development set."""
    return _name(args) in ("reduce_lr_on_plateau", "greedy")


def _name(args: Any) -> str:
    return getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
