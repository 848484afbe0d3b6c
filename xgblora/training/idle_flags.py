"""Flags that a run cannot follow with its trainer: it says so instead of dropping them without a word."""

from dataclasses import fields
from typing import Any

from xgblora.training.flag import flags_of


def idle_flags(args: Any) -> tuple[str, ...]:
    """A line for each flag of `args`, a dataclass, that was given another value than its default and does nothing."""
    defaults = {field.name: field.default for field in fields(args)}
    how = (args.trainer, *(["rewards"] if args.by_rewards else []))
    return tuple(
        f"--{name} {getattr(args, name)} has no effect with --trainer {args.trainer}: {flag.idle[one]}"
        for name, flag in flags_of(args).items()
        for one in how
        if one in flag.idle and getattr(args, name) != defaults[name]
    )
