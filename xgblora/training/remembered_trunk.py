"""`RememberedTrunk`: the hidden states of a run's texts at the first block that holds an adapter, computed once.

The blocks below it have no adapter in any round, so that nothing changes what they give. Steps, evaluations between
rounds and line searches begin at that block.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from xgblora.adapters import Trainable
from xgblora.environment import free_memory
from xgblora.eval_mode import in_eval_mode
from xgblora.scoring import EncodedExample, OptionScorer
from xgblora.scoring.batches import tokens_per_batch
from xgblora.scoring.trunk_memory import TrunkMemory, states_by
from xgblora.spelling import memory_size
from xgblora.training.arguments import XGBLoRAArguments

logger = logging.getLogger("xgblora")

# of the memory that is free, where no flag says how much
SHARE = 0.25
# where it is not known
ROOM = 1 << 30


class RememberedTrunk:
    """Gives the batches of a trainer what is remembered of them.

    Args:
        trainer: its collator makes batches that say, from now on, of which examples they are.
        scorer: what runs them.
        first: the name of the block.
        sets: the examples.
        room: bytes in memory.
    """

    def __init__(
        self, trainer: Trainer, scorer: OptionScorer, first: str, sets: Sequence[Sequence[EncodedExample]], room: int
    ):
        self._first, collate = first, trainer.data_collator
        compute, tokens = states_by(scorer, trainer.model, first, collate), tokens_per_batch(trainer.args.device)
        self.memory = TrunkMemory(sets, compute, tokens=tokens, room=room, folder=Path(trainer.args.output_dir))
        trainer.data_collator = _Numbering(collate, self.memory.numbers)

    def __str__(self) -> str:
        memory = self.memory
        file = f", {memory_size(memory.in_file)} in a file" if memory.in_file else ""
        return f"{len(memory.numbers):,} texts at {self._first}: {memory_size(memory.in_memory)} in memory{file}"

    def add_to(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`batch` with the states of its examples, on the host; as it is where they are not known."""
        if not isinstance(batch, dict) or "numbers" not in batch:
            return batch
        rest = {name: value for name, value in batch.items() if name != "numbers"}
        states = self.memory.states(batch["numbers"], tuple(batch["input_ids"].shape))
        return {**rest, "states": states, "states_at": self._first}

    def forget(self) -> None:
        """Give the memory back."""
        self.memory.forget()


class _Numbering:
    """A collator whose batches have `numbers`, those of their examples; unless one has none."""

    def __init__(self, collate: Callable[[list], dict[str, Any]], numbers: dict):
        self._collate, self._numbers = collate, numbers

    def __call__(self, examples: list) -> dict[str, Any]:
        batch = self._collate(examples)
        numbers = tuple(self._numbers.get(getattr(example, "sequences", None)) for example in examples)
        return batch if None in numbers else {**batch, "numbers": numbers}


def remembered_trunk(trainer: Trainer, objective: Callable, first: str) -> RememberedTrunk | None:
    """What a zeroth-order run of `trainer` remembers; None where it cannot be, for a reason that the log says.

    Args:
        trainer: with its data sets and collator.
        objective: of the run.
        first: the name of the first block that holds an adapter; "" where nothing runs before it.
    """
    if not first or trainer.args.trunk_cache_gb == 0:
        return None
    scorer = getattr(objective, "scorer", None)
    sets = [trainer.train_dataset or [], trainer.eval_dataset or []]
    if not isinstance(scorer, OptionScorer) or not all(map(_is_known, sets)) or not any(map(len, sets)):
        logger.info("No hidden states are remembered: the objective scores no lists of encoded examples")
        return None
    with torch.no_grad(), in_eval_mode(trainer.model):
        if not scorer.can_skip(trainer.model, first):
            return None
    return RememberedTrunk(trainer, scorer, first, sets, room_of(trainer.args.trunk_cache_gb))


def identity_of_trunk(adapters: Trainable, args: XGBLoRAArguments) -> dict[str, bool]:
    """What a run's identity says of it: remembered states are those of other batches, and differ in their last bits."""
    remembers = args.trainer == "zo" and args.trunk_cache_gb != 0 and adapters.first_block(in_use=False) != ""
    return {"that hidden states are remembered (trunk_cache_gb)": True} if remembers else {}


def room_of(trunk_cache_gb: float | None) -> int:
    """Bytes in memory: what the flag says, or a share of what is free."""
    if trunk_cache_gb is not None:
        return int(trunk_cache_gb * 1e9)
    free = free_memory()
    return ROOM if free is None else int(SHARE * free)


def _is_known(examples: Any) -> bool:
    return isinstance(examples, list) and all(isinstance(example, EncodedExample) for example in examples)
