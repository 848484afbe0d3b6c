"""`Members`: what `Population.ask` gives: adapters to be scored, by the model at hand or by any other program."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from xgblora.boosting import Booster, Ledger, MergedAdapter, RoundStart
from xgblora.boosting.peft_adapter import export_peft, peft_tensors
from xgblora.boosting.truncation import TruncationCost
from xgblora.errors import InputError
from xgblora.population.kinds import Kind


@dataclass(frozen=True)
class Members:
    """The members of one step.

    Attributes:
        booster: over the adapters that they are members of.
        kind: what they perturb.
        step: of the population, 0 for the first.
        seeds: int64 [P] on the host.
        signs: fp32 [P] on the host, 1 and -1; with pairs members 2i and 2i + 1 share a seed.
        sigma: the size of the perturbation.
    """

    booster: Booster
    kind: Kind
    step: int
    seeds: Tensor
    signs: Tensor
    sigma: float

    def __len__(self) -> int:
        return len(self.seeds)

    @contextmanager
    def attached(self, start: int = 0, stop: int | None = None) -> Iterator[None]:
        """While this lasts, the layers read the adapters of members `start .. stop - 1` (None: all).

        Rows of the model's inputs fall into as many equal, contiguous groups, and group g is member `start + g`
        (`arena.live[g]`, in the compute dtype). Blocks of a large population need less memory than all of it: a member
        takes as much as one adapter. Afterwards the layers read the adapter in training again.
        """
        stop = len(self) if stop is None else stop
        if not 0 <= start < stop <= len(self):
            raise InputError(f"members {start} to {stop}: must be a range within 0 to {len(self)}")
        arena, dtype = self.booster.adapters.arena, self.booster.adapters.compute_dtype
        if arena.live is None or arena.live.shape[0] != stop - start or arena.live.dtype != dtype:
            arena.allocate_live(stop - start, dtype)
        try:
            self._fill(arena.live, start, stop)
            arena.spread_live()
            arena.read_live(0, stop - start)
            yield
        finally:
            arena.restore()
            arena.read_master()

    @torch.no_grad()
    def adapter(self, member: int) -> Tensor:
        """The adapter of one member, fp32 [P], laid out as the arena."""
        member = range(len(self))[member]
        row = torch.empty_like(self.booster.adapters.arena.master).unsqueeze(0)
        self._fill(row, member, member + 1)
        return row[0]

    def tensors(self, member: int, *, boosters: bool = False, rank: int | None = None) -> dict[str, Tensor]:
        """The adapter of one member as PEFT names it: `lora_A` fp32 [1, K] and `lora_B` fp32 [N, 1] of every layer.

        Their product is what is added to the weight. Arguments as of `save_peft`.
        """
        return peft_tensors(self._ledger(member, boosters), rank)

    def save_peft(
        self,
        folder: str | os.PathLike,
        member: int,
        *,
        boosters: bool = False,
        rank: int | None = None,
        base_model: str | nn.Module | None = None,
        task_type: str | None = "CAUSAL_LM",
    ) -> TruncationCost | None:
        """Write one member as a folder that PEFT, or a server with LoRA, loads over the weights as they are now.

        Args:
            folder, base_model, task_type: as of `xgblora.export_peft`.
            member: its number.
            boosters: put all boosters so far into it as well, for a server that has the base model alone.
            rank: at most this rank, by the nearest adapter that has it.

        Raises what `xgblora.export_peft` raises.
        """
        ledger = self._ledger(member, boosters)
        return export_peft(ledger, folder, base_model=base_model, rank=rank, task_type=task_type)

    @torch.no_grad()
    def _fill(self, live: Tensor, start: int, stop: int) -> None:
        place = live.device
        parts = self.seeds[start:stop].to(place), self.signs[start:stop].to(place)
        self.kind.fill(self.booster, live, *parts, self.sigma)

    def _ledger(self, member: int, boosters: bool) -> Ledger:
        """The member as the last booster of a ledger, and of none but it unless `boosters`."""
        ledger = self.booster.ledger
        last = MergedAdapter(len(ledger) + 1, self.step, 0.0, ledger.full_scale, self.adapter(member).cpu())
        if boosters:
            return replace(ledger, boosters=[*ledger.boosters, last])
        return replace(ledger, boosters=[last], start=RoundStart(), measured={})
