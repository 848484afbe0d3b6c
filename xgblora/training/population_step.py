"""`PopulationStep`: a population whose members all run the same batch; what a member is worth is minus its losses.

It is called as `ZeroOrder` is: `estimate` a batch or several, then `update`. All members run a batch in one forward, in
blocks where that is large: the batch stands there once for each, and the rows of each copy read its adapter.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xgblora.adapters import AdapterSet
from xgblora.boosting import MergeOverflow
from xgblora.errors import InputError
from xgblora.population import Members, Population, Told
from xgblora.zo.stacking import FAR_APART, elements_of, examples_in, is_stackable, same_losses, stacked
from xgblora.zo.zero_order import AUTO_PAIRING_ELEMENTS

logger = logging.getLogger("xgblora")


def tell(population: Population, fitness: Sequence | Tensor, lr: float | None = None) -> Told:
    """`population.tell`; a step that the weights cannot take is an InputError that says what to do."""
    try:
        return population.tell(fitness, lr=lr)
    except MergeOverflow as error:
        raise InputError(f"step {population.step + 1}: {error}; choose a smaller learning_rate") from None


class PopulationStep:
    """Steps of a population on batches.

    Args:
        population: over adapters of the model that is trained.
        objective: `(model, batch) -> losses`: [B], one loss an example, or a scalar; need not be differentiable.
        members: P, of a step.

    Attributes:
        forwards: how often a step runs a batch: once for each member.
        one_by_one: whether members run one after the other, None until a trial decides it; kept in checkpoints.
        example_losses: fp32 [B], of the batch that was estimated last, the mean over members; [1] where the objective
            gives no loss an example.
    """

    WAYS = ("one_by_one",)  # how forwards are run: what a checkpoint keeps of it

    def __init__(self, population: Population, objective: Callable[[Any, Any], Tensor], members: int):
        self.population, self.objective, self.forwards = population, objective, members
        self.example_losses = torch.zeros(1)
        self._members: Members | None = None
        self._losses: list[Tensor] = []
        self.one_by_one: bool | None = None

    @property
    def adapters(self) -> AdapterSet:
        """What the members are members of."""
        return self.population.adapters

    @property
    def step_index(self) -> int:
        """Steps so far."""
        return self.population.step

    @step_index.setter
    def step_index(self, step: int) -> None:
        self.population.step = step

    @property
    def skipped_steps(self) -> int:
        """Steps that changed nothing: all members failed, or none was better than another."""
        return self.population.step - len(self.population.booster.ledger)

    @torch.no_grad()
    def estimate(self, batch: Any, weight: float = 1.0) -> Tensor:
        """Add the losses of every member on `batch` to those of the step.

        Args:
            batch: what the objective takes.
            weight: of no meaning here; every example of a step counts the same.

        Returns:
            fp32 scalar: the mean of the losses that are finite; NaN where none is.
        """
        self.adapters.model.eval()
        if self.one_by_one is None:
            self.one_by_one = not self._stacks_right(batch)
        if self._members is None:
            self._members = self.population.ask(self.forwards)
        try:
            losses = self._losses_of(self._members, batch, self._block(batch))
        except BaseException:
            self.abandon_step()
            raise
        self._losses.append(losses)
        self.example_losses = losses.mean(dim=0)
        return losses[losses.isfinite()].mean()

    @torch.no_grad()
    def update(self, lr: float | None = None) -> Told:
        """Make the step that the losses say.

        Args:
            lr: length of the step; None takes the population's own.

        Raises:
            InputError: no loss was estimated since the last update, or a weight cannot take the step.
        """
        if not self._losses:
            raise InputError("PopulationStep.update: call estimate(batch) first")
        losses, self._losses, self._members = torch.cat(self._losses, dim=1), [], None
        return tell(self.population, -losses, lr)

    def abandon_step(self) -> None:
        """Forget the batches estimated since the last update."""
        self._losses, self._members = [], None

    def _block(self, batch: Any) -> int:
        """How many members run in one forward."""
        if self.one_by_one:
            return 1
        return min(self.forwards, max(1, AUTO_PAIRING_ELEMENTS // max(1, elements_of(batch))))

    def _losses_of(self, members: Members, batch: Any, block: int) -> Tensor:
        """fp32 [P, B], or [P, 1] where the objective gives no loss an example."""
        losses = []
        for start in range(0, len(members), block):
            stop = min(start + block, len(members))
            copies = stop - start
            run = stacked(batch, copies, copies, self.adapters.first_block()) if copies > 1 else batch
            with members.attached(start, stop), self.adapters.arena.while_unchanged():
                losses.append(self.objective(self.adapters.model, run).float().reshape(copies, -1))
        return torch.cat(losses)

    def _stacks_right(self, batch: Any) -> bool:
        """Whether members have the same losses in one forward as in one each; tried with two, far apart."""
        if not is_stackable(batch):
            return False
        pair = self.population.ask(2, sigma=FAR_APART)
        alone = self._losses_of(pair, batch, 1)
        if alone.shape[1] != examples_in(batch):
            return False
        together = self._losses_of(pair, batch, 2)
        if same_losses(together.mean(dim=1), alone.mean(dim=1), self.adapters.compute_dtype):
            return True
        logger.info("population: members run one after the other (stacked, their losses are others)")
        return False
