"""The processes of a run prove that they agree: on what they run when they meet, and on what they train as it goes."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from xgblora.adapters import Origin, Trainable
from xgblora.boosting import Booster, FullFineTuning
from xgblora.process_group import AgreedInputError, ProcessFailure, ProcessGroup

# what each process may have its own way: where it runs and what it shows
_OF_ONE_PROCESS = {
    "output_dir",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
    "use_cpu",
    "disable_tqdm",
    "report_to",
    "local_rank",
    "log_level",
    "log_level_replica",
    "zo_pairing",
    "zo_capture",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataloader_persistent_workers",
    "dataloader_multiprocessing_context",
}


def facts_of(args: TrainingArguments, identity: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """What must be the same in every process of a run: its flags, what else decides it, and its base model."""
    flags = {of.name: getattr(args, of.name) for of in fields(args) if of.name not in _OF_ONE_PROCESS}
    flags = {name: getattr(value, "value", value) for name, value in flags.items()}
    plain = {name: value for name, value in flags.items() if isinstance(value, str | int | float | list | None)}
    told = {name: getattr(origin, name) for name in ("dtype", "layout", "fingerprint", "rest")}
    base = {f"{name} of the base model": value for name, value in told.items()}
    plain["device"] = args.device.type
    return {**plain, **{name: value for name, value in identity.items() if name not in _OF_ONE_PROCESS}, **base}


def agree_on(group: ProcessGroup, facts: Mapping[str, Any]) -> None:
    """Raise AgreedInputError, in every process, if one has other facts than the first, whose line says which."""
    facts_of_all = group.objects(dict(facts))
    first = facts_of_all[0]
    for number, theirs in enumerate(facts_of_all):
        for name in [*first, *(theirs.keys() - first.keys())]:
            if first.get(name) != theirs.get(name):
                line = (
                    f"{name}: is {theirs.get(name)} in process {number} and {first.get(name)} in process 0; all "
                    "processes need the same flags, examples and base model"
                )
                raise AgreedInputError(line if group.first else "")


class Agreement(TrainerCallback):
    """Compare what the processes train, after every `every` steps, at every merge, and before a checkpoint.

    Args:
        group: the processes.
        trained: what this one trains.
        booster: what it merged.
        every: steps; 0 compares at merges and checkpoints alone.
    """

    def __init__(self, group: ProcessGroup, trained: Trainable, booster: Booster | FullFineTuning, every: int):
        self._group, self._trained, self._booster, self._every = group, trained, booster, every
        self._merged = len(booster.boosters)

    def on_step_end(self, args, state, control, **kwargs):
        merged = len(self._booster.boosters)
        due = self._every and state.global_step % self._every == 0
        if due or merged != self._merged or control.should_save:
            self.check(state.global_step)
        self._merged = merged

    def check(self, step: int) -> None:
        """Compare now, after `step`.

        Raises:
            ProcessFailure: a process differs; in each, and the first one's names it.
        """
        digests = self._group.objects(f"{len(self._booster.boosters)} {digest(self._trained.arena.master)}")
        different = differing(digests)
        if different:
            names = " and ".join(f"{number} ({self._group.peers[number].host})" for number in different)
            line = f"step {step}: what process {names} trained differs from what process {differing_from(digests)} did"
            raise ProcessFailure(line if self._group.first else "")


def digest(numbers: Tensor) -> str:
    """sha256 of the bits of a tensor."""
    return hashlib.sha256(numbers.detach().contiguous().cpu().numpy().tobytes()).hexdigest()


def differing(digests: Sequence[str]) -> list[int]:
    """The numbers of those that are not like most; where none are most, not like the first."""
    return [number for number, one in enumerate(digests) if one != digests[differing_from(digests)]]


def differing_from(digests: Sequence[str]) -> int:
    """The first that is like most."""
    (most, count), *_ = Counter(digests).most_common(1)
    return digests.index(most) if count > 1 else 0
