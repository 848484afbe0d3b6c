"""`Booster`: merge the trained adapter into the base weights, record it, start the next."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from xgblora import ops
from xgblora.adapters import AdapterSet
from xgblora.boosting.base_copy import BaseCopy
from xgblora.boosting.ledger import Ledger, MergedAdapter, Term
from xgblora.boosting.overflow import MergeOverflow, refuse_overflow
from xgblora.boosting.remainders import REMAINDERS, Remainders
from xgblora.boosting.starts import RoundStart, Samples, check_share
from xgblora.errors import InputError
from xgblora.ops.merge_rank1 import ROUNDINGS
from xgblora.ops.noise import derive_seed
from xgblora.spelling import dtype_name
from xgblora.tape import Tape

logger = logging.getLogger("xgblora")


class Booster:
    """Boosting rounds over the adapters of a model (XGBLoRA, Zhang et al., 2024).

    Args:
        adapters: from `xgblora.attach`, nothing merged yet. An adapter of rank r is merged as r rank-1 terms.
        rounding: "remainder" (exact; 16-bit weights carry an int16 plane), "stochastic" or "nearest".
        remainders: where the planes lie: "device", or "host", from where a layer's goes to the device for a merge.
        reinit: how a round's adapter starts, one of `xgblora.boosting.starts.REINITS`.
        colsample: share of the layers that a round trains.
        samples: what a measured start looks at; of no meaning to the others.

    Attributes:
        ledger: all boosters merged so far.
        samples: as given; may be set as long as no start is to be measured.
        tape: where merges and rollbacks are recorded, None unless `start_tape` began one.

    A weight that cannot be written (quantised) keeps its boosters in a bank beside it. The first merge keeps
    the adapted base weights, from which `rollback` starts again: see `BaseCopy`.

    Raises:
        InputError: rounding, remainders or reinit is unknown, or colsample out of range.
    """

    def __init__(
        self,
        adapters: AdapterSet,
        *,
        rounding: str = "remainder",
        remainders: str = "device",
        reinit: str = "kaiming",
        colsample: float = 1.0,
        samples: Samples | None = None,
    ):
        if rounding not in ROUNDINGS:
            raise InputError(f"rounding={rounding}: must be one of {', '.join(ROUNDINGS)}")
        self._planes = REMAINDERS.get(remainders)
        if self._planes is None:
            raise InputError(f"remainders={remainders}: must be one of {', '.join(REMAINDERS)}")
        self.adapters, self.rounding, self.samples = adapters, rounding, samples
        self.tape: Tape | None = None
        self.ledger = Ledger(adapters.identify(), adapters.arena.slots, rounding, RoundStart(reinit, colsample))
        self._base: BaseCopy | None = None
        self._remainders: Remainders | None = None
        if rounding == "nearest" and adapters.compute_dtype != torch.float32:
            logger.warning(
                "rounding=nearest loses most of a small merge into %s weights; rounding=remainder is exact",
                dtype_name(adapters.compute_dtype),
            )
        if self.ledger.start != RoundStart():
            self._start_round()
        if samples is not None:
            self.begin()

    @property
    def boosters(self) -> Sequence[MergedAdapter]:
        """All that were merged so far, as the ledger has them."""
        return self.ledger.boosters

    @property
    def measured_starts(self) -> Collection[Tensor]:
        """The starts that were measured so far, fp32 [P] each."""
        return self.ledger.measured.values()

    @property
    def start(self) -> RoundStart:
        """How rounds start."""
        return self.ledger.start

    @property
    def round(self) -> int:
        """The round in training: 1 before the first merge."""
        return len(self.ledger) + 1

    @torch.no_grad()
    def merge(
        self,
        *,
        step: int = 0,
        epoch: float = 0.0,
        held_out_loss: float | None = None,
        kept_step: int | None = None,
        shrinkage: float = 1.0,
        start: Tensor | None = None,
        last: bool = False,
    ) -> MergedAdapter:
        """End the round: write the adapter into the weights, record it, and start the next adapter.

        The function of the model stays what it was, up to the rounding of the weights' dtype, unless it is shrunken.

        Args:
            step, epoch: how far training is.
            held_out_loss: of the model with this booster, if it was measured.
            kept_step: the step whose weights the round went back to, if it did.
            shrinkage: factor on the adapter's scale, above 0 and at most 1.
            start: the next round's measured start, fp32 [P], where it is known from a record; None measures it.
            last: no round follows, so that nothing is measured for one.

        Raises:
            MergeOverflow: a weight would pass the range of its dtype; nothing was changed.
            InputError: `shrinkage` is out of range, or not 1 though the base took back what the round started with; a
                start is to be measured without `samples`, or without `begin` before the first round, or is given though
                starts are not measured.
        """
        check_share("shrinkage", shrinkage)
        if shrinkage != 1.0 and self.ledger.takes_from_base(len(self.ledger)):
            raise InputError(f"shrinkage={shrinkage}: must be 1.0 with reinit={self.ledger.start.reinit}")
        measures = self.ledger.start.measures and not last
        if measures and self.awaits_start:
            raise InputError(f"reinit={self.start.reinit}: the first round's start was not measured; begin() first")
        self._check_start(start, measures)
        trained = self.adapters.arena.master
        booster = MergedAdapter(
            round=self.round,
            step=step,
            epoch=epoch,
            scale=shrinkage * self.adapters.scale,
            # never a view: on a CPU `.cpu()` would hand back the arena itself
            adapters=trained.to("cpu", copy=True),
            held_out_loss=held_out_loss,
            kept_step=kept_step,
        )
        self._merge_or_undo(Term(booster.round, trained, booster.scale))
        self.ledger.add(booster)
        if measures:
            self._enter_start(start)
        if self.tape is not None:
            self.tape.record_merge(booster.round, step, shrinkage, booster.adapters)
        self._start_round()
        return booster

    def enter_unmerged(self, *, step: int, epoch: float) -> None:
        """Enter the adapter in training as the last booster, though the weights cannot take it (`MergeOverflow`)."""
        adapter = self.adapters.arena.master.to("cpu", copy=True)
        self.ledger.add(MergedAdapter(self.round, step, epoch, self.adapters.scale, adapter))

    def record_held_out_loss(self, step: int, loss: float) -> None:
        """Enter a loss that was measured after a merge, see `Ledger.record_held_out_loss`."""
        self.ledger.record_held_out_loss(step, loss)

    @property
    def awaits_start(self) -> bool:
        """Whether the first round's start is measured, and was not yet."""
        return self.ledger.start.measures and not self.ledger.boosters and 0 not in self.ledger.measured

    @torch.no_grad()
    def begin(self, start: Tensor | None = None) -> None:
        """Measure the start of the first round, before the first step; nothing where starts are not, or it is known.

        Args:
            start: the start, fp32 [P], where it is known from a record.

        Raises:
            InputError: it is to be measured without `samples`, or cannot be.
        """
        if not self.awaits_start:
            return
        self._check_start(start, measures=True)
        self._enter_start(start)
        self._start_round()

    def is_trained(self) -> bool:
        """Whether the adapter in training does anything that it did not do where the round started."""
        return self.ledger.is_trained(self.adapters.arena.master)

    @torch.no_grad()
    def end(self) -> None:
        """Leave base + ledger in the weights and an adapter that is zero; when training is over.

        What a start that was not zero took from the base, and nothing was trained upon, is in it again.
        """
        if self.ledger.takes_from_base(len(self.ledger)):
            self._reset_to_base()
            for term in self.ledger.terms():
                self._write(term)
        self.adapters.reinitialise(round=len(self.ledger))

    @torch.no_grad()
    def rollback(self, *, round: int) -> None:
        """Give the weights after round `round` again (0: the base) and start the adapter of the round after it.

        Raises:
            InputError: there is no such round.
        """
        if isinstance(round, bool) or not isinstance(round, int) or not 0 <= round <= len(self.ledger):
            raise InputError(f"round={round}: must be from 0 to {len(self.ledger)}, the number of boosters")
        if self.tape is not None:
            self.tape.record_rollback(round)
        self.replay(self.ledger.first(round))

    @torch.no_grad()
    def replay(self, ledger: Ledger) -> None:
        """Set the weights to base + `ledger`, whatever was merged before, and start the adapter of the next round.

        Raises:
            MergeOverflow: a booster of the ledger was never merged, because a weight passes the range of its dtype.
            InputError: the ledger belongs to another model, other adapters, another rounding or other starts.
        """
        self.ledger.origin.refuse_other(ledger.origin, "the ledger belongs to another run")
        if ledger.rounding != self.rounding:
            raise InputError(
                f"the ledger belongs to another run: rounding is {ledger.rounding} there and {self.rounding} here"
            )
        if ledger.start != self.ledger.start:
            raise InputError(
                f"the ledger belongs to another run: rounds start as {ledger.start} there and {self.ledger.start} here"
            )
        self._reset_to_base()
        for term in ledger.terms():
            self._write(term)
        refuse_overflow(self.adapters.layers, "base + boosters")
        self.ledger = replace(ledger, boosters=list(ledger.boosters), measured=dict(ledger.measured))
        self._start_round()

    def _check_start(self, start: Tensor | None, measures: bool) -> None:
        # before anything is merged
        reinit = self.ledger.start.reinit
        if start is not None and not measures:
            raise InputError(f"start: is for a round that starts as measured, and with reinit={reinit} none does here")
        if start is None and measures and self.samples is None:
            raise InputError(f"reinit={reinit}: measures how a round starts; give Booster(samples=...)")

    def _enter_start(self, start: Tensor | None) -> None:
        """Record the start of the round to come, measured now unless it is given."""
        round = len(self.ledger)
        if start is None:
            self.adapters.reinitialise(round=round)
            start = self.ledger.start.measure(self.adapters, self.samples, round)
        self.ledger.measured[round] = start.to("cpu", copy=True)
        if self.tape is not None:
            self.tape.record_start(start)

    def _start_round(self) -> None:
        ledger, round = self.ledger, len(self.ledger)
        arena = self.adapters.arena
        self.adapters.start(
            ledger.start_of(round, arena.master.device),
            trained=ledger.start.layers(ledger.slots, ledger.origin.seed, round),
            trains_a=ledger.start.strategy.trains_a,
        )
        offset = ledger.start_offset(round, arena.master.device)
        if offset is not None:
            self._write(offset)

    def save_ledger(self, path: Path, *, about: dict | None = None) -> None:
        """Write the ledger; `about` as of `Ledger.save`."""
        self.ledger.save(path, about=about)

    def load_ledger(self, path: Path) -> None:
        """`replay` the ledger in the file `path`."""
        self.replay(Ledger.load(path))

    def _reset_to_base(self) -> None:
        for layer in self.adapters.layers.values():
            if not layer.mergeable:
                layer.clear_bank()
        if self._base is not None:
            self._base.restore()
            self._remainders = self._zero_remainders()

    def _write(self, term: Term) -> None:
        if self._base is None:
            self._base = BaseCopy(self.adapters)
            self._remainders = self._zero_remainders()
        rows = term.adapters.to(self.adapters.arena.master.device).unsqueeze(0)
        merged = []
        for slot, layer in zip(self.ledger.slots, self.adapters.layers.values(), strict=True):
            a, b = (part[0] for part in slot.views(rows))
            if layer.mergeable:
                # of every matrix of the layer its own rows
                merged.extend(zip(*(part.unflatten(0, (-1, self.adapters.rank)) for part in (a, b)), strict=True))
            elif bool(b.any()):
                layer.extend_bank(a, b * term.scale)
        for row in range(self.adapters.rank if merged else 0):
            self._merge_into_weights(
                [(a[row], b[row]) for a, b in merged],
                term.scale,
                _rounding_seed(self.adapters.seed, term.round, row + self.adapters.rank * term.is_start),
            )

    def _merge_into_weights(self, adapters: list[tuple[Tensor, Tensor]], scale: float, seed: int) -> None:
        weights = self.adapters.weights()
        if self._remainders is None:
            ops.merge_rank1_(weights, adapters, scale, self.rounding, seed=seed)
        else:
            self._remainders.merge(weights, adapters, scale)

    def _merge_or_undo(self, term: Term) -> None:
        """Write the adapter in training; if that overflows, give the weights back what they were, bit for bit."""
        self._write(term)
        try:
            refuse_overflow(self.adapters.layers, f"the merge of round {term.round} was not made")
        except MergeOverflow:
            self._reset_to_base()
            offset = self.ledger.start_offset(len(self.ledger), self.adapters.arena.master.device)
            for written in (*self.ledger.terms(), *([] if offset is None else [offset])):
                self._write(written)
            raise

    def _zero_remainders(self) -> Remainders | None:
        return self._planes(self.adapters.weights()) if self.rounding == "remainder" else None


def _rounding_seed(seed: int, round: int, row: int) -> int:
    """Seed of stochastic rounding: another for each round, and for each of the rank-1 terms of an adapter."""
    return derive_seed(seed, round, row) if row else derive_seed(seed, round)
