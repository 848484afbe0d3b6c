"""`Exchange`: which part of a step's losses a process measures, and how those of all processes become the step's.

A zeroth-order step needs of another machine its losses alone: noise, update and merge give the same bits everywhere. So
processes that hold the same adapters exchange a number for each row of `live` and batch, and each makes one update.

Here is the arithmetic; who sends the numbers is a `Gather`, and `xgblora.process_group` has the one over
torch.distributed. Every sum is taken in the order of the processes by each of them, so that the result depends on
neither who was first nor the units of a machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from xgblora.errors import InputError
from xgblora.zo.estimator import Estimator

# fp32 [k] of this process to fp32 [N, k] of all, in the order of the processes; each must call it as often
Gather = Callable[[Tensor], Tensor]


class Exchange(Protocol):
    """How the processes of a run share the losses of a step."""

    def rows(self, estimator: Estimator) -> Sequence[int]:
        """Which of the estimator's G rows this process measures, those of whole forwards, in order.

        Raises:
            InputError: the estimator's forwards cannot be shared so.
        """

    def share(self, losses: Tensor) -> Tensor:
        """fp32 [rows of this process], the mean loss at each on its batch, to fp32 [G], those of the step."""


@dataclass(frozen=True)
class Alone:
    """One process: it measures every row, and its losses are those of the step."""

    def rows(self, estimator: Estimator) -> Sequence[int]:
        return range(len(estimator.signs))

    def share(self, losses: Tensor) -> Tensor:
        return losses


@dataclass(frozen=True)
class ShareOfExamples:
    """Each process has batches of its own, of one size: the losses of the step are the means over the processes.

    Attributes:
        gather: over the processes.
    """

    gather: Gather

    def rows(self, estimator: Estimator) -> Sequence[int]:
        return range(len(estimator.signs))

    def share(self, losses: Tensor) -> Tensor:
        return mean_in_order(self.gather(losses))


class ShareOfForwards:
    """All processes have the same batch, and each runs some of the forwards: the bits are those of one process alone.

    Args:
        gather: over the processes.
        process: the number of this one, from 0.
        owners: the estimator's F forwards to the number of the process that runs each.
    """

    def __init__(self, gather: Gather, process: int, owners: Callable[[Estimator], Sequence[int]]):
        self._gather, self._process, self._owners = gather, process, owners
        self._owner_of_row: list[int] = []

    def rows(self, estimator: Estimator) -> Sequence[int]:
        rows = len(estimator.signs) // estimator.forwards
        self._owner_of_row = [owner for owner in self._owners(estimator) for _ in range(rows)]
        return [row for row, owner in enumerate(self._owner_of_row) if owner == self._process]

    def share(self, losses: Tensor) -> Tensor:
        own = [row for row, owner in enumerate(self._owner_of_row) if owner == self._process]
        sent = losses.new_zeros(len(self._owner_of_row))
        sent[own] = losses
        gathered = self._gather(sent)
        return torch.stack([gathered[owner, row] for row, owner in enumerate(self._owner_of_row)])


def by_directions(processes: int) -> Callable[[Estimator], Sequence[int]]:
    """Each process runs the forwards of other directions, as equal in number as can be, the first ones the first."""

    def owners(estimator: Estimator) -> Sequence[int]:
        if estimator.directions < processes:
            raise InputError(
                f"zo_parallel=directions: {processes} processes need as many directions or more, not "
                f"zo_directions={estimator.directions}"
            )
        return [forward * processes // estimator.forwards for forward in range(estimator.forwards)]

    return owners


def by_signs(processes: int) -> Callable[[Estimator], Sequence[int]]:
    """One of two processes runs the forwards with noise added, the other those with noise taken away."""

    def owners(estimator: Estimator) -> Sequence[int]:
        if processes != 2:
            raise InputError(f"zo_parallel=signs: is for 2 processes, one a sign, not {processes}")
        if set(estimator.signs) != {1.0, -1.0}:
            raise InputError("zo_parallel=signs: needs both signs of every direction; leave out --zo_two_sided false")
        rows = len(estimator.signs) // estimator.forwards
        return [int(sign < 0.0) for sign in estimator.signs[::rows]]

    return owners


def mean_in_order(gathered: Tensor) -> Tensor:
    """The mean [k] of `gathered` [N, k], summed in order: a sum over a dimension takes another on other machines."""
    total = gathered[0]
    for row in gathered[1:]:
        total = total + row
    return total / len(gathered)
