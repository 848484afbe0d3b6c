"""`HardExamples`: in a share of each batch stand examples that were hard in the round before.

One-side sampling (LightGBM, Ke et al. 2017) in batches: the examples with the highest losses are drawn more often, and
each loss is weighted by how much more often, so that the mean over batches stays the mean over all examples. BoostLoRA
(arXiv:2604.27308) likewise trains a round on what the round before got wrong. Losses are those that the steps computed
anyway, of both signs; an example that no step of a round has seen keeps the one it had.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Sampler

from xgblora.errors import InputError
from xgblora.ops.noise import derive_seed

# the hardest fifth, LightGBM's `top_rate`
HARDEST = 0.2
_WEIGHTS = "weights"


class HardExamples(Sampler):
    """The order of examples, epoch by epoch; of what a batch has, all follows from its number and the state.

    Batches are fetched before the steps that they are for, in a run that goes on from a checkpoint later than in one
    that was not stopped. So the examples that were found hard when a round begins count from the batch on that nobody
    has fetched yet, and those of before are kept until then.

    Args:
        examples: how many there are.
        batch: examples of a batch.
        share: of a batch, above 0 and below 1; without hard ones, in the first round, all are drawn as ever.
        seed: of the run.
        ahead: batches that are fetched, at most, when the first one of a step is run.
        drop_last: an epoch has whole batches only.
    """

    def __init__(self, examples: int, batch: int, share: float, *, seed: int, ahead: int, drop_last: bool = False):
        self.examples, self.batch, self.share = examples, batch, share
        self.seed, self.ahead = seed, ahead
        self.per_epoch = examples // batch if drop_last else -(-examples // batch)
        self.epoch = 0
        self.forget()

    def __str__(self) -> str:
        return f"{self._hard_of(self.batch)} of a batch of {self.batch}, of the hardest {HARDEST:.0%}, weighted"

    def forget(self) -> None:
        """Be as before the first batch."""
        none = torch.empty(0, dtype=torch.int64)
        self._number, self._round, self._since = 0, 0, 0
        self._hard_before, self._hard = none, none
        self._losses = torch.full((self.examples,), torch.nan)
        self._unread: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return self.examples

    def __iter__(self) -> Iterator[int]:
        for number in range(self.epoch * self.per_epoch, (self.epoch + 1) * self.per_epoch):
            yield from self.indices(number).tolist()

    def set_epoch(self, epoch: int) -> None:
        """The next order is that of epoch `epoch`."""
        self.epoch = epoch

    def indices(self, number: int) -> Tensor:
        """The examples of batch `number`, counted over the run, int64 [B]."""
        drawn, hard = self._drawn_as_ever(number), self._hard_for(number)
        count = self._hard_of(len(drawn)) if len(hard) else 0
        if count:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, number))
            drawn[:count] = hard[torch.randint(len(hard), (count,), generator=generator)]
        return drawn

    def weighted(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch that is run now, with `weights` fp32 [B]: by how much less often its examples are drawn as ever."""
        drawn, hard = self.indices(self._number), self._hard_for(self._number)
        if not len(hard):
            return {**batch, _WEIGHTS: torch.ones(len(drawn))}
        share = self._hard_of(len(drawn)) / len(drawn)
        often = share * self.examples / len(hard) * torch.isin(drawn, hard) + (1.0 - share)
        return {**batch, _WEIGHTS: 1.0 / often}

    def see(self, losses: Tensor, batch: dict[str, Any], round: int) -> None:
        """The batch that is run now has the weighted losses `losses`, fp32 [B] on the device; the next one is another.

        Args:
            losses: nothing is read from the device before the round ends.
            batch: what `weighted` gave, on the device or not.
            round: in training; 1 for the first.

        Raises:
            InputError: there is no loss an example.
        """
        weights = batch[_WEIGHTS].to(losses.device)
        if losses.shape != weights.shape:
            raise InputError("xgblora_hard_examples: the objective must return one loss an example")
        if round != self._round:
            self._hard_before, self._hard = self._hard, self._hardest()
            self._round, self._since = round, self._number + self.ahead
        self._unread.append((self.indices(self._number), losses / weights))
        self._number += 1

    def save(self, path: Path) -> None:
        """Write the state as safetensors."""
        self._read()
        numbers = {"number": self._number, "round": self._round, "since": self._since}
        tensors = {"losses": self._losses, "hard": self._hard, "hard_before": self._hard_before}
        save_file(tensors, path, metadata={name: str(value) for name, value in numbers.items()})

    def load(self, path: Path) -> None:
        """Take up what `save` wrote."""
        with safe_open(path, "pt") as file:
            self._number, self._round, self._since = (int(file.metadata()[key]) for key in ("number", "round", "since"))
            self._losses, self._hard, self._hard_before = map(file.get_tensor, ("losses", "hard", "hard_before"))
        self._unread = []

    def _hard_of(self, count: int) -> int:
        # one at least is drawn as ever: all examples have a chance
        return min(round(self.share * count), count - 1)

    def _hard_for(self, number: int) -> Tensor:
        return self._hard if number >= self._since else self._hard_before

    def _drawn_as_ever(self, number: int) -> Tensor:
        epoch, place = divmod(number, self.per_epoch)
        order = _order(self.examples, derive_seed(self.seed, epoch))
        return order[place * self.batch : (place + 1) * self.batch].clone()

    def _hardest(self) -> Tensor:
        self._read()
        known = self._losses.isfinite().nonzero().squeeze(1)
        count = -int(-HARDEST * len(known) // 1)
        return known[self._losses[known].sort(descending=True, stable=True).indices[:count]]

    def _read(self) -> None:
        for indices, losses in self._unread:
            # one after the other: a batch may hold an example twice
            for index, loss in zip(indices.tolist(), losses.tolist(), strict=True):
                self._losses[index] = loss
        self._unread = []


@lru_cache(maxsize=2)
def _order(examples: int, seed: int) -> Tensor:
    # 20 ms for a million examples
    return torch.randperm(examples, generator=torch.Generator().manual_seed(seed))


def weighing(objective: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """`objective`, its losses times the weights of a batch that has some."""

    def losses(model: nn.Module, batch: Any) -> Tensor:
        if _WEIGHTS not in batch:
            return objective(model, batch)
        rest = {name: value for name, value in batch.items() if name != _WEIGHTS}
        return objective(model, rest) * batch[_WEIGHTS]

    return losses
