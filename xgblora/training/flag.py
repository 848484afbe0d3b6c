"""What a flag says of itself where it is declared: what it decides, what it needs, and where it has no effect.

Everything that goes by flags asks here: what a checkpoint names (`run_identity`), what a run says has no effect
(`idle_flags`), which methods of a comparison take a flag, and which flags the help shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any


class Decides(Enum):
    """What of a run a flag decides; in this order a checkpoint of another run is told apart.

    `run_identity` says which of these count in which runs.
    """

    NOTHING = "where a run writes and what it shows: with another value it is the same run"
    PASSING = "nothing that lasts: what is measured by the way, how fast and on which device"
    ORIGIN = "the base model and what of it is trained: the origin in a checkpoint says it"
    EXAMPLES = "the texts: the digest of the examples says it"
    METHOD = "the method: one name says it for all its flags"
    TASK = "the task, its examples and the objective"
    ANSWERS = "the generated answers that F1 is of"
    RUN = "every step: its gradient, its rate, its batch"
    ROUNDS = "how rounds start, are merged, and which are kept"
    BOOSTING = "whether the adaptive rule ends rounds"
    ADAPTIVE_RULE = "when the adaptive rule ends a round"
    STEPS_RULE = "after how many steps a round ends"
    EPOCHS_RULE = "after how many epochs a round ends"
    ESTIMATE = "a zeroth-order estimate"
    OPTIMIZER = "a step along an estimate, with the optimizers that read it"
    POPULATION = "members, what they write and what it is worth"
    GRADIENT = "a gradient, and a step along it"
    WARMUP = "how a schedule begins"
    EVALUATIONS = "when the development set is evaluated, and as what"
    BEST_MODEL = "which checkpoint is the best"
    HELD_OUT_LOSS = "the last bits of a held-out loss"
    STEPS = "how many steps there are"
    EPOCHS = "how many epochs there are, where steps are not counted"


class Needs(Enum):
    """What a run must have for a flag to make a difference."""

    ADAPTERS = "adapters"
    RANK = "a rank other than 1: plain LoRA"
    ROUNDS = "boosting rounds; what has none refuses the flag"
    MERGES = "boosting rounds; plain LoRA has the flag and no merges"
    DEVELOPMENT_EXAMPLES = "development examples to measure rounds on"
    ONE_DEVELOPMENT_SET = "one development set, not several by name"
    ESTIMATE = "zeroth-order estimates"
    POPULATION = "members of a population"
    REWARDS = "texts that rewards judge"
    COPIES = "several perturbed copies of what is trained at a time"


# full-parameter training has neither adapters nor rounds
OF_ADAPTERS = (Needs.ADAPTERS, Needs.RANK, Needs.ROUNDS, Needs.MERGES)


@dataclass(frozen=True)
class Flag:
    """What a flag says of itself.

    Attributes:
        decides: what of a run it decides.
        needs: what a run must have for it to make a difference.
        idle: trainers with which it has no effect, "rewards" for a population that is not on a task -> what they go by
            instead.
        optimizers: zeroth-order optimizers that read it -> what `UpdateRule` calls it.
        turns_on: another flag that is on when this one is.
        in_comparison: which flag of `xgblora-compare` sets it for each run; None: a person may.
        shown: whether `--help` shows it; `--help_all` shows every flag.
    """

    decides: Decides
    needs: tuple[Needs, ...] = ()
    idle: Mapping[str, str] = field(default_factory=dict)
    optimizers: Mapping[str, str] = field(default_factory=dict)
    turns_on: str | None = None
    in_comparison: str | None = None
    shown: bool = True


class _Help(str):
    """The help of a flag, and what else the flag says: transformers hands all other metadata to argparse."""

    flag: Flag


def declare(default: Any, help: str, decides: Decides, **says: Any) -> Any:
    """The dataclass field of a flag; `says` are further attributes of its `Flag`."""
    text = _Help(help)
    text.flag = Flag(decides, **says)
    return field(default=default, metadata={"help": text})


def flags_of(arguments: Any) -> dict[str, Flag]:
    """What the flags of a dataclass, or of an instance, say: its own, then those that it names in `_inherited_flags`.

    Flags of transformers that decide nothing known to this package say nothing, and it has not all in every release.
    """
    helps = {of.name: of.metadata.get("help") for of in fields(arguments)}
    declared = {name: help.flag for name, help in helps.items() if isinstance(help, _Help)}
    inherited = getattr(arguments, "_inherited_flags", {})
    return {**declared, **{name: flag for name, flag in inherited.items() if name in helps}}


def needing(arguments: Any, *needs: Needs) -> dict[str, Any]:
    """The flags that need one of `needs`, and their defaults."""
    defaults = {of.name: of.default for of in fields(arguments)}
    return {name: defaults[name] for name, flag in flags_of(arguments).items() if set(needs) & set(flag.needs)}


def asked_for(args: Any, need: Needs) -> list[str]:
    """The flags of an instance that are on and need it, without those that are on because another one is."""
    on = {name: flag for name, flag in flags_of(args).items() if need in flag.needs and getattr(args, name)}
    return [name for name in on if name not in {flag.turns_on for flag in on.values()}]
