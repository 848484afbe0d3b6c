"""The trunk: the blocks of a model below one from which on a forward differs.

A step runs copies of a batch at once, each with an adapter of its own, and below the first block whose adapter is in
use they are one and the same. There the trunk runs one copy, and the hidden states that it gives are widened to all.

That needs no knowledge of the architecture. The model is called twice. In the first call, with one copy, the blocks
above the trunk hand on what they are given; in the second one, with all copies, those of the trunk do, and the first
block above it is given the hidden states. Masks, positions and rotary tables are those that the model makes in each
call itself.

Widening copies bits. But products of fewer rows may add up in another order, so that losses are those of the plain way
to rounding: a few parts in 10^7 in fp32. Whether the trunk is shared depends on the model and the adapters in use
alone, so that a run and its repetition have the same bits.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xgblora.scoring.blocks import blocks_of
from xgblora.scoring.truth import agree, can_be_tried, computes_in
from xgblora.short_texts import MISFITS, arguments_of_short_texts
from xgblora.spelling import one_line

logger = logging.getLogger("xgblora")


class Trunk:
    """Runs a model in two parts.

    Args:
        model: a causal language model.

    Attributes:
        reasons: of each block that was asked for why forwards do not skip the blocks below it; None: they do.
    """

    def __init__(self, model: nn.Module):
        self._blocks = blocks_of(model)
        self.reasons: dict[str, str | None] = {}

    def states(self, run: Callable[[], Any], first: str) -> Tensor:
        """The hidden states that the block called `first` is given in the forward `run`; none after it is computed."""
        taken: list[Tensor] = []

        def take(hidden: Tensor, *args, **kwargs) -> Tensor:
            taken.append(hidden)
            return hidden

        names = list(self._blocks)
        after = dict.fromkeys(names[names.index(first) + 1 :], _hand_on)
        with self._standing_in({first: take, **after}):
            run()
        (hidden,) = taken
        return hidden

    @contextmanager
    def skipped(self, first: str, hidden: Tensor) -> Iterator[None]:
        """Within the block forwards begin at the block called `first`, which is given `hidden`; no hook is left."""

        names = list(self._blocks)
        with self._standing_in(dict.fromkeys(names[: names.index(first)], _hand_on)):
            hook = self._blocks[first].register_forward_pre_hook(lambda _, args: (hidden, *args[1:]))
            try:
                yield
            finally:
                hook.remove()

    def fits(self, model: nn.Module, first: str, forward: Callable[[Tensor], Tensor], groups: int) -> bool:
        """Whether forwards that skip the blocks below `first` give what others do; says in the log if they do not.

        Two short texts are run both ways when a block is asked for first: no documentation tells which architectures
        call their layers one after the other, with nothing beside the hidden states that one makes for the next.

        Args:
            model: the model.
            first: the name of a block.
            forward: token ids [N, T] to the logits of the model, in the way in which it will be run.
            groups: how many adapters a forward reads, each for its share of the rows.
        """
        if first not in self.reasons:
            self._decide(first, self._reason(model, first, forward, groups))
        return self.reasons[first] is None

    def refuses(self, first: str, reason: str) -> bool:
        """False, and what `fits` says from now on; the log has the reason once."""
        if self.reasons.get(first) is None:
            self._decide(first, reason)
        return False

    def _decide(self, first: str, reason: str | None) -> None:
        self.reasons[first] = reason
        if reason is None:
            below = list(self._blocks).index(first)
            logger.info("All copies of a batch share %d of %d layers, up to %s", below, len(self._blocks), first)
        else:
            logger.info("Every copy of a batch runs all layers: %s", reason)

    @contextmanager
    def _standing_in(self, forwards: dict[str, Callable]) -> Iterator[None]:
        """Within the block these stand in place of the forwards of the model's blocks, by name."""
        # a forward of its own: what spreads a model over devices leaves one
        before = {name: vars(self._blocks[name]).get("forward") for name in forwards}
        try:
            for name, forward in forwards.items():
                self._blocks[name].forward = forward
            yield
        finally:
            for name, kept in before.items():
                if kept is None:
                    del self._blocks[name].forward
                else:
                    self._blocks[name].forward = kept

    @torch.no_grad()
    def _reason(self, model: nn.Module, first: str, forward: Callable[[Tensor], Tensor], groups: int) -> str | None:
        """Why the blocks below `first` cannot be skipped; None: they can."""
        if first not in self._blocks:
            return "the adapters are not in the list of the model's layers"
        if not can_be_tried(model):
            return "the model has no weights yet"
        ids = arguments_of_short_texts(model)["input_ids"]
        try:
            expected = forward(ids.repeat(groups, 1))
            hidden = self.states(lambda: forward(ids), first)
            with self.skipped(first, hidden.repeat(groups, 1, 1)):
                shared = forward(ids.repeat(groups, 1))
        except MISFITS as error:
            return f"they cannot be called so ({one_line(error, limit=100)})"
        if agree(shared, expected, computes_in(model)):
            return None
        return "its logits are others then"


def _hand_on(hidden: Tensor, *args, **kwargs) -> Tensor:
    """In place of a block's forward: what it is given is what it gives."""
    return hidden
