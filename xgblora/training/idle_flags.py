"""Flags of transformers that a zeroth-order run cannot follow: it says so instead of dropping them without a word."""

from dataclasses import fields
from typing import Any

# what a zeroth-order run goes by instead
INSTEAD = {
    "optim": "--zo_optimizer chooses what steps",
    "optim_args": "--zo_optimizer chooses what steps",
    "max_grad_norm": "there are no gradients to clip",
    "gradient_checkpointing": "nothing is kept for a backward pass",
    "torch_compile": "forwards run the model as it is; on a GPU they are captured as CUDA graphs",
    "label_smoothing_factor": "--objective chooses the loss",
}


def idle_flags(args: Any) -> tuple[str, ...]:
    """A line for each flag of `args`, a dataclass, that was given another value than its default and does nothing."""
    defaults = {field.name: field.default for field in fields(args)}
    return tuple(
        f"--{name} {getattr(args, name)} has no effect with --trainer zo: {instead}"
        for name, instead in INSTEAD.items()
        if getattr(args, name) != defaults[name]
    )
